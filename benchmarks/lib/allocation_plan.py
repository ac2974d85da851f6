"""Which trainings `allocation.py` runs, in which order: every prefix is a usable table.

A trial is a dict; its row has the same entries and what came out. What a trial needs of other rows is read from those
that are there, and until they are it is not due:

    information     what the rows can teach, of uniform rank 32: the sizes follow
    one_kind        rank 1 on each kind of module, where a size is below rank 1 everywhere: the best kind is uniform's
    search, tuning  the grid of rates, at the middle size (tasks of ample capacity: at the size found)
    none, search, train     of every seed of the final table: no adapter, the search, and each method at each size
"""

import json
from collections.abc import Iterator

from benchmarks.lib.allocation_sizes import CAPACITY, DEFAULT_K, LLM, search_of, search_rank, sizes_of, step_of

AMPLE = ("sst2", "qnli", "mnli")
LONG = {"e2e_long": "e2e"}  # four times the rows and steps; at uniform's rate of the short one, for every method
ON_CPU = tuple(task for task in (*CAPACITY, *AMPLE, *LONG) if task != "gsm8k")  # which decodes too much for one
SEEDS, FEW = (11, 12, 13, 14, 15), 3  # of the final table; an LLM and the lesser methods have the first
WHOLE = ("e2e", "webnlg")  # have account (b), and the other methods at both small sizes; elsewhere at the middle one
DEVELOP = {"stage": "develop", "seed": 1}
SMALL = ("eighth", "half")
RATES = {True: (2e-3, 4e-3, 8e-3), False: (5e-4, 1e-3, 2e-3)}  # of tasks in CAPACITY, of others
GIVEN_RATE = 1e-3  # of an LLM, whose trainings are too long for tuning
NEAR = 0.01  # of the gain: rates are alike, and the smaller one is farther from divergence
PATTERNS = ("shuffled", "random", "mlp", "svd")
OWN_RATE = {"found": "warm", "rank 8": "uniform"}  # sizes whose rates are tuned there, and of which method
TRIALS = ("information", "one_kind", "search", "tuning", "none", "train")  # kinds of trial
RIVALS = ("fixed", "count", "adalora")  # fixed: contributions of a search whose α stays 1


def key(trial: dict) -> str:
    """What tells a trial from others, of a trial or of its row."""
    names = ("kind", "stage", "task", "seed", "label", "method", "size", "account", "k")
    rate = trial["rate"] if trial["kind"] == "tuning" else None  # elsewhere it follows from tuning, and rows tell it
    return json.dumps([*map(trial.get, names), rate])


def left(rows: list[dict]) -> list[dict]:
    """The trials that are due and have no row, each once: the search for all sizes may be that for the size found."""
    done, due = set(map(key, rows)), {key(trial): trial for trial in trials(rows)}
    return [trial for name, trial in due.items() if name not in done]


def trials(rows: list[dict]) -> Iterator[dict]:
    """All trials that are due by the rows that are there, in their order."""
    for task in CAPACITY:
        yield {"kind": "information", **DEVELOP, "task": task}
    for task in CAPACITY + AMPLE:
        yield from _developing(task, rows)
    yield from _compared(SEEDS[:FEW], rows)
    yield from (t for task in WHOLE for t in _others(task, rows))
    yield from _compared(SEEDS[FEW:], rows)
    yield from (t for task in CAPACITY if task not in WHOLE for t in _others(task, rows))


def _compared(seeds: tuple[int, ...], rows: list[dict]) -> Iterator[dict]:
    """The main comparison on all tasks, a seed at a time."""
    for seed in seeds:
        yield from (t for task in (*CAPACITY, *AMPLE, *LONG) for t in _of_seed(task, seed, rows))


def _others(task: str, rows: list[dict]) -> Iterator[dict]:
    """The other methods on a task."""
    for seed in SEEDS:
        methods = PATTERNS + RIVALS if seed in SEEDS[:FEW] else PATTERNS if task in WHOLE else ()
        yield from (t for method in methods for t in _lesser(task, seed, method, rows))


def _developing(task: str, rows: list[dict]) -> Iterator[dict]:
    if task in CAPACITY:
        if (labels := sizes_of(task, rows)) is None:
            return
        for label in dict.fromkeys(label for own in labels.values() if len(own) > 1 for label in own):
            yield {"kind": "one_kind", **DEVELOP, "task": task, "label": label}
        if task in LLM or step_of(task, "half", rows) is None:
            return
    tuning = {"kind": "tuning", **DEVELOP, "task": task}

    def tried(method: str, size: str | None = None):
        at = {} if size is None else {"size": size}
        return ({**tuning, "method": method, **at, "rate": rate} for rate in _grid(task, method, rows, size))

    yield from tried("uniform")
    searches = [
        {"kind": "search", **DEVELOP, "task": task, "k": k}
        for k in dict.fromkeys((search_rank(task, rows), DEFAULT_K))
    ]
    yield from searches
    if all(search_of(task, DEVELOP["seed"], rows, "develop", own["k"]) for own in searches):
        yield from tried("contributions")
        if task in CAPACITY:  # of the size found, which is another than the middle one
            yield from tried("warm", "found")
            yield from tried("uniform", "rank 8")


def _grid(task: str, method: str, rows: list[dict], size: str | None = None) -> list[float]:
    """The rates that tuning tries: beyond an edge of the grid as long as the best is there, twice at most."""
    grid, tried = list(RATES[LONG.get(task, task) in CAPACITY]), tried_rates(task, method, rows, size)
    for _ in range(2):
        if set(grid) <= set(tried):
            best = min(grid, key=tried.get)
            grid += [2 * best] if best == max(grid) else [best / 2] if best == min(grid) else []
    return grid


def _of_seed(task: str, seed: int, rows: list[dict]) -> Iterator[dict]:
    """The main comparison: contributions and uniform at all sizes, and the size found against uniform rank 8."""
    final = final_of(task, seed)
    rates = [rate_of(task, method, rows) for method in ("contributions", "uniform")]
    if task in CAPACITY:
        rates += [rate_of(task, method, rows, size) for size, method in OWN_RATE.items()]
    if None in rates or seed not in seeds_of(task):
        return
    yield {"kind": "none", **final}
    yield {"kind": "search", **final, "k": (wide := search_rank(task, rows))}
    train = {"kind": "train", **final, "account": "a"}
    sizes = ("half",) if task in LLM else (*SMALL, "twice") if task in CAPACITY else ()
    for size in sizes if search_of(task, seed, rows, k=wide) else ():
        if step_of(task, size, rows) is not None:
            for method in ("contributions", "uniform"):
                yield {**train, "method": method, "size": size}
            if task in WHOLE and size in SMALL:
                yield {**train, "method": "uniform", "size": size, "account": "b"}
                yield {**train, "method": "warm", "size": size}
    yield {"kind": "search", **final, "k": DEFAULT_K}
    if search_of(task, seed, rows, k=DEFAULT_K):
        yield {**train, "method": "warm", "size": "found"}
        yield {**train, "method": "uniform", "size": "rank 8"}
        if task not in CAPACITY:
            yield {**train, "method": "uniform", "size": "found"}


def _lesser(task: str, seed: int, method: str, rows: list[dict]) -> Iterator[dict]:
    """Another method: the patterns at the small sizes or the middle one, the rivals at that."""
    if search_of(task, seed, rows, k=search_rank(task, rows)) is None:
        return
    train = {"kind": "train", **final_of(task, seed), "method": method}
    sizes = SMALL if method in PATTERNS and task in WHOLE else ("half",)
    if task in LLM and method != "shuffled":
        return
    if method == "fixed":
        yield (search := {"kind": "search", **final_of(task, seed), "k": search_rank(task, rows), "label": "fixed"})
        if search_of(task, seed, rows, k=search["k"], label="fixed") is None:
            return
    for size in sizes:
        step = step_of(task, size, rows)
        if step is not None and (method != "adalora" or step.isdigit()):  # which has no ranks on one kind of module
            yield {**train, "size": size, "account": "a"}
            if method in ("mlp", "adalora") and task in WHOLE:
                yield {**train, "size": size, "account": "b"}


def seeds_of(task: str) -> tuple[int, ...]:
    """The seeds of the main comparison."""
    return SEEDS[:1] if task in LONG else SEEDS[:FEW] if task in LLM else SEEDS


def final_of(task: str, seed: int) -> dict:
    return {"stage": "final", "seed": seed, "task": task}


# ---- rates


def tried_rates(task: str, method: str, rows: list[dict], size: str | None = None) -> dict[float, float]:
    """{rate: held-out loss} of a method's tuning, at the middle size or at another."""
    wanted = ("tuning", LONG.get(task, task), method, size)
    return {r["rate"]: r["loss"] for r in rows if tuple(map(r.get, ("kind", "task", "method", "size"))) == wanted}


def rate_of(task: str, method: str, rows: list[dict], size: str | None = None) -> float | None:
    """The rate that tuning chose: of contributions for patterns that a search made, else of uniform; where capacity
    may be a limit, at the size found and at rank 8 their own. Of an LLM one that is given, once sizes are known."""
    if task in LLM:
        return GIVEN_RATE if step_of(task, "half", rows) else None
    of_search = method in ("contributions", "warm", "shuffled", "svd", "count", "fixed") and task not in LONG
    source, at = "contributions" if of_search else "uniform", None
    if size in OWN_RATE and task in CAPACITY:
        source, at = OWN_RATE[size], size
    tried = tried_rates(task, source, rows, at)
    return _chosen_rate(tried, task, rows) if set(_grid(task, source, rows, at)) <= set(tried) else None


def _chosen_rate(tried: dict[float, float], task: str, rows: list[dict]) -> float:
    """The smallest rate that loses less than `NEAR` of the gain, where the loss without adapter is known; else the
    best."""
    best, wanted = min(tried.values()), ("information", LONG.get(task, task))
    without = next((r["without"] for r in rows if (r["kind"], r["task"]) == wanted and "without" in r), best)
    return min(rate for rate, loss in tried.items() if loss <= best + NEAR * (without - best))
