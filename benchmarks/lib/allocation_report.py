"""What the rows of `allocation.py` say: at the same size, at the size found, and where it does not help.

Everything is a share of uniform's gain: (loss of uniform less that of the method) / (loss without adapter less that of
uniform), of the same task, size and seed; the gain is the mean over these seeds, as one of them may learn nothing.
"""

import itertools
import statistics

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.lib.allocation_plan import AMPLE, LONG, SMALL
from benchmarks.lib.allocation_sizes import CAPACITY, LLM
from benchmarks.lib.significance import ENOUGH, interval, markdown, p_value
from benchmarks.pictures import LOOKS

NAMES = {
    "shuffled": "the same ranks shuffled",
    "random": "random ranks",
    "mlp": "feed-forward layers only",
    "svd": "cut by singular values",
    "fixed": "α = 1 throughout",
    "count": "the paper's α",
    "adalora": "AdaLoRA",
}
TASKS = CAPACITY + AMPLE
LIMITED = tuple(task for task in CAPACITY if task not in LLM)  # by capacity, perhaps; an LLM has one size
DRAWS = 10_000  # of the bootstrap
FAILED = 0.1  # of the median gain of the seeds: a training that gains less has learned nothing


def losses(rows: list[dict], method: str, size: str, account: str = "a") -> dict[tuple, float]:
    """{(task, seed): held-out loss} of a method at a size."""
    wanted = ("train", method, size, account)
    own = [r for r in rows if (r["kind"], r.get("method"), r.get("size"), r.get("account")) == wanted]
    return {(r["task"], r["seed"]): r["loss"] for r in own}


def without(rows: list[dict]) -> dict[tuple, float]:
    """{(task, seed): loss without adapter}."""
    return {(r["task"], r["seed"]): r["loss"] for r in rows if r["kind"] == "none"}


def shares(
    rows: list[dict], method: str, size: str, account: str = "a", rival: str = "uniform", rival_size: str | None = None
) -> dict[str, list]:
    """{task: shares of uniform's gain by which a method is ahead of its rival, by seed}; uniform and the rival have
    `account`, and the rival's size where that is another."""
    found: dict[str, list] = {}
    none, own = without(rows), losses(rows, method, size)
    unit, others = (losses(rows, name, rival_size or size, account) for name in ("uniform", rival))
    for place in others:
        if place in own and place in none and place in unit:
            found.setdefault(place[0], []).append((others[place] - own[place], none[place] - unit[place]))
    gains = {task: statistics.mean(gain for _, gain in pairs) for task, pairs in found.items()}
    return {task: [ahead / gains[task] for ahead, _ in pairs] for task, pairs in found.items()}


def cells(
    rows: list[dict], account: str = "a", sizes: tuple[str, ...] = SMALL, tasks: tuple[str, ...] = LIMITED
) -> dict[tuple[str, str], list[float]]:
    """{(task, size): shares by seed} at the two small sizes, or others, of tasks where capacity may be a limit: from
    scratch (a), or from where the search ended, against uniform with as many more steps (b)."""
    ours = {"a": "contributions", "b": "warm"}[account]
    found = {size: shares(rows, ours, size, account) for size in sizes}
    return {(task, size): found[size][task] for task in tasks for size in sizes if found[size].get(task)}


def bootstrapped(cells: list[list[float]], seed: int = 0) -> tuple[float, float, float]:
    """(mean over cells, ends of its 95 % interval), by drawing seeds within each cell."""
    generator = np.random.default_rng(seed)
    drawn = [np.asarray(own)[generator.integers(len(own), size=(DRAWS, len(own)))].mean(1) for own in cells]
    low, high = np.percentile(np.mean(drawn, 0), [2.5, 97.5])
    return float(np.mean([np.mean(own) for own in cells])), float(low), float(high)


def pooled(cells: list[list[float]]) -> str:
    """Mean over cells and, where each has three values and more, its interval."""
    mean, low, high = bootstrapped(cells)
    return percent(mean) + (f" ({percent(low)} to {percent(high)})" if min(map(len, cells)) >= ENOUGH else "")


def percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def cell(values: list[float]) -> str:
    """Mean and, of three and more, Student's 95 % interval."""
    if not values:
        return "-"
    if len(values) < ENOUGH:
        return f"{percent(np.mean(values))} (n={len(values)})"
    low, high = interval(values)
    return f"{percent(np.mean(values))} ({percent(low)} to {percent(high)})"


def same_size(rows: list[dict]) -> str:
    """Contributions against uniform, a line a task, a column a size, and all small and all large cells together."""
    body, groups = [], {"small": cells(rows), "large": cells(rows, sizes=("twice",))}
    by_size = {size: shares(rows, "contributions", size) for size in (*SMALL, "twice")}
    for task in CAPACITY:
        own = {size: found.get(task, []) for size, found in by_size.items()}
        if any(own.values()):
            body.append(
                [task, *(f"{size_of(rows, task, size)}: {cell(own[size])}" if own[size] else "-" for size in own)]
            )
    means = [f"{len(own)} {name} cells: {pooled(list(own.values()))}" for name, own in groups.items() if own]
    table = markdown(["task", "small", "middle", "large"], body)
    return f"{table}\n\nMeans (bootstrap) over {', '.join(means)}." if means else ""


def size_of(rows: list[dict], task: str, size: str) -> str:
    """The parameters of uniform ranks at a size."""
    own = [r["parameters"] for r in rows if (r.get("task"), r.get("size"), r.get("method")) == (task, size, "uniform")]
    return f"{own[0]:,}" if own else "-"


def rivals(rows: list[dict]) -> dict[tuple[str, str], list[float]]:
    """{(method, account): shares by which contributions are ahead of it}, over the small cells that both have."""
    found = {}
    for method, account in itertools.product(("uniform", *NAMES), "ab"):
        ours = "warm" if account == "b" else "contributions"  # as the package trains: from where the search ended
        cells = [own for size in SMALL for own in shares(rows, ours, size, account, method).values()]
        if cells and (method, account) != ("uniform", "a"):
            found[method, account] = [value for own in cells for value in own]
    return found


def others(rows: list[dict]) -> str:
    """Contributions against the other methods, with Holm's correction."""
    found = rivals(rows)
    adjusted = holm({name: p_value(own) for name, own in found.items() if len(own) >= ENOUGH})
    p_of = lambda name: (
        "-" if name not in adjusted else "< 0.001" if adjusted[name] < 1e-3 else f"{adjusted[name]:.3f}"
    )
    body = []
    for method in dict.fromkeys(method for method, _ in found):
        pairs = max(len(found.get((method, account), [])) for account in "ab")
        cells = [text for name in ((method, "a"), (method, "b")) for text in (cell(found.get(name, [])), p_of(name))]
        body.append([NAMES.get(method, method), pairs, *cells])
    heads = ["contributions less", "pairs", "the same training", "p (Holm)", "given the search's passes", "p (Holm)"]
    return markdown(heads, body) if body else ""


def holm(values: dict) -> dict:
    """p values corrected for their number (Holm 1979)."""
    adjusted, worst = {}, 0.0
    for position, name in enumerate(sorted(values, key=values.get)):
        worst = max(worst, min(1.0, values[name] * (len(values) - position)))
        adjusted[name] = worst
    return adjusted


def found_pairs(rows: list[dict], tasks=TASKS) -> dict[str, list[tuple[dict, dict]]]:
    """{task: (row of the size found, row of rank 8) by seed} of the tasks that have any."""
    pairs = {}
    for task in tasks:
        own = [r for r in rows if (r["kind"], r.get("task"), r.get("size")) == ("train", task, "found")]
        own = [r for r in own if r["method"] == "warm"]
        wide = {r["seed"]: r for r in rows if (r["kind"], r["task"], r.get("size")) == ("train", task, "rank 8")}
        pairs[task] = [(r, wide[r["seed"]]) for r in own if r["seed"] in wide]
    return {task: own for task, own in pairs.items() if own}


def failed_seeds(rows: list[dict]) -> dict[str, list[int]]:
    """{task: seeds with which uniform rank 8 learned nothing}, beside others with which it did: what is ahead of it
    there is no share of anything."""
    none, found = without(rows), {}
    for (task, seed), loss in losses(rows, "uniform", "rank 8").items():
        if (task, seed) in none:
            found.setdefault(task, {})[seed] = none[task, seed] - loss
    middle = {task: statistics.median(gains.values()) for task, gains in found.items()}
    return {task: [s for s, gain in gains.items() if gain < FAILED * middle[task]] for task, gains in found.items()}


def found_shares(rows: list[dict]) -> dict[str, list[float]]:
    """{task: shares of rank 8's gain by which the size found is ahead of it}, without the seeds with which it learned
    nothing."""
    failed = failed_seeds(rows)
    kept = [r for r in rows if r.get("seed") not in failed.get(r.get("task"), ())]
    return shares(kept, "warm", "found", rival_size="rank 8")


def found_size(rows: list[dict]) -> str:
    """The size found, trained as a run of the package does, against uniform rank 8, a line a task."""
    body, medians, notes = [], [], []
    gains, failed = found_shares(rows), failed_seeds(rows)
    for task, pairs in found_pairs(rows, (*TASKS, *LONG)).items():
        parts = [100 * r["parameters"] / w["parameters"] for r, w in pairs]
        scores = {r["seed"]: r["score"] - w["score"] for r, w in pairs if r["score"] is not None}
        median = statistics.median(parts)
        medians += [median] if task in TASKS else []
        points = f"{np.mean([*scores.values()]):+.2f} {pairs[0][0]['metric']}" if scores else "-"
        spread = f"{min(parts):.0f} to {max(parts):.0f} %"
        shown = [task, len(pairs), f"{median:.0f} %", spread, cell(gains.get(task, [])), points]
        if task in LONG:
            notes.append(f"{task}, of which the plan has {len(pairs)}: {', '.join(shown[2:3] + shown[4:])}.")
            continue
        body.append(shown)
        if failed.get(task):
            rest = [score for seed, score in scores.items() if seed not in failed[task]]
            seeds = ", ".join(map(str, failed[task]))
            note = f"On {task} rank 8 learned nothing with seed {seeds}, which the share leaves out"
            notes.append(note + (f"; without it {np.mean(rest):+.2f} points." if rest else "."))
    if not body:
        return ""
    table = markdown(["task", "seeds", "size, of rank 8's", "by seed", "share of the gain", "score"], body)
    notes.insert(0, f"Median size over the tasks: {statistics.median(medians):.0f} % of rank 8's.")
    return f"{table}\n\n{' '.join(notes)}"


def report(rows: list[dict]) -> str:
    """All tables."""
    parts = {
        "Ranks of the same size: contributions less uniform, shares of uniform's gain": same_size(rows),
        "Other methods at the two small sizes": others(rows),
        "The size found, against uniform rank 8": found_size(rows),
    }
    return "\n\n".join(f"{title}:\n\n{text}" for title, text in parts.items() if text) + "\n"


def by_size(rows: list[dict], method: str, without: tuple[str, ...] = ("found",)) -> tuple[list[float], list[float]]:
    """(mean parameters, mean losses) of a method's trainings, but for those of some sizes."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["method"] == method and row["size"] not in without:
            points.setdefault(row["size"], []).append((row["parameters"], row["loss"]))
    means = sorted(tuple(map(statistics.mean, zip(*own))) for own in points.values())
    return [size for size, _ in means], [loss for _, loss in means]


def picture(rows: list[dict]) -> Figure:
    """Held-out loss against parameters, a panel a task: contributions, uniform and the size found; without a training
    of rank 8 that learned nothing."""
    failed = failed_seeds(rows)
    rows = [r for r in rows if r.get("size") != "rank 8" or r["seed"] not in failed.get(r["task"], ())]
    tasks = [task for task in TASKS if any(r["task"] == task and r["kind"] == "train" for r in rows)]
    figure = Figure(figsize=(3.0 * len(tasks), 3.0), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
        own = [r for r in rows if r["task"] == task and r["kind"] == "train" and r["account"] == "a"]
        for method, (marker, line, colour) in zip(("contributions", "uniform"), LOOKS):
            sizes, means = by_size(own, method)
            axis.plot(sizes, means, marker=marker, linestyle=line, color=colour, label=method, markersize=5)
        found = [r for r in own if (r["method"], r["size"]) == ("warm", "found")]
        axis.plot(
            [r["parameters"] for r in found], [r["loss"] for r in found], "*", color="black", label="size found"
        )  # fmt: skip
        axis.set_xscale("log", base=2)
        ladder = {row["parameters"] for row in own if row["method"] == "uniform" and row["size"] != "found"}
        smaller = [row["parameters"] for row in found if row["parameters"] < 0.8 * min(ladder, default=0)]
        ticks = sorted(ladder | set(sorted(smaller)[:1]))
        axis.set_xticks(ticks, [f"{tick / 1000:.0f}k" for tick in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(MaxNLocator(5))  # the same ticks, whatever the version
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(task)
        axis.set_xlabel("adapter parameters")
    figure.axes[0].set_ylabel("held-out loss, nats a target")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
