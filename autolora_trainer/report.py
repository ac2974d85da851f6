"""What a finished run shows: the rank grid (Figure 3 of the paper), the history of α, cost and comparison tables.

Everything here is a function of `LearnedRanks`, of a file the search wrote or of plain numbers; nothing here trains.
"""

import csv
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np

from autolora_trainer.ranks import LearnedRanks

HEATMAP_FILES = ("rank_heatmap.png", "rank_heatmap.svg")
# `MaxLoRARanks` of vLLM's vllm/config/lora.py. It has 1 too, which older releases refuse; 8 serves rank 1 as well.
SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
TEXT_WIDTH = 100
HEATMAP_COLUMNS = 24  # blocks side by side; a model with more gets further bands, so that 800 pixels stay legible
HISTORY_PANELS = 48
INK, FAINT, RULE = "#1f2933", "#5f6b7a", "#c3cad3"


# ---------------------------------------------------------------- the grid


def rank_grid(ranks: LearnedRanks) -> tuple[list[str], list[str], list[list[int | None]]]:
    """Blocks across, projections down, as in Figure 3.

    A module's block is the first integer among the dotted parts of its name. What follows it names the projection, cut
    to the shortest trailing part that no other projection ends with. Stacks that number their blocks separately (the
    encoder and the decoder of T5) keep separate rows, labelled with the part of the name that tells them apart.

    Returns:
        (R row labels in the order of `ranks.modules`, C column labels sorted by number, R rows of C ranks). `None`
        stands where the model has no such module. Modules without a block number share a last column, "-".
    Example:
        >>> from autolora_trainer.ranks import ModuleRank
        >>> rank_grid(LearnedRanks({f"layer.{i}.attention.query": ModuleRank(r) for i, r in ((10, 3), (2, 1))}))
        (['query'], ['2', '10'], [[1, 3]])
    """
    places = {name: _split_name(name) for name in ranks.modules}
    labels = _row_labels(list(dict.fromkeys((stack, rest) for stack, _, rest in places.values())))
    blocks = sorted({block for _, block, _ in places.values() if block is not None})
    if any(block is None for _, block, _ in places.values()):
        blocks.append(None)
    cells = {((stack, rest), block): ranks.modules[name].rank for name, (stack, block, rest) in places.items()}
    grid = [[cells.get((row, block)) for block in blocks] for row in labels]
    return list(labels.values()), ["-" if block is None else str(block) for block in blocks], grid


def _split_name(name: str) -> tuple[str | None, int | None, str]:
    """`encoder.layer.3.attn.query` -> ("encoder.layer", 3, "attn.query"); without a number (None, None, name)."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            # a numbered module without further parts (nn.Sequential) goes by the name of its container
            return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :]) or (parts[i - 1] if i else "module")
    return None, None, name


def _row_labels(rows: list[tuple[str | None, str]]) -> dict[tuple[str | None, str], str]:
    """A short label, different from all others, for every (stack, rest of the name)."""
    tails = _shortest_tails([rest for _, rest in rows])
    stacks = _stack_labels([stack for stack, _ in rows if stack is not None])
    labels = {row: " ".join(filter(None, (stacks.get(row[0]), tails[row[1]]))) for row in rows}
    taken = list(labels.values())
    return {row: text if taken.count(text) == 1 else ".*.".join(filter(None, row)) for row, text in labels.items()}


def _shortest_tails(names: Iterable[str]) -> dict[str, str]:
    split = {name: name.split(".") for name in dict.fromkeys(names)}
    tails = {}
    for name, parts in split.items():
        others = [other for other in split.values() if other is not parts]
        sizes = (n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others))
        tails[name] = ".".join(parts[-next(sizes, len(parts)) :])
    return tails


def _stack_labels(stacks: Iterable[str]) -> dict[str, str]:
    """`encoder.block`, `decoder.block` -> encoder, decoder. A single stack needs no label."""
    split = {stack: stack.split(".") for stack in dict.fromkeys(stacks)}
    if len(split) < 2:
        return {}
    shared = len(os.path.commonprefix(list(split.values())))
    labels = {}
    for stack, parts in split.items():
        others = [other[shared:] for other in split.values() if other is not parts]
        own = parts[shared:]
        size = next((n for n in range(1, len(own)) if all(o[:n] != own[:n] for o in others)), len(own))
        labels[stack] = ".".join(own[:size]) or parts[-1]
    return labels


def _summary(ranks: LearnedRanks) -> str:
    dropped = sum(rank == 0 for rank in ranks.ranks.values())
    count = len(ranks.modules)
    return (
        f"total rank {ranks.total_rank} in {count} module{'s' * (count != 1)}, "
        f"{dropped or 'none'} of {'them' if count != 1 else 'it'} at rank 0"
    )


def format_rank_table(ranks: LearnedRanks) -> str:
    """The grid as plain text, at most 100 columns wide (more blocks continue below), and a line with the totals.

    Example:
        >>> from autolora_trainer.ranks import ModuleRank
        >>> print(format_rank_table(LearnedRanks({f"h.{i}.attn.q": ModuleRank(i) for i in range(3)})))
        block  0  1  2
        q      0  1  2
        total rank 3 in 3 modules, 1 of them at rank 0
    """
    rows, columns, grid = rank_grid(ranks)
    label_width = max(map(len, ["block", *rows]))
    texts = [["." if rank is None else str(rank) for rank in row] for row in grid]
    width = max((len(text) for row in [columns, *texts] for text in row), default=1)
    room = TEXT_WIDTH - label_width
    close = (width + 1) * len(columns) <= room < (width + 2) * len(columns)  # 24 blocks fit if set closer
    width += 1 if close else 2
    bands = []
    for part in _bands(len(columns), max(1, room // width)):
        used = [(label, row[part]) for label, row in zip(rows, texts) if set(row[part]) != {"."}]
        lines = [("block", columns[part]), *used]
        bands.append("\n".join(label.ljust(label_width) + "".join(t.rjust(width) for t in r) for label, r in lines))
    return "\n\n".join(bands) + "\n" + _summary(ranks)


def _bands(count: int, most: int) -> list[slice]:
    """`count` columns in the fewest bands of at most `most`, and those as even as can be."""
    bands = -(-count // most)
    size = -(-count // max(bands, 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]


def lora_rank_for_servers(ranks: LearnedRanks) -> int:
    """The value of vLLM's `--max-lora-rank` that serves this adapter: its default, 16, refuses larger ranks.

    vLLM takes the values of `MaxLoRARanks` in vllm/config/lora.py only: 1, 8, 16, 32, 64, 128, 256, 320, 512.

    Raises:
        ValueError: if a rank is beyond 512, which vLLM cannot serve.
    Example:
        >>> from autolora_trainer.ranks import ModuleRank
        >>> lora_rank_for_servers(LearnedRanks({"q": ModuleRank(9)}))
        16
    """
    largest = max(ranks.module_ranks.values(), default=0)
    for allowed in SERVER_RANKS:
        if largest <= allowed:
            return allowed
    raise ValueError(f"vLLM serves LoRA up to rank {SERVER_RANKS[-1]}, got rank {largest}. Lower initial_rank.")


# ---------------------------------------------------------------- pictures


def save_rank_heatmap(ranks: LearnedRanks, folder: str | os.PathLike, title: str | None = None) -> tuple[str, str]:
    """Write `rank_heatmap.png` and `rank_heatmap.svg`: Figure 3, with the rank written in each cell.

    The same ranks give the same bytes. Blocks beyond 24 continue in further bands.

    Args:
        ranks: what to draw.
        folder: where to write; it must exist.
        title: Default: the base model's name.
    Returns:
        The two paths.
    """
    with _style():
        figure = _heatmap_figure(ranks, title)
        paths = tuple(os.path.join(folder, name) for name in HEATMAP_FILES)
        _save_figure(figure, paths[0], dpi=200)
        _save_figure(figure, paths[1], metadata={"Date": None, "Creator": None})
    return paths


def rank_heatmap_pixels(ranks: LearnedRanks) -> np.ndarray:
    """The picture of `save_rank_heatmap` as (height, width, 3) bytes, for trackers."""
    with _style():
        return _pixels(_heatmap_figure(ranks))


def _heatmap_figure(ranks: LearnedRanks, title: str | None = None):
    if title is None:
        title = " ".join(filter(None, ("LoRA ranks", _shown_model(ranks))))
    return _draw_heatmap(*rank_grid(ranks), " ".join(title.split()), _summary(ranks))


def _draw_heatmap(rows, columns, grid, title, subtitle):
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    # a row that a band has no module for is left out of that band
    bands = [
        (range(part.start, part.stop), [i for i, row in enumerate(grid) if set(row[part]) != {None}])
        for part in _bands(len(columns), HEATMAP_COLUMNS)
    ]
    across = max([len(part) for part, _ in bands], default=1)
    # All measures are inches, so that cells and text keep their size whatever the number of rows.
    title = title if len(title) <= 64 else title[:63] + "…"
    edge, top, head, between = 0.1, 0.56, 0.25, 0.14
    left = edge + 0.1 + 0.082 * max(map(len, [*rows, "block"]))
    cell_width = max(0.26, min(0.62, (8.0 - left - edge) / across))
    cell_height = min(0.42, max(0.26, cell_width * 0.8))
    width = max(left + cell_width * across + edge, 0.12 * len(title) + 2 * edge, 0.075 * len(subtitle) + 2 * edge)
    height = top + sum(head + cell_height * len(used) for _, used in bands) + between * (len(bands) - 1) + edge
    text_size = min(12.5, 30 * cell_width, 32 * cell_height)
    largest = max([rank for row in grid for rank in row if rank is not None], default=0)
    # YlGnBu (ColorBrewer, safe for colour-blind readers): luminance falls all the way, so it also reads in grey. Its
    # palest end is cut off; rank 0 gets a neutral grey instead, as such a module is left out of the adapter.
    colours = ListedColormap(colormaps["YlGnBu"]([0.14 + 0.83 * i / 255 for i in range(256)]))

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    def write(x, y, text, size, colour, ha="center", **more):
        axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va="center_baseline", parse_math=False, **more)

    write(edge, 0.17, title, 12.5, INK, ha="left", fontweight="bold")
    write(edge, 0.395, subtitle, 9, FAINT, ha="left")
    y = top
    for part, used in bands:
        write(left - 0.1, y + head / 2, "block", 9, FAINT, ha="right")
        for place, column in enumerate(part):
            write(left + (place + 0.5) * cell_width, y + head / 2, columns[column], min(9, text_size), FAINT)
        y += head
        for row in used:
            write(left - 0.1, y + cell_height / 2, rows[row], 10.5, INK, ha="right")
            for place, column in enumerate(part):
                rank = grid[row][column]
                if rank is None:
                    continue
                fill = (0.925, 0.935, 0.945, 1.0) if rank == 0 else colours(rank / max(largest, 1))
                x = left + place * cell_width
                cell = Rectangle((x, y), cell_width, cell_height, facecolor=fill, edgecolor="white", linewidth=1.6)
                axes.add_patch(cell)
                ink = FAINT if rank == 0 else ("white" if _luminance(fill) < 0.21 else INK)
                size = min(text_size, 74 * cell_width / max(2, len(str(rank))))
                write(x + cell_width / 2, y + cell_height / 2, str(rank), size, ink)
            y += cell_height
        y += between
    return figure


def save_selection_history(csv_path: str | os.PathLike, png_path: str | os.PathLike) -> str:
    """Draw the trajectories of α during the search, a panel a module (48 at most, evenly chosen), on shared axes.

    Components that end above the value they started from are drawn in colour, the others in grey.

    Args:
        csv_path: `selection_history.csv` with the columns step, module, alpha_1 … alpha_k.
        png_path: what to write.
    Returns:
        `png_path`.
    Raises:
        ValueError: if the file holds no such history.
    """
    history = _read_history(csv_path)
    with _style():
        figure = _draw_history(history)
        _save_figure(figure, png_path, dpi=150)
    return os.fspath(png_path)


def selection_history_pixels(csv_path: str | os.PathLike) -> np.ndarray:
    """The picture of `save_selection_history` as (height, width, 3) bytes, for trackers."""
    with _style():
        return _pixels(_draw_history(_read_history(csv_path)))


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
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    places = {name: _split_name(name) for name in history}
    labels = _row_labels(list(dict.fromkeys((stack, rest) for stack, _, rest in places.values())))
    row_of = {row: i for i, row in enumerate(labels)}
    ordered = sorted(history, key=lambda name: (row_of[places[name][0], places[name][2]], places[name][1] or 0))
    count = min(len(ordered), HISTORY_PANELS)
    ordered = [ordered[i * len(ordered) // count] for i in range(count)]
    across = _panels_across(count, len(labels))
    down = -(-count // across)

    # One Axes in inches with the panels placed by hand: 48 Axes with ticks of their own take seconds to draw.
    left, top, bottom, edge, gap_x, gap_y = 0.62, 0.8, 0.42, 0.12, 0.16, 0.34
    panel_width, panel_height = max(1.45, 4.4 / across - gap_x), 0.92
    width = left + across * (panel_width + gap_x) - gap_x + edge
    height = top + down * (panel_height + gap_y) - gap_y + bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    every_step = [step for name in ordered for step in history[name][0]]
    every_value = [value for name in ordered for row in history[name][1] for value in row if math.isfinite(value)] or [
        1
    ]
    steps, values = (min(every_step), max(every_step)), (min(0.0, *every_value), max(every_value))
    step_ticks = _ticks(MaxNLocator(3, steps=[1, 2, 5, 10], integer=True), *steps)
    value_ticks = _ticks(MaxNLocator(3, steps=[1, 2, 5, 10]), *values)
    per_step = (panel_width - 0.12) / max(steps[1] - steps[0], 1)
    per_value = (panel_height - 0.08) / max(values[1] - values[0], 1e-12)

    def write(x, y, text, size, colour, ha="center", va="center", **more):
        axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va=va, parse_math=False, **more)

    frames, starts, grew, shrank = [], [], [], []
    for place, name in enumerate(ordered):
        x0 = left + place % across * (panel_width + gap_x)
        y0 = top + place // across * (panel_height + gap_y) + panel_height  # the panel's lower left corner

        def spot(step, value):
            return x0 + 0.04 + (step - steps[0]) * per_step, y0 - 0.04 - (value - values[0]) * per_value

        frames.append([(x0, y0 - panel_height), (x0, y0), (x0 + panel_width, y0)])
        own_steps, rows = history[name]
        for trajectory in zip(*rows):
            kind = grew if trajectory[-1] > trajectory[0] else shrank
            kind.append([spot(step, value) for step, value in zip(own_steps, trajectory)])
        if max(rows[0]) - min(rows[0]) < 1e-6:  # α starts uniform: with softmax that is 1/k, the paper's threshold
            starts.append([(x0, spot(0, rows[0][0])[1]), (x0 + panel_width, spot(0, rows[0][0])[1])])
        stack, block, rest = places[name]
        write(
            x0 + panel_width / 2,
            y0 - panel_height - 0.1,
            " ".join(filter(None, (labels[stack, rest], _block(block)))),
            8,
            INK,
        )
        for tick, text in step_ticks:
            x = spot(tick, 0)[0]
            frames.append([(x, y0), (x, y0 + 0.025)])
            if place + across >= count:  # nothing below
                write(x, y0 + 0.11, text, 7, FAINT)
        for tick, text in value_ticks:
            y = spot(0, tick)[1]
            frames.append([(x0, y), (x0 - 0.025, y)])
            if place % across == 0:
                write(x0 - 0.06, y, text, 7, FAINT, ha="right", va="center_baseline")
    axes.add_collection(LineCollection(frames, colors=RULE, linewidths=0.8), autolim=False)
    axes.add_collection(LineCollection(starts, colors=INK, linewidths=0.7, linestyles=[(0, (4, 4))]), autolim=False)
    axes.add_collection(LineCollection(shrank, colors="#a3acb7", linewidths=1.1), autolim=False)
    axes.add_collection(LineCollection(grew, colors="#1f78b4", linewidths=1.1), autolim=False)

    some = "" if count == len(history) else f", {count} of {len(history)} modules"
    write(0.1, 0.2, f"Selection variables α during the search{some}", 11, INK, ha="left", fontweight="bold")
    write(0.1, 0.42, "blue: ends above its start; grey: below; dashed: the start", 8.5, FAINT, ha="left")
    write((left + width - edge) / 2, height - 0.12, "step", 9, FAINT)
    write(0.16, (top + height - bottom) / 2, "α", 10, FAINT)
    return figure


def _ticks(locator, low: float, high: float) -> list[tuple[float, str]]:
    found = [round(float(tick), 10) for tick in locator.tick_values(low, high)]
    return [(tick, f"{tick:g}") for tick in found if low <= tick <= high]


def _block(block: int | None) -> str:
    return "" if block is None else str(block)


def _panels_across(panels: int, projections: int) -> int:
    """Panels side by side: whole projections in a row where up to eight blocks allow it, else an even split."""
    blocks = -(-panels // projections)
    for across in range(min(8, blocks), 3, -1):
        if blocks % across == 0:
            return across
    return min(8, panels, max(blocks, 4))


def _style():
    """Settings for every picture: text stays text in the SVG, and two runs give the same bytes."""
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "autolora_trainer",
            "font.family": "DejaVu Sans",
            "text.usetex": False,
        }
    )


def _save_figure(figure, path, **settings):
    """Write a picture whole or not at all. The format goes by the name's ending; no display is needed or opened."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    temporary = f"{os.fspath(path)}.tmp"
    figure.savefig(temporary, format=os.path.splitext(path)[1].lstrip("."), **settings)
    os.replace(temporary, path)


def _pixels(figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2): below 0.21 white text has more contrast than INK."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _shown_model(ranks: LearnedRanks) -> str:
    name = (ranks.base_model or "").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return f"of {name}" if name else ""


# ---------------------------------------------------------------- tables


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False, left: int = 1) -> str:
    """An aligned table, plain or Markdown; the first `left` columns flush left, the others (numbers) flush right.

    Example:
        >>> print(format_table(["method", "score"], [["lora", "0.5"], ["autolora", "0.75"]]))
        method    score
        --------  -----
        lora        0.5
        autolora   0.75
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    if markdown:
        widths = [max(width, 4) for width in widths]

    def line(cells):
        aligned = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(aligned) + " |" if markdown else "  ".join(aligned).rstrip()

    if markdown:
        rule = (
            "|" + "|".join(f" {'-' * w} " if i < left else f" {'-' * (w - 1)}: " for i, w in enumerate(widths)) + "|"
        )
    else:
        rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def format_comparison(rows: Sequence[dict], markdown: bool = False) -> str:
    """Methods side by side.

    Args:
        rows: dicts with the keys `method`, `score`, `metric`, `adapter_params`, `wall_seconds`; what is missing or
            `None` is shown as "-".
        markdown: a Markdown table instead of a plain one. Cells are taken as they are; escape names of unknown origin.
    Example:
        >>> print(format_comparison([dict(method="lora", score=0.74, metric="accuracy", adapter_params=73728,
        ...                               wall_seconds=42)]))
        method  accuracy  adapter parameters  time
        ------  --------  ------------------  ----
        lora      0.7400              73,728  42 s
    """
    metrics = {row.get("metric") for row in rows} - {None}
    header = ["method", metrics.pop() if len(metrics) == 1 else "score", "adapter parameters", "time"]
    body = []
    for row in rows:
        score = format_score(row.get("score"))
        if header[1] == "score" and row.get("metric"):
            score = f"{score} {row['metric']}"
        body.append(
            [str(row.get("method", "-")), score, _count(row.get("adapter_params")), _time(row.get("wall_seconds"))]
        )
    return format_table(header, body, markdown)


def format_cost(cost: dict, markdown: bool = False) -> str:
    """What a run cost, a row a phase.

    Args:
        cost: as in cost.json, {"calibration" | "search" | "retrain" | "total": {"wall_seconds", "passes", "examples",
            "peak_memory_mb"}}. A missing phase (a method without a search) is left out, a missing number is "-".
        markdown: a Markdown table instead of a plain one.
    Example:
        >>> print(format_cost({"total": {"wall_seconds": 75, "passes": 120, "examples": 1920, "peak_memory_mb": 512}}))
        phase        time  passes  examples  peak memory
        -----  ----------  ------  --------  -----------
        total  1 min 15 s     120     1,920       512 MB
    """
    phases = [phase for phase in ("calibration", "search", "retrain", "total") if isinstance(cost.get(phase), dict)]
    body = []
    for phase in phases:
        numbers = cost[phase]
        memory = _count(numbers.get("peak_memory_mb"))
        body.append([
            phase, _time(numbers.get("wall_seconds")), _count(numbers.get("passes")), _count(numbers.get("examples")),
            memory if memory == "-" else f"{memory} MB",
        ])  # fmt: skip
    return format_table(["phase", "time", "passes", "examples", "peak memory"], body, markdown)


def format_score(score: float | None) -> str:
    """Four decimals for rates and correlations, two for scores out of 100 (BLEU)."""
    if score is None:
        return "-"
    return f"{score:.4f}" if not abs(score) > 1 else f"{score:.2f}"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
