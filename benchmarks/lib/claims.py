"""What the rows of `allocation.py` and `compress.py` come to: sentences, one table for the README, one picture.

Differences are shares of uniform's gain, as in `allocation_report`.
"""

import itertools
import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.lib import compress_report
from benchmarks.lib.allocation_plan import AMPLE, LONG, SMALL
from benchmarks.lib.allocation_report import NAMES as OTHERS
from benchmarks.lib.allocation_report import (
    cell,
    cells,
    found_pairs,
    found_shares,
    losses,
    percent,
    pooled,
    rivals,
    size_of,
)
from benchmarks.lib.allocation_sizes import CAPACITY, LLM, search_of
from benchmarks.lib.significance import ENOUGH, interval, markdown
from benchmarks.pictures import COLOURS

NAMES = {
    **{"e2e": "E2E", "webnlg": "WebNLG", "novels": "novels", "jnlpba": "JNLPBA", "smollm2": "E2E as a chat"},
    **{"gsm8k": "GSM8K", "sst2": "SST-2", "qnli": "QNLI", "mnli": "MNLI", "e2e_long": "E2E, 4 times the rows"},
}
MODELS = {
    "a GPT-2 of 7 million parameters": ("e2e", "webnlg", "novels", "e2e_long"),
    "MiniLM, 22 million": ("jnlpba", *AMPLE),
    "SmolLM2-135M-Instruct": LLM,
}

WIDEST = 20  # percent, of the forest's axis


def summary(rows: list[dict], compressed: list[dict]) -> str:
    """What holds, on what: a line each for the same size, the size found, and adapters that there are already."""
    lines = [_equal(rows), _others(rows), _found(rows), _cut(compressed)]
    tasks = {row["task"] for row in rows if row["kind"] == "train"}
    seeds = {task: len({r["seed"] for r in rows if (r["kind"], r["task"]) == ("train", task)}) for task in tasks}
    on = [
        f"{model} ({', '.join(f'{NAMES[task]}: {seeds[task]}' for task in own if task in tasks)})"
        for model, own in MODELS.items() if tasks & set(own)
    ]  # fmt: skip
    lines += [f"**Measured on** {'; '.join(on)}, with the number of seeds of each, on CPUs."] if on else []
    return "\n".join(f"- {line}" for line in lines if line)


def _equal(rows: list[dict]) -> str:
    if not (found := cells(rows)):
        return ""
    own, tasks = list(found.values()), dict.fromkeys(task for task, _ in found)
    text = f"**At the same size**, trained from scratch, learned ranks take {pooled(own)} more off the held-out loss "
    text += f"than uniform ranks, over {len(own)} cells of a task and a size, where capacity may be a limit"
    if len(tasks) > 1:
        each = {task: pooled([values for (other, _), values in found.items() if other == task]) for task in tasks}
        text += f": {', '.join(f'{NAMES[task]} {mean}' for task, mean in each.items())}"
    if more := cells(rows, "b"):
        on = " and ".join(dict.fromkeys(NAMES[task] for task, _ in more))
        text += f"; on {on} {pooled(list(more.values()))} where uniform LoRA trains as much longer as the search took"
    return text + "."


def _others(rows: list[dict]) -> str:
    own = {OTHERS[method]: values for (method, account), values in rivals(rows).items() if account == "a"}
    ahead = {name: values for name, values in own.items() if len(values) >= ENOUGH and interval(values)[0] > 0}
    each = ", ".join(f"{name} by {100 * statistics.mean(values):.1f} %" for name, values in ahead.items())
    alike = "".join(f"; as good: {name}" for name in own if name not in ahead)
    return f"**Other ways to spend as much** are behind: {each}{alike}." if each else ""


def _found(rows: list[dict]) -> str:
    gains, pairs = found_shares(rows), found_pairs(rows)
    mean = {task: statistics.mean(gains[task]) for task in pairs if task in gains}
    if not mean:
        return ""
    parts = sorted(statistics.median(r["parameters"] / w["parameters"] for r, w in pairs[task]) for task in mean)
    worst, middle = min(mean, key=mean.get), f"{100 * statistics.median(parts):.0f} %"
    size = f"{100 * parts[0]:.0f} to {100 * parts[-1]:.0f} %" if len(parts) > 1 else middle
    median = f", {middle} in the median of {len(parts)} tasks" if len(parts) > 1 else f" ({NAMES[worst]})"
    searches = [search_of(task, r["seed"], rows) for task in mean for r, _ in pairs[task]]
    decided = [search is None or search["decided"] for search in searches]
    whole = f"{decided.count(False)} of {len(decided)} searches were undecided, and have all of it; "
    whole *= not all(decided)
    return (
        f"**The size that is found** has {size} of the parameters of uniform rank 8{median}; {whole}what it takes off "
        f"the loss differs from rank 8's by {percent(statistics.median(mean.values()))} in their median, at worst by "
        f"{percent(mean[worst])} ({NAMES[worst]})."
    )


def _cut(rows: list[dict]) -> str:
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if (row["kind"], row["task"]) == ("cuts", task)]
        if own:
            part = statistics.mean(row["found"]["parameters"] / row["parameters"] for row in own)
            left = statistics.mean(compress_report.kept(row, row["found"]["loss"]) for row in own)
            found[task] = f"{100 * part:.0f} % of them keep {100 * left:.1f} % ({NAMES[task]})"
    if not found:
        return ""
    return f"**Of an adapter's parameters** and what it takes off the loss, {', '.join(found.values())}: `compress`."


def compressed_table(rows: list[dict], sizes: tuple[str, ...] = ("1/8", "1/4")) -> str:
    """By task and size: what `compress` keeps of the gain, and how far the best of the others is behind."""
    body = []
    for task, size in itertools.product(dict.fromkeys(row["task"] for row in rows), sizes):
        own = [row for row in rows if (row["kind"], row["task"]) == ("cuts", task)]
        kept = {method: compress_report.kept_at(own, method, size) for method in compress_report.METHODS}
        ours = kept.pop("contributions")
        if ours:
            mean = {method: statistics.mean(by.values()) for method, by in kept.items() if by.keys() == ours.keys()}
            rival = max(mean, key=mean.get)
            shown, ahead = compress_report.cell(list(ours.values())), [ours[seed] - kept[rival][seed] for seed in ours]
            body.append([NAMES[task], size, len(ours), shown, compress_report.METHODS[rival], cell(ahead)])
    heads = ["task", "parameters", "seeds", "`compress` keeps of the gain", "best of the others", "ahead of it"]
    return markdown(heads, body) if body else ""


def front(rows: list[dict]) -> str:
    """The README's tables: ranks at the same size, on each task where capacity may be a limit; the size that was found
    where it is ample; and what is to be said of that."""
    body, known = [], [losses(rows, method, "half") for method in ("uniform", "contributions")]
    for (task, size), values in cells(rows).items():
        if size == "half":
            means = [statistics.mean(loss for (name, _), loss in own.items() if name == task) for own in known]
            shown = [f"{mean:.3f}" for mean in means]
            body.append([NAMES[task], size_of(rows, task, size), *shown, cell(values), str(len(values))])
    heads = ["at the same size", "parameters", "uniform", "learned", "difference", "seeds"]
    everywhere = list(cells(rows).values())
    larger = list(cells(rows, sizes=("twice",)).values())
    more = f"; of a larger size {pooled(larger)}" if larger else ""
    mean = (
        f"Mean over {len(everywhere)} cells of these and a smaller size: {pooled(everywhere)}{more}." if body else ""
    )
    table = markdown(heads, body) if body else ""
    return "\n\n".join(filter(None, [table, mean, _others(rows), _ample(rows), _found(rows)]))


def _ample(rows: list[dict]) -> str:
    body = []
    for task, pairs in found_pairs(rows, AMPLE).items():
        part = statistics.median(r["parameters"] / wide["parameters"] for r, wide in pairs)
        scores = (statistics.median(run["score"] for run in own) for own in zip(*pairs))
        found, wide = (f"{score:.1f}" for score in scores)
        body.append([NAMES[task], f"{100 * part:.0f} %", wide, found, str(len(pairs))])
    heads = ["at the size found", "of rank 8's", "median accuracy, rank 8", "learned", "seeds"]
    return markdown(heads, body) if body else ""


def forest(rows: list[dict]) -> Figure:
    """A line a claim: the mean difference to uniform, and its 95 % interval where there are seeds enough.

    Where uniform hardly learns, a share of its gain says little: such a mean is written at the edge.
    """
    groups = {
        title: {f"{NAMES[t]}, {size_of(rows, t, s)}": own for (t, s), own in cells(rows, *which, CAPACITY).items()}
        for title, *which in (
            ("same size, from scratch", "a", (*SMALL, "twice")),
            ("same size, uniform trains longer", "b", SMALL),
        )
    } | {
        "size found, against rank 8": {
            NAMES[t]: v for t, v in found_shares(rows).items() if t in (*CAPACITY, *AMPLE, *LONG)
        },
    }
    groups = {name: own for name, own in groups.items() if own}
    lines = sum(len(own) + 1 for own in groups.values())
    figure = Figure(figsize=(7.2, 0.7 + 0.27 * lines), layout="constrained")
    axis, place, labels = figure.subplots(), 0, []
    for (group, own), colour in zip(groups.items(), COLOURS):
        labels.append((place, group, True))
        for name, values in own.items():
            place += 1
            mean = 100 * statistics.mean(values)
            ends = [100 * end for end in interval(values)] if len(values) >= ENOUGH else [mean, mean]
            *ends, shown = (min(max(value, -WIDEST), WIDEST) for value in (*ends, mean))
            axis.plot(ends, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            marker = "o" if shown == mean else ">" if mean > 0 else "<"
            axis.plot([shown], [place], marker, markersize=5, color=colour)
            if shown != mean:
                offset, side = (-7, "right") if mean > 0 else (7, "left")
                axis.annotate(
                    f"{mean:+.0f} %", (shown, place), (offset, 2), textcoords="offset points", ha=side, va="bottom",
                    fontsize=8, color=colour,
                )  # fmt: skip
            axis.text(1.01, place, f"n = {len(values)}", va="center", fontsize=8, transform=axis.get_yaxis_transform())
            labels.append((place, name, False))
        place += 1.4
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_ylim(place - 0.6, -0.8)
    axis.set_yticks([y for y, _, _ in labels], [text for _, text, _ in labels])
    for tick, (_, _, heading) in zip(axis.get_yticklabels(), labels):
        tick.set_fontweight("bold" if heading else "normal")
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("by how much the held-out loss is smaller, % of uniform's gain over no adapter", x=0.38)
    return figure
