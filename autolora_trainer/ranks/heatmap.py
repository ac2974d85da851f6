"""The grid of ranks as a picture (Figure 3 of the paper)."""

from collections.abc import Mapping

from autolora_trainer.drawing import ACCENT, EMPTY, FAINT, INK, PAPER, canvas, heat, luminance, rgb, text_width
from autolora_trainer.ranks.grid import bands, rank_grid, rank_summary

HEATMAP_COLUMNS = 24  # blocks side by side; a model with more gets further bands, so that 800 pixels stay legible


def heatmap_figure(ranks: Mapping[str, int], shades: Mapping[str, float], title: str):
    """A matplotlib figure: blocks across, projections down, the rank written in each cell.

    Args:
        ranks: {module: rank}.
        shades: {module: how dark, 0 to 1}.
    """
    rows, columns, grid = rank_grid(ranks)
    _, _, shaded = rank_grid(shades)
    subtitle, title = rank_summary(ranks), " ".join(title.split())
    # a row that a band has no module for is left out of that band
    shown = [
        (range(part.start, part.stop), [i for i, row in enumerate(grid) if set(row[part]) != {None}])
        for part in bands(len(columns), HEATMAP_COLUMNS)
    ]
    across = max([len(part) for part, _ in shown], default=1)
    title = title if len(title) <= 64 else title[:63] + "…"
    edge, top, head, between = 0.1, 0.56, 0.25, 0.14
    left = edge + 0.1 + max(text_width(label, 10.5) for label in [*rows, "block"])
    cell_width = max(0.26, min(0.62, (8.0 - left - edge) / across))
    cell_height = min(0.42, max(0.26, cell_width * 0.8))
    head_width = max(text_width(title, 12.5, "bold"), text_width(subtitle, 9))
    width = max(left + cell_width * across, edge + head_width) + edge
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
                    draw_cell(left + place * cell_width, y, grid[row][column], shaded[row][column])
            y += cell_height
        y += between
    return figure


def _cells(axes, write, width, height, text_size):
    """draw(x, y, rank, shade from 0 to 1), for the cells of a grid."""
    from matplotlib.patches import Rectangle

    # rank 0 gets a neutral grey, as such a module is left out of the adapter
    def draw(x, y, rank, shade):
        part = heat(shade)
        fill = EMPTY if rank == 0 else [(part * c + (1 - part) * p) / 255 for c, p in zip(rgb(ACCENT), rgb(PAPER))]
        axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=PAPER, linewidth=1.6))
        ink = FAINT if rank == 0 else (PAPER if luminance(fill) < 0.21 else INK)
        write(x + width / 2, y + height / 2, str(rank), min(text_size, 74 * width / max(2, len(str(rank)))), ink)

    return draw
