"""The one style of all pictures, and how they are written; matplotlib is loaded when one is drawn."""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from autolora_trainer.errors import one_line
from autolora_trainer.files import replacing

logger = logging.getLogger("autolora_trainer")
# The one palette: what a colour is for, on light ground and on dark. Told apart without colour vision by luminance.
PALETTE = {
    "ink": ("#1f2933", "#e4e9ee"),
    "faint": ("#5f6b7a", "#9ca8b5"),
    "rule": ("#c3cad3", "#434d58"),
    "muted": ("#a3acb7", "#6b7683"),
    "accent": ("#0072b2", "#58a6ff"),
    "band": ("#a8d5ba", "#3f7d5f"),
    "empty": ("#eceff1", "#242b33"),
    "paper": ("#ffffff", "#14191f"),
}
INK, FAINT, RULE, MUTED, ACCENT, BAND, EMPTY, PAPER = (light for light, _ in PALETTE.values())


def load_matplotlib():
    """The library, also where MPLBACKEND names a window system that there is not: it would not be imported then, and
    files need none."""
    if "matplotlib" not in sys.modules and (asked := os.environ.pop("MPLBACKEND", None)) is not None:
        try:
            import matplotlib

            with suppress(ValueError):
                matplotlib.rcParams["backend"] = asked  # as it does by itself
        finally:
            os.environ["MPLBACKEND"] = asked
    import matplotlib

    return matplotlib


@contextmanager
def drawn(what: str, how: str = "drawn") -> Iterator[None]:
    """Inside, a picture, or a card, that fails is a warning: none is worth a run."""
    try:
        yield
    except Exception as error:  # of a font, a disk, a library
        logger.warning("%s was not %s: %s", what, how, one_line(error))


def style():
    """Settings for every picture: text stays text in the SVG, and two runs give the same bytes."""
    matplotlib = load_matplotlib()
    svg = {"svg.fonttype": "none", "svg.hashsalt": "autolora_trainer"}
    colours = {"axes.edgecolor": MUTED, "xtick.color": FAINT, "ytick.color": FAINT, "text.color": INK}
    return matplotlib.rc_context({**svg, **colours, "font.family": "DejaVu Sans", "text.usetex": False})


def canvas(width: float, height: float):
    """(figure, axes, write): a figure of so many inches with one Axes in inches, from its upper left corner, so that
    cells and text keep their size whatever the number of rows, and many panels cost one Axes."""
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    def write(x, y, text, size, colour, ha="center", va="center_baseline", **more):
        axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va=va, parse_math=False, **more)

    return figure, axes, write


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Of a line of text, in inches; `size` in points."""
    load_matplotlib()
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(size=size, weight=weight)
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


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


def figure_svg(figure, themed: bool = False) -> str:
    """A picture as an `<svg>` element; `themed`: its colours are the page's, `var(--ink)` …, light or dark."""
    with style(), io.StringIO() as text:
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        svg = text.getvalue()[text.getvalue().index("<svg") :]
    for name, (colour, _) in PALETTE.items() if themed else ():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def pixels(figure):
    """A picture as a numpy array of (height, width, 3) bytes, for trackers."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    return numpy.array(drawn.buffer_rgba())[..., :3]


def heat(shade: float) -> float:
    """How much of ACCENT a cell has, 0 to 1, of its shade from 0 to 1: one hue, whose luminance falls all the way, so
    that it also reads in grey, and its palest is not the ground."""
    return 0.12 + 0.88 * max(0.0, min(1.0, shade))


def rgb(colour: str) -> tuple[int, int, int]:
    """(red, green, blue), 0 to 255, of `#rrggbb`."""
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2): below 0.21 white text has more contrast than INK."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
