"""A size in adapter parameters, shared out among components: in the order of scores, or by a pattern."""

import re

import torch

from autolora_trainer.ranks.grid import depths


def parse_budget(budget: str | int, costs: list[int], capacities: list[int] | None = None) -> int:
    """A budget in adapter parameters: an integer, digits, or `lora:R` (rank R in every module).

    Raises:
        ValueError: If it is none of those, or more than `capacities` components of the modules can hold.
    """
    match = re.fullmatch(r"(lora:)?(\d{1,15})", str(budget).strip())
    if not match or int(match[2]) < 1:
        raise ValueError(f"size must be a number of adapter parameters or lora:R, got {budget!r}, e.g. lora:4.")
    parameters = int(match[2]) * (sum(costs) if match[1] else 1)
    if capacities and parameters > (most := sum(cost * rank for cost, rank in zip(costs, capacities))):
        raise ValueError(
            f"size {budget} asks for {parameters:,} adapter parameters, and rank {max(capacities)} in every "
            f"module has {most:,}. Lower size or raise initial_rank."
        )
    return parameters


def fill_budget(
    scores: torch.Tensor, costs: list[int], budget: str | int, min_rank: int = 1, capacities: list[int] | None = None
) -> list[int]:
    """Take components by falling score (M, k) until the next would exceed the budget. The rank of
    a module is at most its capacity; default: k."""
    modules, k = scores.shape
    capacities = capacities or [k] * modules
    parameters = parse_budget(budget, costs, capacities)
    ordered = scores.sort(dim=1, descending=True).values
    ranks, spent = [min_rank] * modules, min_rank * sum(costs)
    if spent > parameters or (min_rank == 0 and parameters < min(costs)):
        raise ValueError(
            f"size {budget} is {parameters:,} adapter parameters, and the least that min_rank {min_rank} "
            f"allows is {max(spent, min(costs)):,}. Raise size" + (" or set min_rank 0." if min_rank else ".")
        )
    rest = [(-ordered[m, j].item(), j, m) for m in range(modules) for j in range(min_rank, capacities[m])]
    for _, _, module in sorted(rest):
        if spent + costs[module] > parameters:
            break
        ranks[module] += 1
        spent += costs[module]
    return ranks


def apportioned(shares: torch.Tensor, components: int) -> torch.Tensor:
    """Sainte-Laguë quotients s_l / (j - 1/2), (M, components), from shares (M,): the largest N of them share N
    components out in proportion to the shares."""
    return shares[:, None] / (torch.arange(components) + 0.5)


def uniform_ranks(costs: dict[str, int], parameters: int) -> dict[str, int]:
    """Equal ranks within `parameters`; what is left buys one more component for modules evenly spread over the depth.

    Args:
        costs: {module: parameters of one component}.
        parameters: adapter parameters to spend.
    Example:
        >>> uniform_ranks({"a": 10, "b": 10, "c": 10, "d": 10}, 60)
        {'a': 1, 'b': 2, 'c': 1, 'd': 2}
    """
    names = list(costs)
    ranks = dict.fromkeys(names, parameters // sum(costs.values()))
    left = parameters - sum(ranks[name] * costs[name] for name in names)
    extra = min(len(names) - 1, left * len(names) // sum(costs.values()))
    order = [names[(2 * i + 1) * len(names) // (2 * extra)] for i in range(extra)]
    for name in order + [name for name in names if name not in order]:
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def random_ranks(costs: dict[str, int], parameters: int, capacity: int, min_rank: int, seed: int) -> dict[str, int]:
    """Components drawn without replacement from `capacity` in every module until the next would exceed `parameters`.

    Args:
        costs, parameters: as in `uniform_ranks`.
        capacity: k, the largest rank of a module.
        min_rank: 1 gives every module a component first; 0 lets a module go without.
    Example:
        >>> sum(random_ranks({"a": 10, "b": 10}, 60, capacity=8, min_rank=0, seed=0).values())
        6
    """
    scores = torch.rand(len(costs), capacity, generator=torch.Generator().manual_seed(seed))
    return dict(zip(costs, fill_budget(scores, list(costs.values()), parameters, min_rank)))


def linear_ranks(costs: dict[str, int], parameters: int, min_rank: int = 1) -> dict[str, int]:
    """Components shared out in proportion to 1/2 + depth (Sainte-Laguë) until the next would exceed `parameters`: no
    block has a smaller rank than an earlier one of the same projection.

    Args:
        costs, parameters: as in `uniform_ranks`; the modules in the order of the model.
        min_rank: 1 gives every module a component first; 0 lets a module go without.
    Example:
        >>> linear_ranks({"0.q": 10, "1.q": 10, "2.q": 10}, 120)
        {'0.q': 2, '1.q': 4, '2.q': 6}
    """
    places = torch.tensor(depths(costs), dtype=torch.double)
    shares = 0.5 + places / places.max().clamp_min(1)
    most = int(parameters / min(costs.values()) * (shares.max() / shares.sum()).item()) + 2  # the last block's rank
    return dict(zip(costs, fill_budget(apportioned(shares, most), list(costs.values()), parameters, min_rank)))
