"""What is legible in a picture."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def _boxes(figure) -> dict[str, object]:
    """{text: its box in pixels}, of the texts that are drawn."""
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    hidden = set()  # labels of ticks beyond an axis
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text not in hidden]
    texts = [text for text in shown if text.get_text().strip()]
    return {f"{i} {text.get_text()}": text.get_window_extent(drawn.get_renderer()) for i, text in enumerate(texts)}


def outside(figure) -> list[str]:
    """Texts that reach beyond the canvas."""
    width, height = figure.bbox.size
    boxes = _boxes(figure).items()
    return [text for text, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]


def overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other by more than a pixel each way."""
    boxes = list(_boxes(figure).items())
    return [
        (first, second)
        for i, (first, a) in enumerate(boxes)
        for second, b in boxes[i + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
