"""The two tables of the README's section Measured, from the committed rows; for report.py."""

import statistics

import numpy as np

from benchmarks.lib.committed import COMPARED, plan_of, reported, rows_of
from benchmarks.lib.significance import ENOUGH, interval, markdown, middle_cells, paired_differences
from benchmarks.lib.words import WORDS

METHODS = WORDS["readme methods"]
RANK = 2  # of the second table


def difference(values) -> str:
    """Mean and interval to a tenth of a point; bold where the interval leaves out zero."""
    if len(values) < ENOUGH:
        return "-"
    low, high = interval(values)
    mean = f"{np.mean(values):+.1f}"
    return f"{f'**{mean}**' if low > 0 or high < 0 else mean} ({low:+.1f} to {high:+.1f})"


def by_task() -> str:
    """A line a task: means over its seeds, and AutoLoRA less uniform LoRA of its size, paired by seed."""
    body = []
    for name in COMPARED:
        rows = reported(rows_of(name))
        for task in plan_of(f"plans/{name}")["tasks"]:
            own = [row for row in rows if row["task"] == task]
            scores = {m: [row["score"] for row in own if row["method"] == m] for m in METHODS}
            if scores["autolora"]:
                cells = [f"{statistics.mean(v):.1f}" if v else "" for v in scores.values()]
                gain = difference(paired_differences(own, "autolora", "uniform", None))
                body.append([WORDS["readme tasks"][task], len(scores["autolora"]), *cells, gain])
        if name == "core" and body:
            gains = paired_differences(rows, "autolora", "uniform", None)
            body.append(["the six together", len(gains), *([""] * len(METHODS)), difference(gains)])
    return markdown(["", "seeds", *METHODS.values(), "AutoLoRA less uniform"], body)


def by_cause() -> str:
    """Differences at one size, of the front's runs: which part of the method gives what."""
    rows, body = rows_of("front"), []
    for label, (method, rival, rank) in WORDS["readme causes"].items():
        values = paired_differences(rows, method, rival, RANK, rank)
        if len(values) >= ENOUGH:
            body.append([label, difference(values), *middle_cells(values, digits=1)])
    return markdown(["", "mean (95 % interval)", "median", "ahead in"], body)
