"""Pictures of the benchmarks' rows, each as SVG and PNG, readable without colour.

    python benchmarks/pictures.py heatmaps --output OUT mrpc=outputs/mrpc-autolora cola=outputs/cola-autolora

`heatmaps` puts the rank grids of several tasks side by side on one scale, as Figure 3 of the paper does.
"""

import argparse
import os
import sys

from matplotlib.figure import Figure

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer import LearnedRanks  # noqa: E402
from autolora_trainer.drawing import save_in_both_forms, style  # noqa: E402
from autolora_trainer.ranks.grid import rank_grid  # noqa: E402

# A method is told by its marker and its line; colour only helps. Colours: Okabe and Ito (2008).
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()
LOOKS = list(zip("os^DvPX", ("-", "--", ":", "-.", "-", "--", ":"), COLOURS))


def heatmaps(tasks: dict[str, LearnedRanks]) -> Figure:
    """The rank grids of several tasks side by side, the rank in each cell; darkest is k, or the largest rank."""
    grids = {label: rank_grid(ranks.ranks) for label, ranks in tasks.items()}
    widths = [len(columns) for _, columns, _ in grids.values()]
    rows = max(len(names) for names, _, _ in grids.values())
    figure = Figure(figsize=(1.3 + 0.36 * sum(widths) + 0.35 * len(widths), 1.1 + 0.36 * rows), layout="constrained")
    axes = figure.subplots(1, len(grids), width_ratios=widths, squeeze=False)[0]
    for axis, (label, (names, columns, grid)) in zip(axes, grids.items()):
        values = [[float("nan") if rank is None else rank for rank in row] for row in grid]
        darkest = 1.6 * max(tasks[label].initial_rank, *tasks[label].ranks.values())  # which still shows ink
        axis.imshow(values, cmap="Greys", vmin=0, vmax=darkest, aspect="equal")
        for y, row in enumerate(grid):
            for x, rank in enumerate(row):
                if rank is not None:
                    axis.text(x, y, str(rank), ha="center", va="center", color="black")
        axis.set_title(label)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(names)), names if axis is axes[0] or names != grids[next(iter(grids))][0] else [])
        axis.set_xlabel("block")
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure


def save(figure: Figure, stem: str) -> list[str]:
    """Write `stem`.svg and `stem`.png, the same bytes for the same figure."""
    folder, name = os.path.split(stem)
    os.makedirs(folder or ".", exist_ok=True)
    return list(save_in_both_forms(figure, folder, (f"{name}.png", f"{name}.svg"), dpi=160))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=["heatmaps"])
    parser.add_argument("sources", nargs="+", help="label=FOLDER")
    parser.add_argument("--output", required=True, help="path without an ending")
    options = parser.parse_args()
    with style():
        pairs = [source.rpartition("=")[::2] for source in options.sources]
        figure = heatmaps({label or path: LearnedRanks.from_pretrained(path) for label, path in pairs})
        print(*save(figure, options.output), sep="\n")


if __name__ == "__main__":
    main()
