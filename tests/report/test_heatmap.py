"""Is every rank in its place in the picture?"""

import re

import pytest

from autolora_trainer.report.heatmap import save_rank_heatmap
from tests.helpers.ranks import of_ranks, roberta


def test_heatmap_is_written_twice_with_every_rank_as_text(tmp_path):
    ranks = roberta()
    png, svg = save_rank_heatmap(ranks, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rank_heatmap.png", "rank_heatmap.svg"]
    assert open(png, "rb").read(8) == b"\x89PNG\r\n\x1a\n"
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", open(svg, encoding="utf-8").read())
    for rank in ranks.ranks.values():
        assert str(rank) in texts
    assert {"query", "value", "block"} <= set(texts)


def test_heatmap_bytes_depend_on_the_ranks_alone(tmp_path):
    def both():
        return [open(path, "rb").read() for path in save_rank_heatmap(roberta(), tmp_path)]

    first = both()
    assert both() == first
    assert b"<dc:date>" not in first[1]


@pytest.mark.parametrize(
    "ranks", [of_ranks({"lm_head": 0}), of_ranks({}), of_ranks({"h.0.$x^{2}$<b>&": 512}), roberta(60)]
)
def test_heatmap_of_unusual_ranks(tmp_path, ranks):
    png, svg = save_rank_heatmap(ranks, tmp_path, title="$\\frac{ <b>&'")
    assert "&lt;b&gt;" in open(svg, encoding="utf-8").read()
