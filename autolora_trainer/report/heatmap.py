"""The grid of ranks as a picture (Figure 3 of the paper), and the one style of all pictures."""

import io
import os
from collections.abc import Sequence

import numpy as np

from autolora_trainer.files import replacing
from autolora_trainer.ranks.grid import bands, rank_grid, rank_summary
from autolora_trainer.ranks.learned import LearnedRanks

INK, FAINT, RULE = "#1f2933", "#5f6b7a", "#c3cad3"


def style():
    """Settings for every picture: text stays text in the SVG, and two runs give the same bytes."""
    import matplotlib

    svg = {"svg.fonttype": "none", "svg.hashsalt": "autolora_trainer"}
    return matplotlib.rc_context({**svg, "font.family": "DejaVu Sans", "text.usetex": False})


def canvas(width: float, height: float):
    """(figure, axes, write): a figure of so many inches with one Axes in inches, from its upper left corner, so that
    cells and text keep their size whatever the number of rows, and many panels cost one Axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    def write(x, y, text, size, colour, ha="center", va="center_baseline", **more):
        axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va=va, parse_math=False, **more)

    return figure, axes, write


def save_figure(figure, path, **settings) -> None:
    """Write a picture whole or not at all. The format goes by the name's ending; no display is needed or opened."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=os.path.splitext(path)[1].lstrip("."), **settings)


def save_in_both_forms(figure, folder: str | os.PathLike, names: tuple[str, str], dpi: int) -> tuple[str, str]:
    """Write a picture as PNG and as SVG, which has no date; the two paths."""
    png, svg = (os.path.join(folder, name) for name in names)
    save_figure(figure, png, dpi=dpi)
    save_figure(figure, svg, metadata={"Date": None, "Creator": None})
    return png, svg


def figure_svg(figure) -> str:
    """A picture as an `<svg>` element."""
    with style(), io.StringIO() as text:
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        return text.getvalue()[text.getvalue().index("<svg") :]


def pixels(figure) -> np.ndarray:
    """A picture as (height, width, 3) bytes, for trackers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    return np.array(drawn.buffer_rgba())[..., :3]


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2): below 0.21 white text has more contrast than INK."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


HEATMAP_FILES = ("rank_heatmap.png", "rank_heatmap.svg")
HEATMAP_COLUMNS = 24  # blocks side by side; a model with more gets further bands, so that 800 pixels stay legible


def save_rank_heatmap(ranks: LearnedRanks, folder: str | os.PathLike, title: str | None = None) -> tuple[str, str]:
    """Write `rank_heatmap.png` and `rank_heatmap.svg`: Figure 3, with the rank written in each cell; the shade is the
    module's contribution where contributions were learned, else the rank.

    The same ranks give the same bytes. Blocks beyond 24 continue in further bands.

    Args:
        folder: where to write; it must exist.
        title: Default: the base model's name.
    Returns:
        The two paths.
    """
    with style():
        return save_in_both_forms(_heatmap_figure(ranks, title), folder, HEATMAP_FILES, dpi=200)


def rank_heatmap_pixels(ranks: LearnedRanks) -> np.ndarray:
    """The picture of `save_rank_heatmap` as (height, width, 3) bytes, for trackers."""
    with style():
        return pixels(_heatmap_figure(ranks))


def _heatmap_figure(ranks: LearnedRanks, title: str | None = None):
    rows, columns, grid = rank_grid(ranks.ranks)
    _, _, shades = rank_grid(ranks.shades)
    subtitle = rank_summary(ranks.ranks)
    if title is None:
        model = (ranks.base_model or "").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
        title = f"LoRA ranks of {model}" if model else "LoRA ranks"
    title = " ".join(title.split())
    # a row that a band has no module for is left out of that band
    shown = [
        (range(part.start, part.stop), [i for i, row in enumerate(grid) if set(row[part]) != {None}])
        for part in bands(len(columns), HEATMAP_COLUMNS)
    ]
    across = max([len(part) for part, _ in shown], default=1)
    title = title if len(title) <= 64 else title[:63] + "…"
    edge, top, head, between = 0.1, 0.56, 0.25, 0.14
    left = edge + 0.1 + 0.082 * max(map(len, [*rows, "block"]))
    cell_width = max(0.26, min(0.62, (8.0 - left - edge) / across))
    cell_height = min(0.42, max(0.26, cell_width * 0.8))
    width = max(left + cell_width * across + edge, 0.12 * len(title) + 2 * edge, 0.075 * len(subtitle) + 2 * edge)
    height = top + sum(head + cell_height * len(used) for _, used in shown) + between * (len(shown) - 1) + edge
    text_size = min(12.5, 30 * cell_width, 32 * cell_height)
    figure, axes, write = canvas(width, height)
    draw_cell = _cells(axes, write, cell_width, cell_height, text_size)

    write(edge, 0.17, title, 12.5, INK, ha="left", fontweight="bold")
    write(edge, 0.395, subtitle, 9, FAINT, ha="left")
    y = top
    for part, used in shown:
        write(left - 0.1, y + head / 2, "block", 9, FAINT, ha="right")
        for place, column in enumerate(part):
            write(left + (place + 0.5) * cell_width, y + head / 2, columns[column], min(9, text_size), FAINT)
        y += head
        for row in used:
            write(left - 0.1, y + cell_height / 2, rows[row], 10.5, INK, ha="right")
            for place, column in enumerate(part):
                if grid[row][column] is not None:
                    draw_cell(left + place * cell_width, y, grid[row][column], shades[row][column])
            y += cell_height
        y += between
    return figure


def _cells(axes, write, width, height, text_size):
    """draw(x, y, rank, shade from 0 to 1), for the cells of a grid."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    # YlGnBu (ColorBrewer, safe for colour-blind readers): luminance falls all the way, so it also reads in grey. Its
    # palest end is cut off; rank 0 gets a neutral grey instead, as such a module is left out of the adapter.
    colours = ListedColormap(colormaps["YlGnBu"]([0.14 + 0.83 * i / 255 for i in range(256)]))

    def draw(x, y, rank, shade):
        fill = (0.925, 0.935, 0.945, 1.0) if rank == 0 else colours(shade)
        axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor="white", linewidth=1.6))
        ink = FAINT if rank == 0 else ("white" if luminance(fill) < 0.21 else INK)
        write(x + width / 2, y + height / 2, str(rank), min(text_size, 74 * width / max(2, len(str(rank)))), ink)

    return draw
