"""The curve of held-out loss against size as a picture and as text."""

import math
import os

from autolora_trainer.drawing import (
    ACCENT,
    BAND,
    FAINT,
    INK,
    MUTED,
    PAPER,
    save_in_both_forms,
    style,
    text_width,
)
from autolora_trainer.ranks.curve import BITS_PER_PARAMETER, Curve
from autolora_trainer.report.tables import format_table

AMPLE = 0.25  # load below which a larger adapter has no use
CURVE_FILES = ("rank_curve.png", "rank_curve.svg")


def save_rank_curve(curve: Curve, folder: str | os.PathLike, size: int) -> tuple[str, str]:
    """Write `rank_curve.png` and `rank_curve.svg`: held-out loss against adapter parameters, the band that the
    tolerance leaves above the best, and the size that was chosen. The same curve gives the same bytes.

    Args:
        folder: where to write; it must exist.
        size: the chosen one, in adapter parameters.
    """
    with style():
        return save_in_both_forms(curve_figure(curve, size), folder, CURVE_FILES, dpi=160)


def curve_figure(curve: Curve, size: int, width: float = 6.4):
    """The picture of `save_rank_curve` as a matplotlib figure, so many inches wide."""
    with style():
        return _curve_figure(curve, size, width)


def _curve_figure(curve: Curve, size: int, width: float):
    from matplotlib.figure import Figure

    none, *rest = curve.points
    figure = Figure(figsize=(width, 0.61 * width), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    axes.axhline(none.loss, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    over = {"facecolor": PAPER, "linewidth": 0, "pad": 1}  # of a label: a line behind it does not cross it
    below = none.loss >= max((point.loss for point in rest), default=none.loss)  # its line is at the top
    axes.annotate("no adapter", (1, none.loss), (-4, -11 if below else 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize=8.5, color=FAINT, bbox=over)  # fmt: skip
    if rest:
        sizes = [point.parameters for point in rest]
        errors = [point.error if math.isfinite(point.error) and point.error < 1e6 else 0 for point in rest]
        axes.errorbar(sizes, [p.loss for p in rest], errors, color=ACCENT, ecolor=MUTED, marker="o", markersize=4)
        axes.set_xscale("log", base=2)
        ticks = _apart(sizes, width - 1)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    if rest and curve.decided:
        axes.axhspan(*curve.band, color=BAND, alpha=0.55, linewidth=0)
    if rest and curve.decided and curve.band[1] < none.loss:  # else all of it is within
        said = f"within {100 * curve.tolerance:.3g} % of the {'loss' if curve.of_whole else 'gain'}"
        axes.annotate(said, (0, curve.band[1]), (4, 3), xycoords=("axes fraction", "data"), ha="left",
                      textcoords="offset points", fontsize=8.5, color=FAINT, bbox=over)  # fmt: skip
    if curve.decided:
        axes.axvline(size, color=INK, linewidth=1)
        axes.annotate(f"{size:,}", (size, 1), (0, 3), xycoords=("data", "axes fraction"), ha="center",
                      textcoords="offset points", fontsize=9, color=INK, fontweight="bold")  # fmt: skip
    title = "Held-out loss against size" if curve.decided else "Held-out loss against size: undecided"
    axes.set_title(title, loc="left", pad=18, fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel("adapter parameters (best components first)", fontsize=9, color=FAINT)
    axes.set_ylabel("loss a target, nats", fontsize=9, color=FAINT)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _apart(sizes: list[int], inches: float) -> list[int]:
    """The sizes whose labels, 8 points high, have room on a logarithmic axis of so many inches; of close ones the
    largest."""
    room = max(text_width(f"{size:,}", 8) for size in sizes) + 0.12
    least = 2 ** (room / inches * max(1.0, math.log2(sizes[-1] / sizes[0])))
    kept = sizes[-1:]
    for size in reversed(sizes):
        if least * size < kept[0]:
            kept.insert(0, size)
    return kept


def format_curve(curve: Curve, size: int) -> str:
    """The curve as text, the chosen size marked, and the line of `format_capacity`.

    Example:
        >>> from autolora_trainer.ranks.curve import CurvePoint
        >>> points = CurvePoint(0, 0, 2.5), CurvePoint(3, 96, 1.01, 0.004), CurvePoint(6, 192, 1.0)
        >>> print(format_curve(Curve(points, 3, True, 0.01), 96))
        parameters  held-out loss  of the gain
        ----------  -------------  -----------
                 0         2.5000          0 %
              96 <         1.0100         99 %
               192         1.0000        100 %
    """
    table = format_table(*curve_table(curve, size), left=0)
    return "\n".join(filter(None, [table, format_capacity(curve, size)]))


def curve_table(curve: Curve, size: int) -> tuple[list[str], list[list[str]]]:
    """(heads, cells) of `format_curve`."""
    rows = []
    for point in curve.points:
        share = (curve.points[0].loss - point.loss) / curve.gain if curve.gain else 0.0
        mark = " <" if curve.decided and point.parameters == size else ""
        rows.append([f"{point.parameters:,}{mark}", f"{point.loss:.4f}", f"{share:.0%}".replace("%", " %")])
    return ["parameters", "held-out loss", "of the gain"], rows


def format_capacity(curve: Curve, size: int) -> str | None:
    """What size has to do with it, in one line: what the rows teach against what an adapter can store; None where
    nothing was learned, or the loss is not in nats.

    Example:
        >>> from autolora_trainer.ranks.curve import CurvePoint
        >>> curve = Curve((CurvePoint(0, 0, 1.0), CurvePoint(6, 192, 0.9)), 6, True, 0.05, targets=1000)
        >>> print(format_capacity(curve, 192))
        capacity: the rows teach about 140 bits, 192 parameters store about 380: near the limit, ranks matter a little
    """
    load = curve.load(size) if curve.decided else None
    if load is None:
        return None
    if load > 1:
        said = "capacity is the limit: which modules get ranks matters, and a larger adapter learns more"
    elif load > AMPLE:
        said = "near the limit, ranks matter a little"
    else:
        said = "ample: which ranks hardly matters, and a larger adapter would be wasted"
    about = lambda value: f"{float(f'{value:.2g}'):,.0f}"
    stored = about(BITS_PER_PARAMETER * size)
    return f"capacity: the rows teach about {about(curve.bits)} bits, {size:,} parameters store about {stored}: {said}"
