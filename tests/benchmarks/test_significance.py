"""The benchmarks' statistics on numbers whose answers are known."""

import numpy as np
import pytest

from benchmarks.lib.significance import (
    cross_agreement,
    difference_cells,
    interval,
    markdown,
    mean_cell,
    p_value,
    rank_agreement,
    smallest_detectable,
)


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3
    )  # t_2 = 4.303
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_the_interval_of_three_values_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(1.0, 2.0, (4000, 3))
    assert np.mean([low <= 1.0 <= high for low, high in map(interval, draws)]) == pytest.approx(0.95, abs=0.01)


def test_p_value_agrees_with_the_interval():
    assert p_value([0.0, 0.0, 0.0]) == 1.0
    touching = np.array([1.0, 2.0, 3.0]) - interval([1.0, 2.0, 3.0])[0]
    assert p_value(touching) == pytest.approx(0.05)


@pytest.mark.parametrize(("pairs", "size"), [(34, 0.5), (15, 0.8), (199, 0.2)])  # Cohen's d_z in G*Power's tables
def test_smallest_detectable_difference_is_the_textbook_one(pairs, size):
    fewer, more = (np.arange(count) - (count - 1) / 2 for count in (pairs - 1, pairs))
    assert smallest_detectable(more) < size * more.std(ddof=1)
    assert smallest_detectable(fewer) > size * fewer.std(ddof=1)


def test_cells_have_an_interval_from_three_values_on():
    assert mean_cell([]) == "-" and mean_cell([1.0, 2.0]) == "1.50 (n=2)"
    assert mean_cell([-1.0, -1.0, -1.0]) == "-1.00 (-1.00 to -1.00, n=3)"
    assert difference_cells([]) == ["-", "-"] and difference_cells([1.0]) == ["+1.00 (n=1)", "-"]
    cells = difference_cells([1.0, -1.0] * 8)
    assert cells[0].startswith("+0.00 (-0.") and cells[0].endswith("n=16)") and cells[1] == "0.77"


def test_agreement_of_patterns():
    assert rank_agreement([[1, 2, 3], [2, 4, 6], [0, 1, 5]]) == pytest.approx(1.0)
    assert rank_agreement([[1, 2, 3], [3, 2, 1]]) == pytest.approx(-1.0)
    assert rank_agreement([[4, 4, 4], [1, 2, 3]]) == 0.0  # no order, no agreement
    assert rank_agreement([[9, 1, 2], [0, 1, 2]], columns=[1, 2]) == pytest.approx(1.0)
    assert cross_agreement([[1, 2, 3]], [[1, 2, 3], [3, 2, 1]]) == pytest.approx(0.0)


def test_markdown():
    assert markdown(["a", "b"], [[1, 2]]).splitlines() == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]
