"""Is everything that the package reads in its wheel, and do metadata, templates and install lines say what is so?"""

import configparser
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from autolora_trainer.commands.arguments import parser
from autolora_trainer.version import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "autolora_trainer"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.fixture(scope="module")
def settings():
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg", encoding="utf-8")
    return read


def lines(text):
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def other_files():
    """The files of the package that hold no program."""
    paths = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(PACKAGE).as_posix() for path in paths if path.suffix not in (".py", ".pyc")}


def test_package_data_are_all_files_that_are_no_programs(settings):
    patterns = lines(settings["options.package_data"]["autolora_trainer"])
    matched = {
        pattern: {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob(pattern)} for pattern in patterns
    }
    assert set().union(*matched.values()) == other_files() and all(matched.values())
    assert {"py.typed", "sample/encoder/model.safetensors", "hub/templates/model_card.md"} <= other_files()


def test_setuptools_would_put_them_and_the_scripts_into_a_wheel(settings, monkeypatch):
    dist = pytest.importorskip("setuptools").Distribution({"script_name": "setup.py"})
    monkeypatch.chdir(ROOT)
    dist.parse_config_files([str(ROOT / "setup.cfg")])
    build = dist.get_command_obj("build_py")
    build.ensure_finalized()
    made = {Path(path).relative_to(build.build_lib).as_posix() for path in build.get_outputs(include_bytecode=False)}
    programs = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    scripts = {path.name for path in ROOT.glob("run_*.py")}
    assert made == programs | scripts | {f"autolora_trainer/{name}" for name in other_files()}
    assert dist.metadata.version == __version__ and dist.metadata.license_expression == "Apache-2.0"


def test_autolora_runs_what_is_installed(settings):
    group, line = "console_scripts", lines(settings["options.entry_points"]["console_scripts"])[0]
    name, _, value = line.partition(" = ")
    assert name == "autolora" and callable(EntryPoint(name, value, group).load())
    verbs = next(action for action in parser()._actions if action.dest == "command")
    choices = next(action for action in verbs.choices["run"]._actions if action.dest == "script").choices
    assert {f"run_{choice}" for choice in choices} == set(settings["options"]["py_modules"].split(", "))
    assert "autolora demo" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_extras_are_spelled_in_one_way_and_exist(settings):
    extras = {name: lines(value) for name, value in settings["options.extras_require"].items()}
    others = {needed for name, needs in extras.items() if name != "dev" for needed in needs}
    inner = [name.removeprefix("autolora_trainer[").removesuffix("]") for name in extras["dev"]]
    assert others <= set(extras["dev"]).union(*(extras.get(name, ()) for name in inner))
    paths = [*PACKAGE.rglob("*.py"), *ROOT.glob("run_*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    found = set()
    for path in [*paths, *ROOT.glob("examples/*.py"), ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'"\.\[(\w+)\]"', text))
        assert not re.search(r"autolora_trainer\[\w+\]", text), path  # an index has no such package
    assert found == set(extras)


def test_metadata_name_no_address_that_is_not_there(settings):
    urls = dict(re.findall(r"^(.+) = (https://.+)$", settings["metadata"]["project_urls"], re.MULTILINE))
    assert urls == {"Paper": "https://arxiv.org/abs/2403.09113"}  # the project itself has no address yet
    minimum = settings["options"]["python_requires"].removeprefix(">=3.")
    assert f"Programming Language :: Python :: 3.{minimum}" in lines(settings["metadata"]["classifiers"])


def test_the_source_distribution_takes_files_that_exist():
    for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines():
        for name in line.split()[1:]:
            assert (ROOT / name).exists(), name


def test_citation_is_of_this_version_and_of_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__ and cited["cff-version"] == "1.2.0" and cited["license"] == "Apache-2.0"
    paper, readme = cited["preferred-citation"], (ROOT / "README.md").read_text(encoding="utf-8")
    bibtex = re.search(r"```bibtex\n(.*?)```", readme, re.DOTALL)[1].replace("{", "").replace("}", "")
    assert paper["title"] in bibtex and str(paper["year"]) in bibtex
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert authors in bibtex


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_as_their_host_reads_them(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "labels", "title", "body"}
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) >= 3
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"]
        assert set(part.get("validations", {})) <= {"required"}
    assert any(field.get("validations", {}).get("required") for field in fields)
