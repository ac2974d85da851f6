"""The README's picture: held-out loss against parameters, learned and uniform, and the grid of the ranks found."""

import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from autolora_trainer.drawing import PALETTE
from autolora_trainer.ranks.grid import rank_grid
from benchmarks.lib.allocation_report import by_size
from benchmarks.lib.allocation_sizes import DEFAULT_K, search_of

TASK, SEED = "e2e", 11
ORANGE = ("#D55E00", "#f0883e")  # of uniform, on light pages and on dark


def picture(rows: list[dict], dark: bool = False) -> Figure:
    """Two panels, drawn in inks for light or dark pages, on no ground of their own.

    Args:
        rows: of `allocation.py`; those of the search that found the size on E2E among them.
    """
    ink, blue, orange = (colours[dark] for colours in (PALETTE["ink"], PALETTE["accent"], ORANGE))
    figure = Figure(figsize=(8.6, 3.0), layout="constrained")
    figure.patch.set_alpha(0)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for axis in (left, right):
        axis.patch.set_alpha(0)
        axis.tick_params(colors=ink, which="both")
        for spine in axis.spines.values():
            spine.set_color(ink)
    _losses(left, rows, ink, blue, orange)
    _grid(right, search_of(TASK, SEED, rows, k=DEFAULT_K)["found"], ink, blue)
    return figure


def _losses(axis, rows, ink, blue, orange) -> None:
    own = [r for r in rows if (r["kind"], r["task"], r.get("account")) == ("train", TASK, "a")]
    for method, name, colour, marker in (("uniform", "uniform", orange, "s"), ("contributions", "learned", blue, "o")):
        sizes, means = by_size(own, method, without=("found", "rank 8"))
        axis.plot(sizes, means, color=colour, marker=marker, markersize=5)
        low = method == "contributions"
        axis.annotate(
            name, (sizes[0], means[0]), (4, -9 if low else 9), textcoords="offset points", color=colour,
            ha="right" if low else "center", va="top" if low else "bottom",
        )  # fmt: skip
    found = [r for r in own if (r["method"], r["size"]) == ("warm", "found")]
    size = statistics.median(r["parameters"] for r in found)
    loss = statistics.mean(r["loss"] for r in found)
    axis.plot([size], [loss], marker="*", markersize=13, color=blue, linestyle="")
    axis.annotate("size found", (size, loss), (0, -11), textcoords="offset points", color=blue, ha="center", va="top")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    ticks = sorted({r["parameters"] for r in own if r["method"] == "uniform"})
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.margins(0.2, 0.2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("adapter parameters", color=ink)
    axis.set_ylabel("held-out loss, nats a token", color=ink)


def _grid(axis, ranks: dict[str, int], ink: str, blue: str) -> None:
    names, columns, grid = rank_grid(ranks)
    most = max(max(filter(None, row), default=1) for row in grid)
    for y, row in enumerate(grid):
        for x, rank in enumerate(row):
            if rank is not None:
                axis.fill(
                    [x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=blue, alpha=0.75 * rank / most, linewidth=0
                )
                axis.text(x + 0.5, y + 0.5, str(rank), ha="center", va="center", color=ink)
    axis.set_xlim(0, len(columns))
    axis.set_ylim(len(names), 0)
    axis.set_xticks([x + 0.5 for x in range(len(columns))], columns)
    axis.set_yticks([y + 0.5 for y in range(len(names))], names)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel("block; a number is the rank that was found", color=ink)
