"""Which trainings `allocation.py` runs, in which order: every prefix is a usable table.

Rows are dicts with `kind`: `information` (uniform rank 32 and no adapter: the sizes follow), `one_kind` (rank 1 on
each kind of module, where the smallest size is below rank 1 everywhere), `tuning` (the grid of rates), `search`,
`train`. What a row needs of others is read from the rows that are there; until they are there it is not due.
"""

import math
import random
from collections.abc import Iterator

from autolora_trainer.ranks.budget import random_ranks, uniform_ranks
from autolora_trainer.ranks.grid import split_name
from autolora_trainer.search.rules import prefix_within

SIZES = {"eighth": 1 / 8, "half": 1 / 2, "twice": 2.0}  # times the information over 2 bits a parameter
BITS = 2.0  # that a LoRA parameter stores (Allen-Zhu and Li 2024)
SMALL = ("eighth", "half")
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
LADDER = (1, 2, 4, 8, 16)


def kind_of(name: str) -> str:
    """The projection of a module's name, whatever its block."""
    return split_name(name)[2]


def is_mlp(name: str) -> bool:
    return any(part in name for part in ("mlp.", "c_fc", "intermediate", "gate_proj", "up_proj", "down_proj")) or (
        name.endswith("output.dense") and "attention" not in name
    )


def steps_of_ladder(costs: dict[str, int]) -> dict[str, dict[str, int]]:
    """{label: {module: rank}}: rank 1 on one kind of module, then ranks 1 to 16 everywhere."""
    kinds = dict.fromkeys(map(kind_of, costs))
    steps = {f"1 on {kind}": {n: 1 for n in costs if kind_of(n) == kind} for kind in kinds}
    return steps | {str(rank): dict.fromkeys(costs, rank) for rank in LADDER}


def parameters(ranks: dict[str, int], costs: dict[str, int]) -> int:
    return sum(costs[name] * rank for name, rank in ranks.items())


def nearest(costs: dict[str, int], wanted: float) -> list[str]:
    """The step of the ladder nearest to a size; of steps on one kind all within half an octave of it."""
    sizes = {label: parameters(ranks, costs) for label, ranks in steps_of_ladder(costs).items()}
    distance = {label: abs(math.log2(size / wanted)) for label, size in sizes.items()}
    best = min(distance, key=distance.get)
    if not best.startswith("1 on"):
        return [best]
    close = [
        label for label in sizes if label.startswith("1 on") and abs(math.log2(sizes[label] / sizes[best])) <= 0.5
    ]
    return close


def pattern(method: str, size: int, costs: dict[str, int], search: dict | None, uniform: dict, seed: int) -> dict:
    """{module: rank} of a method within `size` parameters.

    Args:
        search: the row of the search of this task and seed: `order`, `sigma_order`, lists of (module, j).
        uniform: the ranks of the ladder's step.
    """
    if method in ("uniform", "adalora"):
        return uniform
    if method == "mlp":
        own = {name: cost for name, cost in costs.items() if is_mlp(name)}
        return uniform_ranks(own, size)
    if method == "random":
        return random_ranks(costs, size, search["k"], 0, seed)
    order = [tuple(component) for component in search["sigma_order" if method == "svd" else "order"]]
    kept = order[: prefix_within(order, costs, size)]
    ranks = {name: sum(own == name for own, _ in kept) for name in costs}
    if method == "shuffled":
        generator = random.Random(seed)
        for kind in dict.fromkeys(map(kind_of, costs)):
            names = [name for name in costs if kind_of(name) == kind]
            values = [ranks[name] for name in names]
            generator.shuffle(values)
            ranks.update(zip(names, values))
    return ranks


def seeds_of(plan: dict, method: str, task: str, size: str) -> int:
    """How many of the plan's seeds a method has."""
    if method in ("contributions", "uniform"):
        return plan["seeds"]
    if method in ("adaptive", "count", "adalora"):
        return plan["few"] if size == "half" else 0
    if size not in SMALL:
        return 0
    return plan["seeds"] if task in plan["capacity"] else plan["few"]


def trials(plan: dict, rows: list[dict]) -> Iterator[dict]:
    """All rows that the plan has, as far as their tasks' earlier rows tell them."""
    tasks, first = plan["tasks"], plan["first_seed"]
    for task in tasks:
        yield {"kind": "information", "task": task, "seed": 1}
    for task in tasks:
        if (sizes := sizes_of(task, rows)) is not None:
            for label in {label for labels in sizes.values() if len(labels) > 1 for label in labels}:
                yield {"kind": "one_kind", "task": task, "seed": 1, "label": label}
        for method in ("uniform", "contributions", "adalora"):
            yield from ({"kind": "tuning", "task": task, "seed": 1, "method": method, "rate": r} for r in RATES)
        yield {"kind": "search", "task": task, "seed": 1}
    for index in range(plan["seeds"]):
        for task in tasks:
            yield {"kind": "search", "task": task, "seed": first + index}
    for methods in (
        ("contributions", "uniform"),
        ("shuffled", "random", "mlp", "svd"),
        ("adalora", "adaptive", "count"),
    ):
        for index in range(plan["seeds"]):
            for size in SIZES:
                for task in tasks:
                    for method in methods:
                        if index < seeds_of(plan, method, task, size):
                            trial = {
                                "kind": "train",
                                "task": task,
                                "seed": first + index,
                                "size": size,
                                "method": method,
                            }
                            yield {**trial, "account": "a"}
                            if size in SMALL and method in ("uniform", "mlp", "adalora") and task in plan["capacity"]:
                                yield {**trial, "account": "b"}


def sizes_of(task: str, rows: list[dict]) -> dict[str, list[str]] | None:
    """{size: steps of the ladder that it may be}; None as long as the information is not known."""
    row = next((r for r in rows if (r["kind"], r["task"]) == ("information", task)), None)
    if row is None:
        return None
    return {size: nearest(row["costs"], factor * row["bits"] / BITS) for size, factor in SIZES.items()}


def step_of(task: str, size: str, rows: list[dict]) -> str | None:
    """The step of the ladder that a size is: of several kinds that with the smallest loss on rows of the training
    file; None as long as that is not known."""
    if (sizes := sizes_of(task, rows)) is None:
        return None
    if len(sizes[size]) == 1:
        return sizes[size][0]
    tried = {r["label"]: r["loss"] for r in rows if (r["kind"], r["task"]) == ("one_kind", task)}
    return min(sizes[size], key=tried.get) if set(sizes[size]) <= set(tried) else None


def rate_of(task: str, method: str, rows: list[dict]) -> float | None:
    """The rate that tuning chose for a method: its own for contributions, uniform and AdaLoRA, of contributions for
    patterns that a search made, else that of uniform."""
    source = {"shuffled": "contributions", "svd": "contributions", "adaptive": "contributions"}.get(method, method)
    source = source if source in ("uniform", "contributions", "adalora") else "uniform"
    tried = {r["rate"]: r["loss"] for r in rows if (r["kind"], r["task"], r.get("method")) == ("tuning", task, source)}
    return min(tried, key=tried.get) if set(RATES) <= set(tried) else None
