"""How large the adapters of the plan are, and which ranks they have: uniform's ladder, the sizes that the information
of a task asks for, and the ranks of every method at a size, from the rows of its search."""

import math
import random

from autolora_trainer.heldout.prefixes import chosen_of
from autolora_trainer.ranks.budget import random_ranks, uniform_ranks
from autolora_trainer.ranks.curve import BITS_PER_PARAMETER
from autolora_trainer.ranks.grid import split_name
from autolora_trainer.search.rules import filled, spread

LLM = ("smollm2", "gsm8k")  # have one size beside that found, three seeds, and of other methods the shuffled ranks
CAPACITY = ("e2e", "webnlg", "jnlpba", "novels", *LLM)  # tasks where capacity may be a limit
FRESH_HEAD = ("jnlpba",)  # of CAPACITY, tasks whose head is drawn anew: sizes that are given are spread over blocks
SIZES = {"eighth": 1 / 8, "half": 1 / 2, "twice": 2.0}  # times the information over 2 bits a parameter
DEFAULT_K = 8  # of the package: the searches that find a size
LADDER = (1, 2, 4, 8, 16)
ORDER = dict.fromkeys(("shuffled", "fixed", "warm"), "contributions")  # whose order a method's ranks come from


def kind_of(name: str) -> str:
    """The projection of a module's name, whatever its block."""
    return split_name(name)[2]


def is_mlp(name: str) -> bool:
    """Whether a module belongs to the feed-forward layer of its block."""
    return "mlp." in name or "intermediate" in name or (name.endswith("output.dense") and "attention" not in name)


def steps_of_ladder(costs: dict[str, int]) -> dict[str, dict[str, int]]:
    """{label: {module: rank}}: rank 1 on one kind of module, then ranks 1 to 16 everywhere."""
    kinds = dict.fromkeys(map(kind_of, costs))
    steps = {f"1 on {kind}": {n: int(kind_of(n) == kind) for n in costs} for kind in kinds}
    return steps | {str(rank): dict.fromkeys(costs, rank) for rank in LADDER}


def parameters(ranks: dict[str, int], costs: dict[str, int]) -> int:
    """Of an adapter of these ranks."""
    return sum(costs[name] * rank for name, rank in ranks.items())


def nearest(costs: dict[str, int], wanted: float) -> list[str]:
    """The step of the ladder nearest to a size; of steps on one kind all within half an octave of it."""
    sizes = {label: parameters(ranks, costs) for label, ranks in steps_of_ladder(costs).items()}
    best = min(sizes, key=lambda label: abs(math.log2(sizes[label] / wanted)))
    if not best.startswith("1 on"):
        return [best]
    return [own for own in sizes if own.startswith("1 on") and abs(math.log2(sizes[own] / sizes[best])) <= 0.5]


def sizes_of(task: str, rows: list[dict]) -> dict[str, list[str]] | None:
    """{size: steps of the ladder that it may be}; None as long as the information is not known."""
    row = next((r for r in rows if (r["kind"], r["task"]) == ("information", task)), None)
    if row is None:
        return None
    return {size: nearest(row["costs"], factor * row["bits"] / BITS_PER_PARAMETER) for size, factor in SIZES.items()}


def step_of(task: str, size: str, rows: list[dict]) -> str | None:
    """The step of the ladder that a size is: of several kinds that with the smallest loss on rows of the training
    file; None as long as that is not known."""
    if (sizes := sizes_of(task, rows)) is None:
        return None
    if len(sizes[size]) == 1:
        return sizes[size][0]
    tried = {r["label"]: r["loss"] for r in rows if (r["kind"], r["task"]) == ("one_kind", task)}
    return min(sizes[size], key=tried.get) if set(sizes[size]) <= set(tried) else None


def search_rank(task: str, rows: list[dict]) -> int:
    """k of the searches that order components: twice the largest rank that the plan asks for, 8 at least."""
    sizes = sizes_of(task, rows) if task in CAPACITY else None
    steps = [step for own in (sizes or {}).values() for step in own]
    return max([DEFAULT_K, *(2 * int(step) for step in steps if step.isdigit())])


def search_of(
    task: str, seed: int, rows: list[dict], stage: str = "final", k: int = DEFAULT_K, label: str | None = None
) -> dict | None:
    """The row of a search."""
    wanted, names = ("search", stage, task, seed, k, label), ("kind", "stage", "task", "seed", "k", "label")
    return next((r for r in rows if tuple(map(r.get, names)) == wanted), None)


def search_for(trial: dict, rows: list[dict]) -> dict | None:
    """The row of the search that a trial reads: of the default rank for the size found, of the plan's for others."""
    k = DEFAULT_K if trial["size"] == "found" else search_rank(trial["task"], rows)
    label = "fixed" if trial["method"] == "fixed" else None
    return search_of(trial["task"], trial["seed"], rows, trial["stage"], k, label)


def ranks_of(trial: dict, costs: dict[str, int], rows: list[dict]) -> dict[str, int]:
    """{module: rank} of a trial that trains an adapter."""
    task, method, size = trial["task"], trial["method"], trial["size"]
    search = search_for(trial, rows)
    if size == "rank 8":
        return dict.fromkeys(costs, 8)
    if size == "found":
        found = search["found"]
        return found if method in ("contributions", "warm") else uniform_ranks(costs, parameters(found, costs))
    uniform = steps_of_ladder(costs)[step_of(task, size, rows)]
    if method == "uniform":
        return uniform
    within = parameters(uniform, costs)
    if method == "mlp":
        return dict.fromkeys(costs, 0) | uniform_ranks({n: c for n, c in costs.items() if is_mlp(n)}, within)
    if method == "random":
        return random_ranks(costs, within, search["k"], 0, trial["seed"])
    ranks = {name: len(own) for name, own in components_of(trial, costs, rows).items()}
    ranks = dict.fromkeys(costs, 0) | ranks
    return shuffled(ranks, trial["seed"]) if method == "shuffled" else ranks


def components_of(trial: dict, costs: dict[str, int], rows: list[dict]) -> dict[str, list[int]]:
    """{module: its components} of a trial whose ranks come from an order."""
    task, method, size = trial["task"], trial["method"], trial["size"]
    search, names = search_for(trial, rows), list(costs)
    rule = ORDER.get(method, method)
    order = [(names[module], j) for module, j in search["orders"][rule]]
    if size == "found":
        return chosen_of(filled(order, costs, parameters(search["found"], costs)))
    within = parameters(steps_of_ladder(costs)[step_of(task, size, rows)], costs)
    order = spread(order) if rule == "contributions" and task in FRESH_HEAD else order
    return chosen_of(filled(order, costs, within))


def shuffled(ranks: dict[str, int], seed: int) -> dict[str, int]:
    """The same ranks, permuted among the modules of every kind: of the same size."""
    generator, found = random.Random(seed), dict(ranks)
    for kind in dict.fromkeys(map(kind_of, ranks)):
        names = [name for name in ranks if kind_of(name) == kind]
        values = [ranks[name] for name in names]
        generator.shuffle(values)
        found.update(zip(names, values))
    return found
