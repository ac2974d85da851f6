"""Does the search at the package's defaults find the ranks of a teacher? The benchmark over seeds is
`benchmarks/planted.py`."""

import pytest

from benchmarks.lib.significance import spearman
from benchmarks.planted import PROBLEMS, search, summarize


@pytest.mark.parametrize("name, seed", [("linear", 0), ("transformer", 0)])
def test_default_rule_recovers_planted_ranks(name, seed):
    row = search(name, seed)
    true, learned = row["true"], row["learned"]["contributions"]
    exact = sum(t == r for t, r in zip(true, learned)) / len(true)
    assert exact == 1, f"{true} read as {learned}"


def test_no_update_is_planted_in_a_control():
    for name in ("control-linear", "control-transformer"):
        assert set(PROBLEMS[name](0).ranks.values()) == {0}


def test_spearman():
    assert spearman([0, 1, 2, 6], [0, 2, 3, 8]) == pytest.approx(1)
    assert spearman([0, 1, 2, 6], [8, 3, 2, 0]) == pytest.approx(-1)
    assert spearman([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0)
    assert spearman([0, 1, 2, 6], [3, 3, 3, 3]) == 0


def test_summary_of_two_searches():
    rows = [
        {"problem": "p", "seed": seed, "seconds": 1.0, "true": [0, 2, 6], "learned": {"contributions": learned}}
        for seed, learned in enumerate([[0, 2, 6], [0, 3, 5]])
    ]
    (line,) = summarize(rows)
    assert line["spearman"] == pytest.approx(1) and line["exact"] == pytest.approx(4 / 6)
    assert line["levels"] == {0: 0.0, 2: 2.5, 6: 5.5} and line["totals"] == 2
