"""The benchmarks' pictures say in text what they show, and the same rows give the same bytes."""

import re

from autolora_trainer import LearnedRanks
from autolora_trainer.drawing import style
from autolora_trainer.ranks.learned import ModuleRank
from benchmarks import pictures
from benchmarks.lib import allocation_report, committed
from tests.helpers.pictures import outside
from tests.helpers.ranks import of_ranks

NAMES = [f"encoder.layer.{i}.attention.self.{p}" for i in range(3) for p in ("query", "value")]


def texts(path):
    return re.findall(r"<text[^>]*>(.*?)</text>", path.read_text())


def draw(figure, folder):
    with style():
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


def test_the_committed_pictures_have_their_labels_within():
    rows = committed.rows_of("allocation")
    with style():
        for figure in (allocation_report.picture(rows), pictures.heatmaps({"mrpc": of_ranks({"h.0.up": 8})})):
            assert outside(figure) == []
