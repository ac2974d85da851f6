"""Ranks that no search made, at a given size: the same everywhere, random, rising with depth."""

import torch

from autolora_trainer.ranks.budget import fill_budget
from autolora_trainer.ranks.names import depths


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
        costs: {module: parameters of one component}.
        parameters: adapter parameters to spend.
        capacity: k, the largest rank of a module.
        min_rank: 0 or 1, as in `rules.select_ranks`.
        seed: of the draw.
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
        costs: {module: parameters of one component}, in the order of the model.
        parameters: adapter parameters to spend.
        min_rank: 0 or 1, as in `rules.select_ranks`.
    Example:
        >>> linear_ranks({"0.q": 10, "1.q": 10, "2.q": 10}, 120)
        {'0.q': 2, '1.q': 4, '2.q': 6}
    """
    places = torch.tensor(depths(costs), dtype=torch.double)
    shares = 0.5 + places / places.max().clamp_min(1)
    most = int(parameters / min(costs.values()) * (shares.max() / shares.sum()).item()) + 2  # the last block's rank
    return dict(zip(costs, fill_budget(apportioned(shares, most), list(costs.values()), parameters, min_rank)))
