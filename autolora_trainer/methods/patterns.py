"""Patterns: ranks that no search made, at a given size; what a learned pattern of that size has to beat.

Scale and training are the retrain's, so that only the ranks differ. The size is that of `--ranks FILE`, else
`--rank_budget`, else uniform rank 4.
"""

from collections.abc import Callable

from autolora_trainer.hub.card import CITED_PATTERN, Card
from autolora_trainer.methods.base import Built, Job, Method, Plan, given_pattern
from autolora_trainer.ranks.budget import linear_ranks, parse_budget, random_ranks, uniform_ranks

ShareOut = Callable[[dict[str, int], int], dict[str, int]]  # ({module: cost}, parameters to spend) -> {module: rank}


def pattern_size(job: Job) -> int:
    """Adapter parameters of a pattern baseline."""
    costs = job.source.costs
    if job.ranks:
        job.ranks.check_names(costs, exactly=True)
        return sum(costs[name] * rank for name, rank in job.ranks.ranks.items())
    return parse_budget(job.request.settings.rank_budget or "lora:4", list(costs.values()))


def check_size(job: Job, share_out: ShareOut) -> None:
    """Raise `ValueError` for a size that a pattern cannot have."""
    job.source.refuse_nonlinear()
    size = pattern_size(job)
    if not any(share_out(job.source.costs, size).values()):
        raise ValueError(
            f"--method {job.request.method.name} has {size:,} adapter parameters to share out, and a component takes "
            f"{min(job.source.costs.values()):,}. Raise --rank_budget, e.g. lora:1, or give other --ranks."
        )


def check_first_component(job: Job, size: int) -> None:
    """Raise `ValueError` where the best component may cost more than the size, and no module would get one."""
    most = max(job.source.costs.values())
    if job.request.settings.min_rank == 0 and size < most:
        raise ValueError(
            f"rank_budget {size} has no room for a component of the largest module, {most:,} adapter "
            "parameters, which may be the best. Raise rank_budget."
        )


class SizedMethod(Method):
    """A method with a rank per module, whose size is asked for."""

    reads = frozenset({"ranks", "rank_budget", "lora_target_modules"})
    has_lora = True


class Pattern(SizedMethod):
    """A pattern by its name.

    Args:
        name: the value of `--method`, and the rule in `ranks.json`.
        share_out: job -> `ShareOut`.
    """

    def __init__(self, name: str, share_out: Callable[[Job], ShareOut]):
        self.name, self.share_out = name, share_out

    def prepare(self, job: Job) -> Plan:
        share_out = self.share_out(job)
        check_size(job, share_out)

        def learn() -> Built:
            base = job.source.base_model()
            ranks = given_pattern(job, self.name, share_out(job.source.costs, pattern_size(job)), base)
            return Built(job.build(ranks, base), ranks)

        return learn

    def card(self, folder: str) -> Card:
        return Card(self.name, CITED_PATTERN, ("lora",), cites=True)


def _random(job: Job) -> ShareOut:
    settings, seed = job.request.settings, job.request.training.seed
    capacity = max([settings.initial_rank, *(job.ranks.ranks.values() if job.ranks else ())])
    return lambda costs, size: random_ranks(costs, size, capacity, settings.min_rank, seed)


UNIFORM = Pattern("uniform", lambda job: uniform_ranks)
RANDOM = Pattern("random", _random)
LINEAR = Pattern("linear", lambda job: lambda costs, size: linear_ranks(costs, size, job.request.settings.min_rank))
