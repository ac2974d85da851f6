"""Patterns: ranks that no search made, at a given size; what a learned pattern of that size has to beat.

Scale and training are the retrain's, so that only the ranks differ. The size is that of `--ranks FILE`, else
`--size`, else uniform rank 4.
"""

from collections.abc import Callable

import torch
from peft import PeftModel

from autolora_trainer.hub.card import CITED_PATTERN, Card
from autolora_trainer.lora.svd import copy_cut
from autolora_trainer.methods.base import Built, Job, Method, Plan, given_pattern
from autolora_trainer.ranks.budget import fill_budget, linear_ranks, parse_budget, random_ranks, uniform_ranks
from autolora_trainer.ranks.learned import LearnedRanks


def pattern_size(job: Job) -> int:
    """Adapter parameters of a pattern baseline."""
    costs = job.source.costs
    if job.ranks:
        job.ranks.check_names(costs, exactly=True)
        return sum(costs[name] * rank for name, rank in job.ranks.ranks.items())
    return parse_budget(job.request.settings.size or "lora:4", list(costs.values()))


def least_rank(job: Job) -> int:
    """`--min_rank`; its default is 1 for what no search found."""
    return 1 if job.request.settings.min_rank is None else job.request.settings.min_rank


def equal_scores(job: Job, size: int | str, min_rank: int) -> dict[str, int]:
    """{module: rank} if all of `initial_rank` components scored alike: raises `ValueError` for a size that no scores
    can fill."""
    k, costs = job.request.settings.initial_rank, job.source.costs
    most = [min(k, *shape) for shape in job.source.shapes.values()]
    return dict(zip(costs, fill_budget(torch.zeros(len(costs), k), list(costs.values()), size, min_rank, most)))


def check_first_component(job: Job, size: int, min_rank: int) -> None:
    """Raise `ValueError` where the best component may cost more than the size, and no module would get one."""
    most = max(job.source.costs.values())
    if min_rank == 0 and size < most:
        raise ValueError(
            f"size {size} has no room for a component of the largest module, {most:,} adapter "
            "parameters, which may be the best. Raise size."
        )


def cut_adapter(job: Job, wide: PeftModel, ranks: LearnedRanks) -> PeftModel:
    """The ordinary adapter of `ranks` that a wide one, cut to them, computes like."""
    small = job.build(ranks)
    copy_cut(wide, small)
    return small


class SizedMethod(Method):
    """A method with a rank per module, whose size is asked for."""

    reads = frozenset({"ranks", "size", "lora_target_modules"})
    has_lora = True


class Pattern(SizedMethod):
    """A pattern by its name, which is its rule in `ranks.json`; `share_out`: (job, parameters) -> {module: rank}."""

    def __init__(self, name: str, share_out: Callable[[Job, int], dict[str, int]]):
        self.name, self.share_out = name, share_out

    def prepare(self, job: Job) -> Plan:
        job.source.refuse_nonlinear()
        size = pattern_size(job)
        ranks = self.share_out(job, size)
        if not any(ranks.values()):
            raise ValueError(
                f"--method {self.name} has {size:,} adapter parameters to share out, and a component takes "
                f"{min(job.source.costs.values()):,}. Raise --size, e.g. lora:1, or give other --ranks."
            )
        return lambda: self._learn(job, ranks)

    def _learn(self, job: Job, ranks: dict[str, int]) -> Built:
        base = job.source.base_model()
        pattern = given_pattern(job, self.name, ranks, base)
        return Built(job.build(pattern, base), pattern)

    def card(self, folder: str) -> Card:
        return Card(self.name, CITED_PATTERN, ("lora",), cites=True)


def _random(job: Job, size: int) -> dict[str, int]:
    settings = job.request.settings
    capacity = max([settings.initial_rank, *(job.ranks.ranks.values() if job.ranks else ())])
    return random_ranks(job.source.costs, size, capacity, least_rank(job), job.request.training.seed)


UNIFORM = Pattern("uniform", lambda job, size: uniform_ranks(job.source.costs, size))
RANDOM = Pattern("random", _random)
LINEAR = Pattern("linear", lambda job, size: linear_ranks(job.source.costs, size, least_rank(job)))
