"""Can every label of every picture be read: inside the canvas, and not upon another?"""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import autolora_trainer
from autolora_trainer.drawing import style
from autolora_trainer.ranks.curve import Curve, CurvePoint
from autolora_trainer.report.curve import curve_figure
from autolora_trainer.report.history import _draw_history
from tests.helpers.pictures import outside, overlapping
from tests.helpers.ranks import of_ranks, roberta

ROOMY = [96, 192, 384, 768, 1500]


def curve(sizes, chosen, top=1.0, decided=True):
    points = [CurvePoint(i + 1, size, top + 0.5 / (i + 1), 0.01) for i, size in enumerate(sizes)]
    return Curve((CurvePoint(0, 0, 2.5, 0.02), *points), chosen, decided, 0.05)


@pytest.mark.parametrize(
    "figure",
    [
        lambda: curve_figure(curve([96], 1), 96),
        lambda: curve_figure(curve(ROOMY, 1), 96),
        lambda: curve_figure(curve(ROOMY, 5), 1500),
        lambda: curve_figure(curve([9_437_184 << i for i in range(7)], 7), 9_437_184 << 6),
        lambda: curve_figure(curve([81152, 92672, 105000, 120000, 163840, 327680], 3), 105000),
        lambda: curve_figure(curve(ROOMY, 0, top=2.499, decided=False), 0),
        lambda: curve_figure(curve([], 0, decided=False), 0),
        lambda: curve_figure(replace(curve(ROOMY, 1), tolerance=2.0, of_whole=True), 96, width=4.6),
        lambda: curve_figure(
            curve([7840, 17440, 34400, 44160, 44960, 45280, 48960, 71040, 136640], 5), 44960, width=4.6
        ),
        lambda: roberta().plot(),
        lambda: roberta(60).plot(),
        lambda: of_ranks({"lm_head": 0}).plot(),
        lambda: of_ranks({}).plot(),
        lambda: of_ranks({"h.0.WWWW<b>&$x$": 512}).plot(),
        lambda: of_ranks({"h.0.up": 8, "h.11.up": 128}, base_model="org/a-name-as-long-" + "as-names-get-" * 8).plot(),
        lambda: _draw_history({f"h.{i}.attn.c_attn": ([0, 9], [[0.5, 0.5], [0.3, 0.7]]) for i in range(1)}),
        lambda: _draw_history({f"h.{i}.attn.c_attn": ([0, 999], [[0.5, 0.5], [0.3, 0.7]]) for i in range(96)}),
    ],
)
def test_labels_are_legible(figure):
    with style():
        drawn = figure()
        assert outside(drawn) == [] and overlapping(drawn) == []


def test_a_label_beyond_the_canvas_or_upon_another_is_seen():
    drawn = curve_figure(curve(ROOMY, 1), 96)
    drawn.axes[0].text(1.05, 0.5, "a label at a line that ends here", transform=drawn.axes[0].transAxes)
    drawn.axes[0].text(0.01, 0.5, "under", transform=drawn.axes[0].transAxes)
    drawn.axes[0].text(0.01, 0.51, "over", transform=drawn.axes[0].transAxes)
    drawn.set_layout_engine("none")
    assert ["a label at" in text for text in outside(drawn)] == [True]
    assert [(first.split()[-1], second.split()[-1]) for first, second in overlapping(drawn)] == [("under", "over")]


def test_ranks_load_no_drawing_library_before_they_are_drawn():
    assert of_ranks({"h.0.up": 8}).plot().axes and "matplotlib.pyplot" not in sys.modules


def test_colours_come_from_the_one_palette():
    package = Path(autolora_trainer.__file__).parent
    named = {path.name for path in package.rglob("*.py") if re.search(r"\"#[0-9a-f]{6}\"", path.read_text("utf-8"))}
    assert named == {"drawing.py"}
