"""What the rows of `allocation.py` and `compress.py` come to: sentences, one table for the README, one picture.

Differences are shares of uniform's gain, as in `allocation_report`.
"""

import itertools
import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.lib import compress_report
from benchmarks.lib.allocation_plan import AMPLE, CAPACITY, LLM, LONG, SMALL
from benchmarks.lib.allocation_report import bootstrapped, cell, percent, shares
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


def cells(rows: list[dict], account: str = "a") -> dict[tuple[str, str], list[float]]:
    """{(task, size): shares by seed} at the two small sizes of tasks where capacity may be a limit: from scratch (a),
    or from where the search ended, against uniform with as many more steps (b)."""
    ours = {"a": "contributions", "b": "warm"}[account]
    found = {size: shares(rows, ours, size, account) for size in SMALL}
    return {(task, size): found[size][task] for task in CAPACITY for size in SMALL if found[size].get(task)}


def summary(rows: list[dict], compressed: list[dict]) -> str:
    """What holds, on what: a line each for the same size, the size found, and adapters that there are already."""
    lines = [_equal(rows), _found(rows), _cut(compressed)]
    tasks = {row["task"] for row in rows if row["kind"] == "train"}
    seeds = {task: len({r["seed"] for r in rows if (r["kind"], r["task"]) == ("train", task)}) for task in tasks}
    on = [
        f"{model} ({', '.join(f'{NAMES[task]}: {seeds[task]}' for task in own if task in tasks)})"
        for model, own in MODELS.items() if tasks & set(own)
    ]  # fmt: skip
    lines += [f"**Measured on** {'; '.join(on)}, with the number of seeds of each, on CPUs."] if on else []
    return "\n".join(f"- {line}" for line in lines if line)


def _equal(rows: list[dict]) -> str:
    if not (own := list(cells(rows).values())):
        return ""
    text = f"**At the same size**, trained from scratch, learned ranks take {_pooled(own)} more off the held-out loss "
    text += f"than uniform ranks, over {len(own)} cells of a task and a size, where capacity may be a limit"
    if more := list(cells(rows, "b").values()):
        text += f"; {_pooled(more)} where uniform LoRA trains as much longer as the search took"
    return text + "."


def _pooled(own: list[list[float]]) -> str:
    mean, low, high = bootstrapped(own)
    span = f" ({percent(low)} to {percent(high)})" if min(map(len, own)) >= ENOUGH else ""
    return f"{percent(mean)}{span}"


def _found(rows: list[dict]) -> str:
    parts, gains = {}, shares(rows, "warm", "found", rival_size="rank 8")
    for task, values in gains.items():
        size = lambda method, what: [
            r["parameters"] for r in rows
            if (r["kind"], r["task"], r.get("method"), r.get("size")) == ("train", task, method, what)
        ]  # fmt: skip
        parts[task] = statistics.median(size("warm", "found")) / statistics.median(size("uniform", "rank 8"))
    if not parts:
        return ""
    losses = {task: statistics.mean(values) for task, values in gains.items()}
    worst = min(losses, key=losses.get)
    tasks = f"{len(parts)} tasks" if len(parts) > 1 else NAMES[worst]
    part = f"{100 * statistics.median(parts.values()):.0f} %"
    return (
        f"**The size that is found** has {part} of the parameters of uniform rank 8 in the median of {tasks}; what it "
        f"takes off the loss differs from rank 8's by {percent(statistics.mean(losses.values()))}, at worst by "
        f"{percent(losses[worst])} ({NAMES[worst]})."
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
        kept = {
            method: [
                compress_report.kept(row, cut["loss"])
                for row in own for cut in row["cuts"]
                if (cut["method"], cut["size"]) == (method, size) and cut["loss"] is not None
            ]
            for method in compress_report.METHODS
        }  # fmt: skip
        ours = kept.pop("contributions")
        if ours:
            rival = max((m for m in kept if len(kept[m]) == len(ours)), key=lambda m: statistics.mean(kept[m]))
            ahead = [a - b for a, b in zip(ours, kept[rival])]
            body.append(
                [NAMES[task], size, len(ours), compress_report.cell(ours), compress_report.METHODS[rival], cell(ahead)]
            )
    heads = ["task", "parameters", "seeds", "`compress` keeps of the gain", "best of the others", "ahead of it"]
    return markdown(heads, body) if body else ""


def front(rows: list[dict]) -> str:
    """The README's table, a line for ranks at the same size on each task where capacity may be a limit, and what is to
    be said of the size that was found."""
    body = []
    for (task, size), values in cells(rows).items():
        if size == "half":
            line = [NAMES[task]]
            for method in ("uniform", "contributions"):
                own = [r for r in rows if (r["kind"], r["task"], r.get("account")) == ("train", task, "a")]
                own = [r for r in own if (r["method"], r["size"]) == (method, size)]
                line.append(f"{statistics.mean(r['loss'] for r in own):.3f}")
            body.append([line[0], _of(rows, task, size), *line[1:], cell(values), str(len(values))])
    heads = ["same size", "parameters", "uniform", "learned", "difference", "seeds"]
    return "\n\n".join(filter(None, [markdown(heads, body) if body else "", _found(rows)]))


def forest(rows: list[dict]) -> Figure:
    """A line a claim: the mean difference to uniform, and its 95 % interval where there are seeds enough."""
    groups = {
        "same size, from scratch": {f"{NAMES[t]}, {_of(rows, t, s)}": v for (t, s), v in cells(rows).items()},
        "same size, uniform trains longer": {
            f"{NAMES[t]}, {_of(rows, t, s)}": v for (t, s), v in cells(rows, "b").items()
        },
        "size found, against rank 8": {
            NAMES[t]: v
            for t, v in shares(rows, "warm", "found", rival_size="rank 8").items()
            if t in (*CAPACITY, *AMPLE, *LONG)
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
            axis.plot(ends, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            axis.plot([mean], [place], marker="o", markersize=5, color=colour)
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


def _of(rows: list[dict], task: str, size: str) -> str:
    own = next(r for r in rows if (r.get("task"), r.get("size"), r.get("method")) == (task, size, "uniform"))
    return f"{own['parameters']:,}"
