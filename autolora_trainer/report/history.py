"""The way of the selection variables during a search, as a picture."""

import csv
import math
import os

import numpy as np

from autolora_trainer.drawing import ACCENT, FAINT, INK, MUTED, RULE, canvas, pixels, save_figure, style
from autolora_trainer.ranks.grid import row_labels, split_name

HISTORY_FILE = "selection_history.csv"
HISTORY_PANELS = 48


def save_selection_history(csv_path: str | os.PathLike, png_path: str | os.PathLike) -> str:
    """Draw the trajectories of α during the search, a panel a module (48 at most, evenly chosen), on shared axes.

    Components that end above the value they started from are drawn in colour, the others in grey.

    Args:
        csv_path: `selection_history.csv` with the columns step, module, alpha_1 … alpha_k.
    Raises:
        ValueError: if the file holds no such history.
    """
    history = _read_history(csv_path)
    with style():
        figure = _draw_history(history)
        save_figure(figure, png_path, dpi=150)
    return os.fspath(png_path)


def selection_history_pixels(csv_path: str | os.PathLike) -> np.ndarray:
    """The picture of `save_selection_history` as (height, width, 3) bytes, for trackers."""
    with style():
        return pixels(_draw_history(_read_history(csv_path)))


def _read_history(path) -> dict[str, tuple[list[int], list[list[float]]]]:
    """{module: (S steps, S rows of k values)}"""
    history: dict[str, tuple[list[int], list[list[float]]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header[:2] != ["step", "module"] or len(header) < 3:
            raise ValueError(f"{path} is not a selection history: its first line must be step,module,alpha_1,…")
        for number, line in enumerate(lines, start=2):
            try:
                step, values = int(line[0]), [float(value) for value in line[2:]]
            except (ValueError, IndexError):
                values = []
            if len(values) != len(header) - 2:
                needed = f"step,module and {len(header) - 2} numbers"
                raise ValueError(f"{path}, line {number}: expected {needed}, got {','.join(line)[:80]!r}.")
            steps, rows = history.setdefault(line[1], ([], []))
            steps.append(step)
            rows.append(values)
    if not history:
        raise ValueError(f"{path} holds no rows, so there is nothing to draw. Did the search take a step?")
    return history


def _draw_history(history):
    from matplotlib.collections import LineCollection

    shown, titles, across = _panels(history)
    down = -(-len(shown) // across)
    left, top, bottom, edge, gap_x, gap_y = 0.62, 0.8, 0.42, 0.12, 0.16, 0.34
    panel_width, panel_height = max(1.45, 4.4 / across - gap_x), 0.92
    width = left + across * (panel_width + gap_x) - gap_x + edge
    height = top + down * (panel_height + gap_y) - gap_y + bottom
    figure, axes, write = canvas(width, height)
    spot, step_ticks, value_ticks = _scale([history[name] for name in shown], panel_width - 0.12, panel_height - 0.08)

    frames, starts, shrank, grew = [], [], [], []
    for place, name in enumerate(shown):
        steps, rows = history[name]
        x0 = left + place % across * (panel_width + gap_x)
        y0 = top + place // across * (panel_height + gap_y) + panel_height  # the panel's lower left corner
        frames.append([(x0, y0 - panel_height), (x0, y0), (x0 + panel_width, y0)])
        for trajectory in zip(*rows):
            kind = grew if trajectory[-1] > trajectory[0] else shrank
            kind.append([spot(x0, y0, step, value) for step, value in zip(steps, trajectory)])
        if max(rows[0]) - min(rows[0]) < 1e-6:  # α starts uniform: with softmax that is 1/k, the paper's threshold
            y = spot(x0, y0, 0, rows[0][0])[1]
            starts.append([(x0, y), (x0 + panel_width, y)])
        write(x0 + panel_width / 2, y0 - panel_height - 0.1, titles[name], 8, INK, va="center")
        for tick, text in step_ticks:
            x = spot(x0, y0, tick, 0)[0]
            frames.append([(x, y0), (x, y0 + 0.025)])
            if place + across >= len(shown):  # nothing below
                write(x, y0 + 0.11, text, 7, FAINT, va="center")
        for tick, text in value_ticks:
            y = spot(x0, y0, 0, tick)[1]
            frames.append([(x0, y), (x0 - 0.025, y)])
            if place % across == 0:
                write(x0 - 0.06, y, text, 7, FAINT, ha="right")
    styles = (RULE, 0.8, "solid"), (INK, 0.7, [(0, (4, 4))]), (MUTED, 1.1, "solid"), (ACCENT, 1.1, "solid")
    for lines, (colour, thick, dashes) in zip((frames, starts, shrank, grew), styles):
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=thick, linestyles=dashes), autolim=False)

    some = "" if len(shown) == len(history) else f", {len(shown)} of {len(history)} modules"
    head = f"Selection variables α during the search{some}"
    write(0.1, 0.2, head, 11, INK, ha="left", va="center", fontweight="bold")
    write(0.1, 0.42, "blue: ends above its start; grey: below; dashed: the start", 8.5, FAINT, ha="left", va="center")
    write((left + width - edge) / 2, height - 0.12, "step", 9, FAINT, va="center")
    write(0.16, (top + height - bottom) / 2, "α", 10, FAINT, va="center")
    return figure


def _panels(history) -> tuple[list[str], dict[str, str], int]:
    """The modules that are shown, a projection after the other, their titles, and how many stand side by side."""
    places = {name: split_name(name) for name in history}
    labels = row_labels(list(dict.fromkeys((stack, rest) for stack, _, rest in places.values())))
    row_of = {row: i for i, row in enumerate(labels)}
    ordered = sorted(history, key=lambda name: (row_of[places[name][0], places[name][2]], places[name][1] or 0))
    count = min(len(ordered), HISTORY_PANELS)
    shown = [ordered[i * len(ordered) // count] for i in range(count)]
    titles = {name: labels[stack, rest] for name, (stack, _, rest) in places.items()}
    titles |= {name: f"{titles[name]} {block}" for name, (_, block, _) in places.items() if block is not None}
    return shown, titles, _panels_across(count, len(labels))


def _scale(histories, width: float, height: float):
    """(spot, ticks of the steps, ticks of the values) on one scale for all panels, in inches of a panel:
    spot(x0, y0, step, value) is where a value stands in the panel with this lower left corner."""
    steps = [step for steps, _ in histories for step in steps]
    values = [value for _, rows in histories for row in rows for value in row if math.isfinite(value)] or [1]
    first, last = min(steps), max(steps)
    lowest, highest = min(0.0, *values), max(values)
    per_step, per_value = width / max(last - first, 1), height / max(highest - lowest, 1e-12)

    def spot(x0: float, y0: float, step: float, value: float) -> tuple[float, float]:
        return x0 + 0.04 + (step - first) * per_step, y0 - 0.04 - (value - lowest) * per_value

    return spot, _ticks(first, last, integer=True), _ticks(lowest, highest)


def _ticks(low: float, high: float, integer: bool = False) -> list[tuple[float, str]]:
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(3, steps=[1, 2, 5, 10], integer=integer)
    found = [round(float(tick), 10) for tick in locator.tick_values(low, high)]
    return [(tick, f"{tick:g}") for tick in found if low <= tick <= high]


def _panels_across(panels: int, projections: int) -> int:
    """Panels side by side: whole projections in a row where up to eight blocks allow it, else an even split."""
    blocks = -(-panels // projections)
    for across in range(min(8, blocks), 3, -1):
        if blocks % across == 0:
            return across
    return min(8, panels, max(blocks, 4))
