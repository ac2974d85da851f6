"""The benchmarks' statistics on numbers whose answers are known."""

import numpy as np
import pytest

from benchmarks.significance import (
    bootstrap_interval,
    cross_agreement,
    difference_cells,
    markdown,
    mean_cell,
    paired_differences,
    rank_agreement,
    smallest_detectable,
)


def test_pairs_are_formed_by_task_and_seed_and_incomplete_ones_left_out():
    scores = [("a", 0, "new", 70.0), ("a", 0, "old", 68.0), ("a", 1, "new", 71.0), ("b", 0, "old", 50.0)]
    rows = [dict(zip(("task", "seed", "method", "score"), row), budget=2) for row in scores]
    assert paired_differences(rows, "new", "old", 2).tolist() == [2.0]
    assert paired_differences(rows, "new", "old", 4).tolist() == []


def test_bootstrap_interval_covers_the_mean_as_the_normal_one_does():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.1)


def test_smallest_detectable_difference_is_the_textbook_one():
    values = [1.0, -1.0] * 8  # standard deviation 1.033, 16 pairs
    assert smallest_detectable(values) == pytest.approx(2.802 * 1.0328 / 4, rel=1e-3)


def test_cells_have_an_interval_from_three_values_on():
    assert mean_cell([]) == "-" and mean_cell([1.0, 2.0]) == "1.50 (n=2)"
    assert mean_cell([-1.0, -1.0, -1.0]) == "-1.00 (-1.00 to -1.00, n=3)"
    assert difference_cells([]) == ["-", "-"] and difference_cells([1.0]) == ["+1.00 (n=1)", "-"]
    cells = difference_cells([1.0, -1.0] * 8)
    assert cells[0].startswith("+0.00 (-0.") and cells[0].endswith("n=16)") and cells[1] == "0.72"


def test_agreement_of_patterns():
    assert rank_agreement([[1, 2, 3], [2, 4, 6], [0, 1, 5]]) == pytest.approx(1.0)
    assert rank_agreement([[1, 2, 3], [3, 2, 1]]) == pytest.approx(-1.0)
    assert rank_agreement([[4, 4, 4], [1, 2, 3]]) == 0.0  # no order, no agreement
    assert rank_agreement([[9, 1, 2], [0, 1, 2]], columns=[1, 2]) == pytest.approx(1.0)
    assert cross_agreement([[1, 2, 3]], [[1, 2, 3], [3, 2, 1]]) == pytest.approx(0.0)


def test_markdown():
    assert markdown(["a", "b"], [[1, 2]]).splitlines() == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]
