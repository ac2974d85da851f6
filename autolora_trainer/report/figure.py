"""One style for every picture, and how it is written."""

import os
from collections.abc import Sequence

import numpy as np

from autolora_trainer.files import replacing

INK, FAINT, RULE = "#1f2933", "#5f6b7a", "#c3cad3"


def style():
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


def canvas(width: float, height: float):
    """A figure of so many inches with one Axes in inches, from its upper left corner, so that cells and text keep
    their size whatever the number of rows, and many panels cost one Axes.

    Returns:
        (figure, axes, write), write(x, y, text, size, colour, ha="center", va="center_baseline", …).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    def write(x, y, text, size, colour, ha="center", va="center_baseline", **more):
        axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va=va, parse_math=False, **more)

    return figure, axes, write


def save_figure(figure, path, **settings) -> None:
    """Write a picture whole or not at all. The format goes by the name's ending; no display is needed or opened."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=os.path.splitext(path)[1].lstrip("."), **settings)


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
