"""The curve of held-out loss against size as a picture and as text."""

import math
import os

from autolora_trainer.ranks.curve import Curve
from autolora_trainer.report.heatmap import FAINT, INK, RULE, save_in_both_forms, style
from autolora_trainer.report.tables import format_table

CURVE_FILES = ("rank_curve.png", "rank_curve.svg")


def save_rank_curve(curve: Curve, folder: str | os.PathLike, size: int) -> tuple[str, str]:
    """Write `rank_curve.png` and `rank_curve.svg`: held-out loss against adapter parameters, the band that the
    tolerance leaves above the best, and the size that was chosen. The same curve gives the same bytes.

    Args:
        folder: where to write; it must exist.
        size: the chosen one, in adapter parameters.
    """
    with style():
        return save_in_both_forms(_curve_figure(curve, size), folder, CURVE_FILES, dpi=160)


def _curve_figure(curve: Curve, size: int):
    from matplotlib.figure import Figure

    none, *rest = curve.points
    figure = Figure(figsize=(6.4, 3.9), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(none.loss, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("no adapter", (1, none.loss), (-4, -11), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize=8.5, color=FAINT)  # fmt: skip
    if rest:
        best = curve.best.loss
        axes.axhspan(best, best + curve.tolerance * curve.gain, color="#a8d5ba", alpha=0.55, linewidth=0)
        sizes = [point.parameters for point in rest]
        errors = [point.error if math.isfinite(point.error) and point.error < 1e6 else 0 for point in rest]
        axes.errorbar(sizes, [p.loss for p in rest], errors, color="#1f78b4", ecolor=RULE, marker="o", markersize=4)
        axes.set_xscale("log")
    if curve.decided:
        axes.axvline(size, color=INK, linewidth=1)
        axes.annotate(f"{size:,}", (size, 1), (4, -11), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=9, color=INK, fontweight="bold")  # fmt: skip
    title = "Held-out loss against size" if curve.decided else "Held-out loss against size: undecided"
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel("adapter parameters (best components first)", fontsize=9, color=FAINT)
    axes.set_ylabel("loss a target, nats", fontsize=9, color=FAINT)
    axes.tick_params(labelsize=8, colors=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def format_curve(curve: Curve, size: int) -> str:
    """The curve as text, the chosen size marked.

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
    rows = []
    for point in curve.points:
        share = (curve.points[0].loss - point.loss) / curve.gain if curve.gain else 0.0
        mark = " <" if curve.decided and point.parameters == size else ""
        rows.append([f"{point.parameters:,}{mark}", f"{point.loss:.4f}", f"{share:.0%}".replace("%", " %")])
    return format_table(["parameters", "held-out loss", "of the gain"], rows, left=0)
