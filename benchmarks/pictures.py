"""Pictures of the benchmarks' rows, each as SVG and PNG, readable without colour.

    python benchmarks/pictures.py heatmaps --output OUT mrpc=outputs/mrpc-autolora cola=outputs/cola-autolora
    python benchmarks/pictures.py front --output OUT results/front.jsonl      (score against adapter parameters)

`heatmaps` puts the rank grids of several tasks side by side on one scale, as Figure 3 of the paper does.
"""

import argparse
import os
import statistics
import sys

import matplotlib
from matplotlib.figure import Figure

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer import LearnedRanks  # noqa: E402
from autolora_trainer.ranks.grid import rank_grid  # noqa: E402
from benchmarks.lib.significance import ENOUGH, interval  # noqa: E402
from benchmarks.lib.trials import read_rows  # noqa: E402
from benchmarks.lib.words import WORDS  # noqa: E402

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "autolora_trainer", "font.family": "DejaVu Sans", "font.size": 10}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
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


def front(rows: list[dict]) -> Figure:
    """Mean score against adapter parameters for every method, a panel a task, with 95 % intervals."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(3.4 * len(tasks), 3.2), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
        for index, method in enumerate(methods):
            own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            sizes = sorted({row["adapter_params"] for row in own})
            scores = [[row["score"] for row in own if row["adapter_params"] == size] for size in sizes]
            means = [statistics.mean(values) for values in scores]
            errors = [reach(values) for values in scores]
            marker, line, colour = LOOKS[index % len(LOOKS)]
            places = [size * 1.04 ** (index - len(methods) / 2) for size in sizes]  # intervals beside each other
            axis.errorbar(
                places, means, list(zip(*errors)), marker=marker, linestyle=line, color=colour, capsize=3,
                label=WORDS["picture"].get(method, method), markersize=5, linewidth=1.2,
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        ticks = sorted({row["adapter_params"] for row in rows})
        axis.set_xticks(ticks, [f"{tick / 1000:.0f}k" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(task)
        axis.set_xlabel("adapter parameters")
    figure.axes[0].set_ylabel("score on the dev split, points")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
    return figure


def reach(values: list[float]) -> tuple[float, float]:
    """Distances from the mean to the ends of its 95 % interval; zero where there are too few values for one."""
    if len(values) < ENOUGH:
        return 0.0, 0.0
    low, high = interval(values)
    mean = statistics.mean(values)
    return max(0.0, mean - low), max(0.0, high - mean)


def save(figure: Figure, stem: str) -> list[str]:
    """Write `stem`.svg and `stem`.png, the same bytes for the same figure."""
    os.makedirs(os.path.dirname(stem) or ".", exist_ok=True)
    figure.savefig(f"{stem}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(f"{stem}.png", dpi=160, metadata={"Software": None})
    return [f"{stem}.svg", f"{stem}.png"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=["heatmaps", "front"])
    parser.add_argument("sources", nargs="+", help="label=FOLDER for heatmaps, files of rows for front")
    parser.add_argument("--output", required=True, help="path without an ending")
    options = parser.parse_args()
    with matplotlib.rc_context(STYLE):
        if options.picture == "heatmaps":
            pairs = [source.rpartition("=")[::2] for source in options.sources]
            figure = heatmaps({label or path: LearnedRanks.from_pretrained(path) for label, path in pairs})
        else:
            figure = front([row for path in options.sources for row in read_rows(path)])
        print(*save(figure, options.output), sep="\n")


if __name__ == "__main__":
    main()
