"""The benchmarks' pictures say in text what they show, and the same rows give the same bytes."""

import re

import matplotlib
import pytest

from autolora_trainer import LearnedRanks
from autolora_trainer.ranks.learned import ModuleRank
from benchmarks import pictures

NAMES = [f"encoder.layer.{i}.attention.self.{p}" for i in range(3) for p in ("query", "value")]


def row(task, seed, method, score, size):
    return dict(task=task, seed=seed, method=method, score=score, adapter_params=size)


ROWS = [row(t, s, m, 70 + s, n) for t in ("sst2", "qnli") for s in range(3) for m in ("uniform", "x") for n in (9, 18)]


def texts(path):
    return re.findall(r"<text[^>]*>(.*?)</text>", path.read_text())


def draw(figure, folder):
    with matplotlib.rc_context(pictures.STYLE):
        pictures.save(figure(), str(folder / "a"))
        pictures.save(figure(), str(folder / "b"))
    for ending in ("svg", "png"):
        assert (folder / f"a.{ending}").read_bytes() == (folder / f"b.{ending}").read_bytes()
    return texts(folder / "a.svg")


def test_heatmaps_stand_side_by_side_with_every_rank_written(tmp_path):
    tasks = {
        name: LearnedRanks({n: ModuleRank(r) for n, r in zip(NAMES, ranks)})
        for name, ranks in {"mrpc": (0, 1, 2, 3, 4, 5), "cola": (9, 9, 9, 9, 9, 9)}.items()
    }
    found = draw(lambda: pictures.heatmaps(tasks), tmp_path)
    assert [found.count(t) for t in ("mrpc", "cola", "9", "5", "query", "value")] == [1, 1, 6, 1, 1, 1]


def test_front_has_a_panel_a_task_and_a_tick_a_size(tmp_path):
    found = draw(lambda: pictures.front(ROWS), tmp_path)
    assert {"sst2", "qnli", "uniform LoRA", "x", "adapter parameters"} <= set(found)


def test_intervals_lie_around_the_mean():
    low, high = pictures.reach([1.0, 2.0, 6.0])
    assert low == pytest.approx(high) == pytest.approx(4.303 * 7**0.5 / 3**0.5, abs=1e-2)  # Student's t, s² = 7
    assert pictures.reach([5.0]) == (0.0, 0.0)
