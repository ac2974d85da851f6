"""What a grid of ranks tries: one rank for each projection, the same in every block, within a budget."""

import dataclasses
import itertools
import random

from autolora_trainer.ranks.budget import parse_budget
from autolora_trainer.ranks.grid import depths, split_block

LEVELS = (1, 2, 4, 8)
SAMPLERS = ("grid", "random", "tpe")
LISTED = 65_536  # configurations in memory, at most


def groups(names) -> dict[str, list[str]]:
    """{label: modules that share a rank}: the projections of a model, or the halves of the only one.

    Example:
        >>> groups(["0.q", "0.v", "1.q", "1.v"])
        {'q': ['0.q', '1.q'], 'v': ['0.v', '1.v']}
        >>> groups(["0.q", "1.q"])
        {'lower': ['0.q'], 'upper': ['1.q']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split_block(name)[1], []).append(name)
    if len(found) > 1:
        tails = {label: label.rpartition(".")[2] for label in found}
        unique = len(set(tails.values())) == len(tails)
        return {tails[label] if unique else label: modules for label, modules in found.items()}
    places = depths(names)
    halves: dict[str, list[str]] = {}
    for name, place in zip(names, places):
        halves.setdefault("upper" if 2 * place > max(places) else "lower", []).append(name)
    return halves


def configurations(sizes: dict[str, int], levels, budget: int | None = None, seed: int = 0) -> list[dict[str, int]]:
    """Every {group: rank} with ranks from `levels` that does not exceed the budget, in order; where there are more
    than `LISTED`, the least and some that are drawn.

    Args:
        sizes: {group: adapter parameters of rank 1 in all its modules}.
    Example:
        >>> configurations({"q": 10, "v": 10}, (1, 2), budget=30)
        [{'q': 1, 'v': 1}, {'q': 1, 'v': 2}, {'q': 2, 'v': 1}]
    """
    if len(levels) ** len(sizes) <= LISTED:
        every = itertools.product(levels, repeat=len(sizes))
    else:
        generator = random.Random(seed)
        every = [tuple(generator.choice(levels) for _ in sizes) for _ in range(LISTED)]
        every = sorted({(min(levels),) * len(sizes), *every})
    found = (dict(zip(sizes, ranks)) for ranks in every)
    return [config for config in found if budget is None or parameters(config, sizes) <= budget]


def parameters(config: dict[str, int], sizes: dict[str, int]) -> int:
    return sum(rank * sizes[group] for group, rank in config.items())


def some(items: list, count: int, seed: int) -> list:
    """At most `count` of the items, drawn by the seed, in their order.

    Example:
        >>> some([1, 2], 16, seed=0), len(some(list(range(100)), 16, seed=0))
        ([1, 2], 16)
    """
    if len(items) <= count:
        return items
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]


@dataclasses.dataclass
class Space:
    """What a run searches in: {module: group}, {group: parameters of rank 1}, levels, budget."""

    groups: dict[str, str]
    sizes: dict[str, int]
    levels: tuple[int, ...]
    budget: int | None

    @classmethod
    def of(cls, settings, costs: dict[str, int]) -> "Space":
        """From a run's settings and {module: parameters of one component}."""
        grouped = groups(list(costs))
        members = {name: group for group, names in grouped.items() for name in names}
        sizes = {group: sum(costs[name] for name in names) for group, names in grouped.items()}
        levels = LEVELS if sampler(settings) == "grid" else tuple(range(1, settings.initial_rank + 1))
        budget = None if settings.size is None else parse_budget(settings.size, list(costs.values()))
        return cls({name: members[name] for name in costs}, sizes, levels, budget)

    def fits(self, config) -> bool:
        return self.budget is None or parameters(config, self.sizes) <= self.budget

    def ranks(self, config: dict[str, int]) -> dict[str, int]:
        return {name: config[group] for name, group in self.groups.items()}


def sampler(settings) -> str:
    return settings.sampler or "grid"


def described(config: dict[str, int]) -> str:
    return ", ".join(f"{group} {rank}" for group, rank in config.items())
