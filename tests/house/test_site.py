"""Do pages, docstrings and parsers make a site, without a warning and without network, and does its notebook run?"""

import doctest
import html
import importlib
import json
import re
from pathlib import Path

import pytest

import autolora_trainer
from autolora_trainer.commands.arguments import ARGUMENTS, parser
from autolora_trainer.usage import name_of
from tests.helpers.commands import ROOT

pytest.importorskip("mkdocs")
HOOKS = ("arguments", "formulas", "links", "navigation", "quickstart", "sections")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder. A link or an anchor that leads nowhere, a page that the index does not name and a
    docstring that cannot be read are warnings, and end the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(Path(ROOT, "mkdocs.yml")), site_dir=str(folder), strict=True)
    build(config)
    return folder


def page(site, name):
    return (site / name).read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30 and (site / "search" / "search_index.js").is_file()
    loaded = r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"'
    assert {path.name: found for path in pages if (found := re.findall(loaded, path.read_text("utf-8")))} == {}


def test_every_public_name_has_its_entry(site):
    shown = page(site, "reference/python.html")
    entries = set(re.findall(r'id="autolora_trainer\.(\w+)"', shown))
    assert entries == set(autolora_trainer.__all__) - {"__version__"}
    text = re.sub(r"<pre.*?</pre>", "", shown, flags=re.DOTALL)
    assert text.count("Raises:</span>") > 5 and not re.search(r"<p>[^<]*\b(?:Args|Returns|Raises|Example):", text)


def test_every_argument_has_its_row(site, monkeypatch):
    shown = html.unescape(page(site, "reference/autolora.html") + page(site, "reference/scripts.html"))
    monkeypatch.syspath_prepend(str(Path(ROOT, "docs", "hooks")))
    arguments = importlib.import_module("arguments")
    parsers = [arguments.parser_of("autolora", verb) for verb in ARGUMENTS]
    parsers += [arguments.parser_of(script) for script in ("run_glue", "run_ner", "run_nlg")]
    rows = {name_of(action) for each in parsers for actions in each.groups().values() for action in actions}
    assert len(rows) > 100
    assert {row for row in rows if f"<code>{row}</code>" not in shown} == set()
    verbs = next(action for action in parser()._actions if action.dest == "command")
    assert set(re.findall(r'<h2 id="autolora-(\w+)"', shown)) == set(verbs.choices)


def test_formulas_are_drawn_without_a_script(site):
    shown, source = page(site, "explanation/how_it_works.html"), Path(ROOT, "docs/explanation/how_it_works.md")
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", source.read_text("utf-8"), re.DOTALL)
    assert shown.count("<math ") == len(formulas) > 30
    assert "arithmatex" not in shown and "\\_" not in shown


def test_every_link_leads_to_a_file(site):
    shown = page(site, "contributing.html")
    paths = {path for path in re.findall(r'href="(repository/[^"#]+)"', shown)}
    assert len(paths) > 20 and all((site / path).is_file() for path in paths)
    missing = {}
    for path in set(site.rglob("*.html")) - {site / "404.html"}:
        targets = re.findall(r'(?:href|src|srcset)="([^":#?]+)[#"]', path.read_text("utf-8"))
        missing |= {f"{path.name}: {target}": 0 for target in targets if not (path.parent / target).exists()}
    assert set(missing) == set()
    source = "autolora_trainer/lora/parts.py"
    assert (site / f"repository/{source}.txt").read_text("utf-8") == Path(ROOT, source).read_text("utf-8")


@pytest.mark.parametrize("name", HOOKS)
def test_examples_of_the_hooks(site, name, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(ROOT, "docs", "hooks")))
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_notebook_runs(site, tmp_path, monkeypatch):
    notebook = json.loads(page(site, "quickstart.ipynb"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    monkeypatch.chdir(tmp_path)
    program = "\n".join(cells)
    short = {"[1600, 400, 400]": "[48, 24, 24]", "max_steps=100": "max_steps=2", "batch_size=16": "batch_size=8"}
    for long, few in {**short, "lora, args=args": "lora, search_steps=9, args=args"}.items():
        assert program.count(long) == 1
        program = program.replace(long, few)
    names = {"__name__": "__main__"}
    exec(compile(program, "quickstart.ipynb", "exec"), names)
    assert names["config"].rank_pattern and (tmp_path / "small" / "adapter_model.safetensors").is_file()
