"""A size in adapter parameters: as it is typed, and shared out among components."""

import re

import torch


def parse_budget(budget: str | int, costs: list[int], capacities: list[int] | None = None) -> int:
    """A budget in adapter parameters: an integer, digits, or `lora:R` (rank R in every module).

    Raises:
        ValueError: If it is none of those, or more than `capacities` components of the modules can hold.
    """
    match = re.fullmatch(r"(lora:)?(\d{1,15})", str(budget).strip())
    if not match or int(match[2]) < 1:
        raise ValueError(f"rank_budget must be a number of adapter parameters or lora:R, got {budget!r}, e.g. lora:4.")
    parameters = int(match[2]) * (sum(costs) if match[1] else 1)
    most = None if capacities is None else sum(cost * rank for cost, rank in zip(costs, capacities))
    if most is not None and parameters > most:
        raise ValueError(
            f"rank_budget {budget} asks for {parameters:,} adapter parameters, and rank {max(capacities)} in every "
            f"module has {most:,}. Lower rank_budget or raise initial_rank."
        )
    return parameters


def fill_budget(
    scores: torch.Tensor,
    costs: list[int],
    budget: str | int,
    min_rank: int = 1,
    capacities: list[int] | None = None,
) -> list[int]:
    """Take components by falling score (M, k) until the next would exceed the budget; see `select_ranks`.

    Args:
        capacities: the most that each module's rank can be; default: k.
    """
    modules, k = scores.shape
    capacities = capacities or [k] * modules
    parameters = parse_budget(budget, costs, capacities)
    ordered = scores.sort(dim=1, descending=True).values
    ranks, spent = [min_rank] * modules, min_rank * sum(costs)
    if spent > parameters or (min_rank == 0 and parameters < min(costs)):
        raise ValueError(
            f"rank_budget {budget} is {parameters:,} adapter parameters, and the least that min_rank {min_rank} "
            f"allows is {max(spent, min(costs)):,}. Raise rank_budget" + (" or set min_rank 0." if min_rank else ".")
        )
    rest = [(-ordered[m, j].item(), j, m) for m in range(modules) for j in range(min_rank, capacities[m])]
    for _, _, module in sorted(rest):
        if spent + costs[module] > parameters:
            break
        ranks[module] += 1
        spent += costs[module]
    return ranks
