"""Do ranks come back from their file as they went, and is a malformed one refused in one line?"""

import json
import math
import re
import typing
from html.parser import HTMLParser

import pytest

from autolora_trainer.ranks.curve import Curve, CurvePoint
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from tests.helpers.ranks import learned


def test_readers_say_what_they_give():
    for read in (LearnedRanks.load, LearnedRanks.from_pretrained):
        assert typing.get_type_hints(read)["return"] is LearnedRanks


def test_json_round_trip_is_exact(tmp_path):
    ranks = learned({"a.0.query": 3, "a.0.value": 0})
    ranks.save(tmp_path / "ranks.json")
    document = json.loads((tmp_path / "ranks.json").read_text())
    assert LearnedRanks.load(tmp_path / "ranks.json") == ranks
    assert document["format_version"] == 2 and document["total_rank"] == 3 and document["curve"] is None
    assert document["modules"]["a.0.query"] == {"rank": 3, "selection": [0.5, 0.5], "contributions": []}


def test_contributions_and_curve_survive_a_round_trip(tmp_path):
    points = (CurvePoint(0, 0, 2.5, 0.1), CurvePoint(3, 96, 1.25, 0.01), CurvePoint(6, 192, 1.0))
    modules = {"a.0.query": ModuleRank(1, (0.5, 0.5), (1.0, -0.25)), "a.0.value": ModuleRank(0, (), (0.125, 0.0))}
    ranks = LearnedRanks(modules, rank_rule="contributions", curve=Curve(points, 3, True, 0.01, 400))
    ranks.save(tmp_path / "ranks.json")
    assert LearnedRanks.load(tmp_path / "ranks.json") == ranks
    assert ranks.curve.gain == 1.5 and ranks.curve.best == points[2] and ranks.mean_rank == 1
    assert ranks.curve.size == 96 and ranks.curve.bits == pytest.approx(600 / math.log(2))
    assert ranks.curve.load(96) == pytest.approx(600 / math.log(2) / 192)


def test_format_1_is_still_read(tmp_path):
    text = '{"format_version": 1, "total_rank": 2, "modules": {"a.q": {"rank": 2, "selection": [0.5, 0.5]}}}'
    (tmp_path / "ranks.json").write_text(text)
    assert LearnedRanks.load(tmp_path / "ranks.json") == LearnedRanks({"a.q": ModuleRank(2, (0.5, 0.5))})


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not a ranks.json"),
        ("[]", "format_version must be 1 or 2, got 'list'"),
        ('{"format_version": 3}', "format_version must be 1 or 2, got 3"),
        ('{"format_version": 1, "modules": {}}', "at least one module name"),
        ('{"format_version": 1, "modules": {"../x": {"rank": 1}}}', "'../x' is not a module name"),
        ('{"format_version": 1, "modules": {"(a+)+": {"rank": 1}}}', "is not a module name"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1.5}}}', "must be an integer from 0 to 4096, got 1.5"),
        ('{"format_version": 1, "modules": {"q": {"rank": true}}}', "must be an integer"),
        ('{"format_version": 1, "modules": {"q": {"rank": 99999999}}}', "must be an integer from 0 to 4096"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1, "selection": [NaN]}}}', "NaN, which is no number"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1, "selection": [1e999]}}}', "must hold finite numbers"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1}}, "initial_rank": 0}', "initial_rank must be an integer"),
        (
            '{"format_version": 2, "modules": {"q": {"rank": 1, "contributions": 1}}}',
            "contributions of 'q' must be a list",
        ),
        ('{"format_version": 2, "modules": {"q": {"rank": 1}}, "curve": []}', "curve must be an object with points"),
        (
            '{"format_version": 2, "modules": {"q": {"rank": 1}}, "curve": {"points": [1]}}',
            "a point of the curve must",
        ),
        ("[" * 100_000, "is not a ranks.json"),
    ],
)
def test_malformed_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "ranks.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        LearnedRanks.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


class Cells(HTMLParser):
    """What a browser would show of a table: (text, title) of its cells, and every tag and attribute in it."""

    def __init__(self):
        super().__init__()
        self.cells, self.seen = [], set()

    def handle_starttag(self, tag, attributes):
        self.seen |= {tag, *(name for name, _ in attributes)}
        if tag == "td":
            self.cells.append(["", dict(attributes).get("title")])

    def handle_data(self, text):
        if self.cells and text.strip().isdigit():
            self.cells[-1][0] = text


def test_a_notebook_shows_the_grid_without_script_or_network():
    modules = {f"h.{i}.{p}": ModuleRank(i + (p == "v"), (), (0.1 * i, 0.02)) for i in range(40) for p in ("q", "v")}
    ranks = LearnedRanks({**modules, "odd'<b>name": ModuleRank(1)})
    shown = ranks._repr_mimebundle_()
    assert shown["text/plain"] == str(ranks)
    parser = Cells()
    parser.feed(shown["text/html"])
    titles = {title: text for text, title in parser.cells if title}
    assert len(titles) == 81 and titles["h.7.v: rank 8, 0.5% of the held-out gain"] == "8"
    assert "odd'<b>name: rank 1, 0.0% of the held-out gain" in titles
    assert parser.seen <= {"div", "table", "tr", "th", "td", "br", "p", "style", "title"}
    frame = ranks.to_pandas()
    assert list(frame.columns) == ["module", "rank", "contribution"] and frame["rank"].sum() == ranks.total_rank
    assert frame["contribution"][3] == pytest.approx(0.12) and frame["contribution"].isna().sum() == 1
