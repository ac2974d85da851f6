"""Does the page of a run show what was found, and can nothing in it run, or be fetched?"""

import re
from html.parser import HTMLParser

import pytest

from autolora_trainer.drawing import PALETTE, luminance, rgb
from autolora_trainer.ranks.curve import Curve, CurvePoint
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.report.page import PAGE_FILE, UNDECIDED, save_page

EMPTY_TAGS = {"meta", "br"}
POINTS = (CurvePoint(0, 0, 2.5), CurvePoint(3, 96, 1.03, 0.01), CurvePoint(6, 192, 1.0))


class Page(HTMLParser):
    """What a browser would make of it: tags, attributes, cells, text; that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.text = [], set(), set(), [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open += [tag] if tag not in EMPTY_TAGS else []
        self.tags.add(tag)
        self.attributes |= {(name, value) for name, value in attributes}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.attributes |= set(attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text
        if "style" not in self.open:
            self.text += text


def written(folder, ranks, size=96, **more):
    save_page(folder, ranks, size, **more)
    return (folder / PAGE_FILE).read_text(encoding="utf-8")


def found(**changes):
    modules = {f"h.{i}.{p}": ModuleRank(i, (), (0.1 * i, 0.02)) for i in range(3) for p in ("up", "down")}
    curve = Curve(POINTS, 3, changes.pop("decided", True), 0.05)
    return LearnedRanks(**{"modules": modules, "base_model": "org/base", "curve": curve, **changes})


def test_a_page_shows_curve_grid_tables_and_commands(tmp_path):
    (tmp_path / "adapter_config.json").touch()
    tables = {"Scores": (["method", "accuracy"], [["uniform", "0.5"], ["learned", "0.75"]])}
    others = {"Compressed": (found(modules={"h.0.up": ModuleRank(7)}, curve=None), 16)}
    page = Page(written(tmp_path, found(), tables=tables, command="autolora demo", others=others))
    assert page.tags >= {"svg", "table", "h1", "pre"}
    for row in (["96", "1.0300", "98 %"], ["up", "0", "1", "2"], ["learned", "0.75"], ["up", "7"]):
        assert row in page.rows
    for text in ("within 5 % of the gain", "4 of 6", "Scores", "Compressed", "autolora compress .", "autolora demo"):
        assert text in page.text
    (tmp_path / "adapter_config.json").unlink()
    page = Page(written(tmp_path, found(decided=False), 0))
    assert UNDECIDED in page.text and "autolora compress" not in page.text


def test_nothing_in_it_runs_or_is_fetched_whatever_names_hold(tmp_path):
    evil = "</title></style><script src='https://x.example/a.js'>\x1b</script>"
    ranks = found(base_model=evil, modules={"a'><img src=x onerror=y>\x1b.0.q": ModuleRank(1)})
    tables = {evil: ([evil], [[evil]])}
    text = written(tmp_path, ranks, tables=tables, command=evil, others={evil: (ranks, 1)})
    page = Page(text)
    assert not page.tags & {"script", "img", "link", "iframe", "object", "image", "a", "form"} and "\x1b" not in text
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on")] and not names & {"src", "href", "srcset", "action"}
    assert {value[0] for name, value in page.attributes if name == "xlink:href"} == {"#"}
    assert not re.search(r"@import|url\((?!#)", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_it_follows_light_and_dark(tmp_path):
    text = written(tmp_path, found())
    head, body = text.split("<body>")
    assert "prefers-color-scheme: dark" in head and not re.findall(r"#[0-9a-f]{6}\b", body)
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= set(PALETTE) and {"ink", "accent", "band", "paper"} <= set(re.findall(r"var\(--(\w+)\)", body))


@pytest.mark.parametrize("ground", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(ground):
    """WCAG 2 asks for a contrast of 4.5."""
    light = {name: luminance([part / 255 for part in rgb(both[ground])]) + 0.05 for name, both in PALETTE.items()}
    for name in ("ink", "faint", "accent"):
        assert max(light[name], light["paper"]) / min(light[name], light["paper"]) >= 4.5, name
