"""The curve in words: whether a larger adapter would have a use."""

from autolora_trainer.ranks.curve import Curve, CurvePoint
from autolora_trainer.report.curve import format_capacity


def curve(gain, targets, decided=True):
    return Curve((CurvePoint(0, 0, 1.0 + gain), CurvePoint(4, 1000, 1.0)), 4, decided, 0.05, targets)


def test_capacity_is_what_rows_teach_against_what_parameters_store():
    # 1,000 parameters store 2,000 bits; a gain of ln 2 is one bit a target
    said = {targets: format_capacity(curve(0.6931472, targets), 1000) for targets in (100, 1000, 10_000)}
    assert "about 100 bits, 1,000 parameters store about 2,000: ample" in said[100]
    assert "near the limit" in said[1000]
    assert "about 10,000 bits" in said[10_000] and "capacity is the limit" in said[10_000]


def test_nothing_is_said_where_nothing_is_known():
    assert format_capacity(curve(0.7, None), 1000) is None
    assert format_capacity(curve(0.0, 1000, decided=False), 1000) is None


def test_the_band_is_what_the_tolerance_leaves():
    points = (CurvePoint(0, 0, 3.0), CurvePoint(2, 50, 0.9), CurvePoint(4, 100, 1.0))
    assert Curve(points, 2, True, 0.1).band == (0.9, 0.9 + 0.1 * 2.1)
    cut = Curve(points, 2, True, 0.1, of_whole=True)  # of the given adapter's loss
    assert cut.band == (1.0, 1.1) and Curve.from_dict(cut.to_dict()) == cut
