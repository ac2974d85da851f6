"""The tables of what steps and whole runs cost, from the rows of `results/cost.jsonl`.

Whole runs were timed around their process, a seed a round; they are timed by `compare.py --isolate` now.
"""

import numpy as np

from autolora_trainer.report.tables import format_score, format_table

# of steps: {key: (name, digits)}
COLUMNS = {"wall_seconds": ("ms a step", 1), "step_ratio": ("to LoRA", 2), "passes": ("passes", 2)}
COLUMNS |= {"step_per_pass": ("step / passes", 2), "once_steps": ("once, LoRA steps", 1)}
COLUMNS |= {"peak_memory_mb": ("peak MB", 0), "memory_ratio": ("to LoRA", 2)}


def number(value, places=2) -> str:
    return "-" if value is None else f"{value:,.{places}f}"


def steps_table(rows: list[dict]) -> str:
    """Markdown of the rows of one measurement of steps."""
    rows = [{**row, "wall_seconds": row["wall_seconds"] and 1000 * row["wall_seconds"]} for row in rows]
    body = [[row["method"], *(number(row.get(k), places) for k, (_, places) in COLUMNS.items())] for row in rows]
    return format_table(["method", *(name for name, _ in COLUMNS.values())], body, markdown=True)


def unit_of(rows: list[dict]) -> str:
    """The method whose wall time is 1: AdaLoRA, as in Table 5, else the first."""
    return "adalora" if any(row["method"] == "adalora" for row in rows) else rows[0]["method"]


GROWTH = "Wall seconds by training rows (in brackets: the ratio), one run each but for the most rows:"


def growth_table(rows: list[dict]) -> str:
    """Markdown of wall time by training rows: medians of each size, and their ratios to `unit_of(rows)`."""
    methods, against, body = list(dict.fromkeys(row["method"] for row in rows)), unit_of(rows), []
    for count in sorted({row["train_rows"] for row in rows}):
        own = [row for row in rows if row["train_rows"] == count]
        wall = {name: average(own, name, "wall_seconds") for name in methods}
        base = wall[against] or float("nan")
        cells = ["-" if seconds is None else f"{seconds:.1f} ({seconds / base:.2f})" for seconds in wall.values()]
        body.append([f"{count:,}", *cells])
    return format_table(["training rows", *methods], body, markdown=True)


def average(rows: list[dict], method: str, key: str, kind=np.median) -> float | None:
    values = [row[key] for row in rows if row["method"] == method and row[key] is not None]
    return float(kind(values)) if values else None


def total_table(rows: list[dict]) -> str:
    """Markdown of the rows of whole runs: medians over the rounds, and the mean score of their seeds."""
    against, body = unit_of(rows), []
    for name in dict.fromkeys(row["method"] for row in rows):
        wall = average(rows, name, "wall_seconds")
        cells = [format_score(average(rows, name, "score", np.mean)), number(average(rows, name, "adapter_params"), 0)]
        cells += [number(wall, 1), number(wall / average(rows, against, "wall_seconds"))]
        cells += [number(average(rows, name, f"{phase}_seconds"), 1) for phase in ("search", "retrain")]
        body.append([name, *cells, number(average(rows, name, "passes"), 0)])
    header = ["mean score", "adapter parameters", "wall s", f"to {against}", "search s", "retrain s", "passes"]
    return format_table(["method", *header], body, markdown=True)
