"""Random ranks at a given size: what a learned pattern has to beat before its ranks can be said to mean anything."""

import torch

from autolora_trainer.methods.common import Built, component_costs, pattern, probe_adapter
from autolora_trainer.methods.uniform import pattern_size
from autolora_trainer.ranks import fill_budget
from autolora_trainer.retrain import build_adapter


def random_ranks(costs: dict[str, int], parameters: int, capacity: int, min_rank: int, seed: int) -> dict[str, int]:
    """Components drawn without replacement from `capacity` in every module until the next would exceed `parameters`.

    Args:
        costs: {module: parameters of one component}.
        parameters: adapter parameters to spend.
        capacity: k, the largest rank of a module.
        min_rank: 0 or 1, as in `ranks.select_ranks`.
        seed: of the draw.
    Example:
        >>> sum(random_ranks({"a": 10, "b": 10}, 60, capacity=8, min_rank=0, seed=0).values())
        6
    """
    scores = torch.rand(len(costs), capacity, generator=torch.Generator().manual_seed(seed))
    return dict(zip(costs, fill_budget(scores, list(costs.values()), parameters, min_rank)))


def build(run) -> Built:
    probe = probe_adapter(run)
    costs = component_costs(probe)
    capacity = max([run.method.initial_rank, *(run.given_ranks.ranks.values() if run.given_ranks else ())])
    drawn = random_ranks(costs, pattern_size(run, costs), capacity, run.method.min_rank, run.training.seed)
    ranks = pattern(run, probe, drawn, "random")
    return Built(build_adapter(run.base_model(), ranks, run.lora_config(), run.method.scaling), ranks)
