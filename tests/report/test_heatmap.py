"""Is every rank in its place in the picture?"""

import os
import re
import subprocess
import sys

import pytest

from autolora_trainer.report.findings import save_findings
from autolora_trainer.report.heatmap import save_rank_heatmap
from tests.helpers.commands import ROOT
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


def test_a_picture_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("no\nfont")

    monkeypatch.setattr("autolora_trainer.report.findings.save_rank_heatmap", fail)
    save_findings(roberta(), tmp_path, 96)
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.json"]
    assert "rank_heatmap was not drawn: no font" in caplog.text


def test_files_need_no_window_system(tmp_path):
    """MPLBACKEND as a user has it for other programs."""
    code = (
        "import os; from tests.helpers.ranks import roberta; from autolora_trainer.report.heatmap import "
        f"save_rank_heatmap; save_rank_heatmap(roberta(), {str(tmp_path)!r}); assert os.environ['MPLBACKEND'] == 'no'"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": "no"}, cwd=ROOT, check=True)
    assert len(list(tmp_path.iterdir())) == 2
