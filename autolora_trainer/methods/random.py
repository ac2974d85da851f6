"""Random ranks at a given size: what a learned pattern has to beat before its ranks can be said to mean anything."""

from functools import partial

import torch

from autolora_trainer.methods.common import Built, build_pattern, check_pattern
from autolora_trainer.rules import fill_budget


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


def share_out(run):
    capacity = max([run.method.initial_rank, *(run.given_ranks.ranks.values() if run.given_ranks else ())])
    settings = {"capacity": capacity, "min_rank": run.method.min_rank, "seed": run.training.seed}
    return partial(random_ranks, **settings)


def check(run) -> None:
    check_pattern(run, share_out(run))


def build(run) -> Built:
    return build_pattern(run, "random", share_out(run))
