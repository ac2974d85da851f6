"""What the documentation says is so: commands parse, programs run, messages, files and headings exist."""

import ast
import contextlib
import dataclasses
import functools
import glob
import json
import os
import re
import shlex
from collections import defaultdict

import pytest
from accelerate.commands.launch import launch_command_parser
from peft import LoraConfig, get_peft_model
from torch.distributed.run import get_args_parser
from transformers import AutoModelForSequenceClassification

import run_glue
import run_ner
import run_nlg
from autolora_trainer.commands.arguments import parser
from autolora_trainer.ranks.curve import Curve, CurvePoint
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.runs.outputs import LOCAL_FILES, RESULT_FILES
from autolora_trainer.sample import encoder_path
from autolora_trainer.scripts.arguments import MethodArguments, ModelArguments, ScriptTrainingArguments
from autolora_trainer.training.cost import total_cost
from tests.helpers.commands import ROOT

PAGES = sorted(glob.glob(os.path.join(ROOT, "docs", "**", "*.md"), recursive=True))
SCRIPTS = {"run_glue.py": run_glue, "run_ner.py": run_ner, "run_nlg.py": run_nlg}
OTHERS = ("vllm", "tensorboard", "git", "make", "pip", "cd", "export")  # programs that are not ours


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def name_of(path):
    return os.path.relpath(path, ROOT)


README_AND_PAGES = [*PAGES, os.path.join(ROOT, "README.md")]
every_page = pytest.mark.parametrize("page", README_AND_PAGES, ids=name_of)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)


# ---- links


def headings(path):
    """The anchors that GitHub gives the headings of a page."""
    lines = re.sub(r"^```.*?^```", "", read(path), flags=re.DOTALL | re.MULTILINE).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        path = os.path.join(os.path.dirname(page), path) if path else page
        assert os.path.exists(path), target
        assert not anchor or anchor in headings(path), target


def test_the_index_names_every_page():
    """In a row of a table, of which the site makes its navigation."""
    named = re.findall(r"^\| \[[^][]+\]\(([\w/]+\.md)\)", read("docs/README.md"), re.MULTILINE)
    assert sorted(named) == sorted(
        {os.path.relpath(page, os.path.join(ROOT, "docs")) for page in PAGES} - {"README.md"}
    )


def test_every_configuration_of_accelerate_is_described():
    named = set(re.findall(r"\(\.\./\.\./examples/accelerate/(\w+\.yaml)\)", read("docs/guides/multi_gpu.md")))
    assert named == set(os.listdir(os.path.join(ROOT, "examples", "accelerate")))


def test_the_page_of_files_names_every_file_and_field():
    named = set(re.findall(r"`([\w./-]+)`", read("docs/reference/files.md")))
    files = {name for name in (*RESULT_FILES, *LOCAL_FILES) if not name.startswith("predict_results_")}
    assert files - named == set()
    curve = Curve((CurvePoint(0, 0, 1.0), CurvePoint(1, 8, 0.5)), 1, True, 0.06)
    document = json.loads(LearnedRanks({"q": ModuleRank(1, (1.0,), (0.5,), experts=2)}, curve=curve).to_json())
    inner = [*document["modules"].values(), document["curve"], *document["curve"]["points"]]
    fields = {
        *document,
        *(name for part in inner for name in part),
        *total_cost({"search": defaultdict(int)}, "")["total"],
    }
    assert fields - named == set()


# ---- commands


def commands(page):
    """The command lines of a page's shell blocks, as words."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to be in, with what commands read, and scripts that stop once they have parsed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("task_name: sample\n")
    for script in SCRIPTS.values():
        monkeypatch.setattr(script, "execute", lambda application, *groups: {})
    return tmp_path


@contextlib.contextmanager
def ends_well():
    """Inside, `--help` may end the program."""
    try:
        yield
    except SystemExit as end:
        assert not end.code


@every_page
def test_commands_parse(page, place):
    for words in commands(page):
        if words[0] in OTHERS:
            continue
        at = next((i for i, word in enumerate(words) if word in SCRIPTS), None)
        if words[0] == "accelerate":
            launched = launch_command_parser().parse_args([word.replace("$", "") for word in words[2:]])
            assert launched.config_file is None or os.path.exists(os.path.join(ROOT, launched.config_file)), words
        elif words[0] == "torchrun":
            get_args_parser().parse_args(words[1:])
        elif words[0] == "autolora":
            with ends_well():
                parser().parse_args(words[1:])
        elif at is None:
            assert words[0] == "python", words
            assert os.path.isfile(os.path.join(ROOT, words[1])), words
        if at is not None:
            with ends_well():
                SCRIPTS[words[at]].main(words[at + 1 :])  # raises for an argument that is not there, or cannot be so


def known_arguments():
    groups = (ModelArguments, run_nlg.NlgArguments, run_ner.NerDataArguments, MethodArguments, ScriptTrainingArguments)
    known = {f"--{field.name}" for group in groups for field in dataclasses.fields(group)} | {
        "--config",
        "--help",
        "--help_all",
    }
    known |= {option for action in launch_command_parser()._actions for option in action.option_strings}
    known |= {option for action in get_args_parser()._actions for option in action.option_strings}
    known |= {"--enable-lora", "--lora-modules", "--max-lora-rank", "--logdir"}  # vLLM's, TensorBoard's
    for path in [
        os.path.join(ROOT, "autolora_trainer", "commands", "arguments.py"),
        os.path.join(ROOT, "benchmarks", "lib", "sharing.py"),
        *glob.glob(os.path.join(ROOT, "benchmarks", "*.py")),
        *glob.glob(os.path.join(ROOT, "examples", "*.py")),
    ]:
        known |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', read(path)))
    return known | set(re.findall(r'(--[\w-]+)"', read("Makefile")))


@every_page
def test_every_argument_in_the_text_exists(page):
    mentioned = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*(?![\w…-])", re.sub(r"https?://\S+", "", read(page))))
    assert mentioned - known_arguments() == set()


# ---- programs


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_programs_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(encoder_path())
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    get_peft_model(base, config).save_pretrained("outputs/sample-autolora")
    for program in blocks(page, "python"):
        exec(compile(program, name_of(page), "exec"), {"__name__": "docs"})


# ---- messages


def table_rows(text, columns):
    """The rows of a page's tables whose first cell is code, as their cells."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == columns:
            yield cells


def literal(node):
    """A string expression with … for what is put in; None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(value) if isinstance(value, ast.Constant) else "…" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (literal(node.left) or "…") + (literal(node.right) or "…")
    return None


@functools.cache
def messages_of_the_code():
    """Every string of the package and the scripts that is no docstring."""
    paths = glob.glob(os.path.join(ROOT, "autolora_trainer", "**", "*.py"), recursive=True)
    nodes = [node for path in [*paths, *SCRIPTS] for node in ast.walk(ast.parse(read(path)))]
    documentation = {node.value for node in nodes if isinstance(node, ast.Expr)}
    return {literal(node) for node in nodes if node not in documentation} - {None}


def says(message, headline):
    """Whether the fixed parts of a headline stand in a message in their order."""
    end = 0
    for part in headline.split("…"):
        start = message.find(part.strip(), end)
        if start < 0:
            return False
        end = start + len(part.strip())
    return True


def test_every_message_of_the_troubleshooting_page_is_in_the_code():
    page = read("docs/troubleshooting.md").partition("## Messages")[2]
    headlines = [cells[0][1:-1] for cells in table_rows(page, 2)]
    assert len(headlines) > 80 and len(set(headlines)) == len(headlines)
    code = messages_of_the_code()
    assert [line for line in headlines if not any(says(message, line) for message in code)] == []


def test_a_message_that_was_changed_would_be_seen():
    code = {"--ranks … does not fit …: …. Give ranks that were learned on this model"}
    assert any(says(message, "--ranks … does not fit …") for message in code)
    assert not any(says(message, "--ranks … fits not …") for message in code)


# ---- what goes with what

STATE = re.compile(r"(tested|refused|left out|not run) (.+)")


def states_by_number(tables):
    """{number: states} of the cells of tables."""
    lines, found = tables.splitlines(), defaultdict(set)
    for line, after in zip(lines, [*lines[1:], ""]):
        if not line.startswith("| ") or line.startswith("| ---") or after.startswith("| ---"):
            continue
        for cell in filter(lambda cell: cell != "–", line.strip("| ").split(" | ")[1:]):
            state, numbers = STATE.fullmatch(cell).groups()
            for number in re.findall(r"\d+", re.sub(r"\(.*?\)", "", numbers)):
                found[number].add(state)
    return found


def test_what_goes_with_what_is_tested_or_refused_as_it_says():
    tables, _, notes = read("docs/reference/compatibility.md").partition("## By number")
    notes = dict(re.findall(r"^(\d+)\. (.*(?:\n    .*)*)", notes, re.MULTILINE))
    states, code = states_by_number(tables), messages_of_the_code()
    assert states.keys() == notes.keys() and len(notes) > 30
    for number, note in notes.items():
        (state,) = states[number]
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", note)
        assert [name for path, name in named if not re.search(rf"^def {name}\(", read(path), re.MULTILINE)] == []
        assert named or state != "tested", number
        quoted = [text for text in re.findall(r"`([^`]+)`", note) if " " in text]
        if state in ("refused", "left out"):
            assert quoted and all(any(says(message, text) for message in code) for text in quoted), number
