"""Do the tables of scores and costs show what there is?"""

import pytest

from autolora_trainer.report.tables import format_comparison, format_cost


def test_comparison_aligns_and_names_a_shared_metric():
    rows = [
        dict(method="autolora", score=0.75, metric="accuracy", adapter_params=73728, wall_seconds=95.2),
        dict(method="majority", score=0.5, metric="accuracy", adapter_params=None, wall_seconds=None),
    ]
    assert format_comparison(rows).splitlines() == [
        "method    accuracy  adapter parameters        time",
        "--------  --------  ------------------  ----------",
        "autolora    0.7500              73,728  1 min 35 s",
        "majority    0.5000                   -           -",
    ]
    assert format_comparison(rows, markdown=True).splitlines()[1].count("|") == 5
    mixed = format_comparison([*rows, dict(method="lora", score=67.91, metric="BLEU")])
    assert "67.91 BLEU" in mixed and "0.7500 accuracy" in mixed


def test_cost_shows_the_phases_there_are():
    phase = {"wall_seconds": 4000, "passes": 1200, "examples": 19200, "peak_memory_mb": 812.3}
    lines = format_cost({"retrain": phase, "total": phase, "command": "x"}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["retrain", "total"]
    assert "1 h 06 min" in lines[2] and "19,200" in lines[2] and "812 MB" in lines[2]


@pytest.mark.parametrize(
    "seconds, shown", [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (3599.8, "1 h 00 min")]
)
def test_times_round_without_sixty_seconds(seconds, shown):
    assert shown in format_cost({"total": {"wall_seconds": seconds}})
