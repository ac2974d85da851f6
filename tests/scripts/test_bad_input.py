"""Every mistake of `mistakes` gets one line and its exit status, and leaves every file as it was."""

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import run_glue
import run_ner
import run_nlg
from autolora_trainer.commands import cli
from autolora_trainer.errors import run_guarded
from tests.helpers.commands import ROOT, as_argv
from tests.helpers.models import byte_gpt2, byte_tokenizer, tiny_checkpoint
from tests.helpers.rows import sentences, write_rows
from tests.scripts.mistakes.__init__ import TABLE
from tests.scripts.mistakes.cases import ENTITY, TEXT, File, Finished, Folder, Model, Ranks

SCRIPTS = {"glue": run_glue.main, "nlg": run_nlg.main, "ner": run_ner.main, "cli": cli.main}
PROGRAMS = {"glue": "run_glue.py", "nlg": "run_nlg.py", "ner": "run_ner.py", "cli": "autolora"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and good rows for each script, and a finished run of run_glue."""
    folder = tmp_path_factory.mktemp("place")
    for script in ("glue", "ner"):
        tiny_checkpoint(folder / script / "model")
    set_seed(0)
    byte_gpt2().save_pretrained(folder / "nlg" / "model")
    byte_tokenizer().save_pretrained(folder / "nlg" / "model")
    good = {"glue": sentences(8), "ner": [ENTITY, {"tokens": ["bad"], "tags": ["O"]}] * 4, "nlg": [TEXT] * 8}
    for script, rows in good.items():
        for split in ("train", "validation"):
            write_rows(folder / script / f"{split}.jsonl", rows)
    changes = {"output_dir": folder / "finished", "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    run_glue.main(as_argv({**command(folder, "glue"), **changes}))
    (folder / "finished" / "mine.txt").write_text("kept")
    return folder


def command(place, script):
    """A command that works, as {argument: value}; its search has one step."""
    settings = {
        "task_name": {"glue": "sst2", "ner": "ner", "nlg": "nlg"}[script],
        "model_name_or_path": place / script / "model",
        "train_file": place / script / "train.jsonl",
        "validation_file": place / script / "validation.jsonl",
        "max_seq_length": 32,
        "initial_rank": 4,
        "search_max_steps": 2,
        "hypergradient_interval": 1,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return {**settings, **({"decode": False} if script == "nlg" else {})}


def made(value, place, folder, script, name):
    """An argument of the table as it is typed; its files are made in `folder`."""
    if isinstance(value, Ranks):
        value = File("ranks.json", value.content())
    if isinstance(value, File):
        path = folder / name / value.name
        write(path, value.content)
    elif isinstance(value, Folder):
        path = folder / name / value.name
        path.mkdir(parents=True)
        for file, content in value.files.items():
            write(path / file, content)
    elif isinstance(value, (Model, Finished)):
        path = folder / name / ("run" if isinstance(value, Finished) else "model")
        source = place / "finished" if isinstance(value, Finished) else place / (value.of or script) / "model"
        shutil.copytree(source, path)
        for file, change in value.changes.items():
            if change is None:
                (path / file).unlink()
            else:
                write(path / file, change((path / file).read_bytes()) if callable(change) else change)
    else:
        return value
    return path / value.inside if getattr(value, "inside", "") else path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def contents(folder):
    """{path: content} of everything below a folder; of a folder the content is None."""
    paths = sorted(Path(folder).rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def said(capsys, caplog, recwarn):
    """What the user sees on stderr: a function that gives its lines, those of loggers and warnings included."""
    transformers_logging.enable_propagation()
    yield lambda: [
        *capsys.readouterr().err.splitlines(),
        *(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING),
        *(str(warning.message) for warning in recwarn.list),
    ]
    transformers_logging.disable_propagation()


def typed(bad, place, folder):
    """The row's command line, and whether it says itself where files go."""
    if bad.script == "cli":
        return [str(made(value, place, folder, None, f"argument{i}")) for i, value in enumerate(bad.given)], True
    given = {name: made(value, place, folder, bad.script, name) for name, value in bad.given.items()}
    if given.get("ranks") == "output_dir/ranks.json":
        given["ranks"] = given["output_dir"] / "ranks.json"
    more = given.pop("argv", [])
    return as_argv({**command(place, bad.script), **given}) + more, "output_dir" in given


def fits(says, line):
    """Whether the parts of `says` between its … stand in the line, in order."""
    return re.search(".*".join(map(re.escape, says.split("…"))), line) is not None


def check_one_line(said, bad, argv, folder):
    """Run a row: one line, status 2, and every file below `folder` as it was."""
    before = contents(folder)
    status = run_guarded(lambda: SCRIPTS[bad.script](argv), PROGRAMS[bad.script])
    lines = said()
    assert len(lines) == 1 and lines[0].startswith(f"{PROGRAMS[bad.script]}: error: "), lines
    assert fits(bad.says, lines[0]), lines[0]
    assert status == 2 and contents(folder) == before


TYPED = [bad for bad in TABLE if bad.script != "library"]
IN_PYTHON = [bad for bad in TABLE if bad.script == "library"]


@pytest.mark.parametrize("bad", TYPED, ids=[bad.what for bad in TYPED])
def test_bad_input_gets_one_line_and_status_2_and_changes_no_file(place, tmp_path, monkeypatch, said, bad):
    monkeypatch.chdir(tmp_path)
    argv, has_place = typed(bad, place, tmp_path)
    if has_place:
        check_one_line(said, bad, argv, tmp_path)
        return
    shutil.copytree(place / "finished", tmp_path / "out")  # an earlier run, and a file of the user's own
    check_one_line(said, bad, [*argv, "--output_dir", str(tmp_path / "out"), "--overwrite"], tmp_path)


@pytest.mark.parametrize("bad", TYPED[::10], ids=[bad.what for bad in TYPED[::10]])
def test_bad_input_makes_no_folder(place, tmp_path, monkeypatch, said, bad):
    monkeypatch.chdir(tmp_path)
    argv, has_place = typed(bad, place, tmp_path)
    check_one_line(said, bad, argv if has_place else [*argv, "--output_dir", str(tmp_path / "out")], tmp_path)


@pytest.mark.parametrize("bad", IN_PYTHON, ids=[bad.what for bad in IN_PYTHON])
def test_bad_input_in_python_is_a_value_error_of_one_line(tmp_path, bad):
    with pytest.raises(ValueError) as error:
        bad.given(tmp_path)
    assert len(str(error.value).splitlines()) == 1 and fits(bad.says, str(error.value))


def test_table_has_two_hundred_rows_of_different_names():
    names = [bad.what for bad in TABLE]
    assert len(names) >= 200 and len(set(names)) == len(names)


def test_table_begins_with_commands_that_work(place, tmp_path):
    """Rows change one thing in these; without the change nothing is wrong with them."""
    for script in ("ner", "nlg"):  # that of glue has made the finished run
        settings = {**command(place, script), "output_dir": tmp_path / script, "method": "lora", "max_steps": 1}
        SCRIPTS[script](as_argv(settings))
        assert (tmp_path / script / "adapter_model.safetensors").is_file()


def test_a_process_of_its_own_says_the_same_and_nothing_else(place, tmp_path):
    bad = next(bad for bad in TABLE if bad.what == "ranks of another model")
    argv, _ = typed(bad, place, tmp_path)
    script = Path(ROOT) / PROGRAMS[bad.script]
    argv = [sys.executable, str(script), *argv, "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert len(done.stderr.splitlines()) == 1 and fits(bad.says, done.stderr)


# ---- failures while running: status 1


def full_disk(monkeypatch, name):
    """From now on no file of this name can be put in its place."""
    replace = os.replace

    def replace_unless_full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", replace_unless_full)


def full_disk_for_tensors(monkeypatch, name):
    def save_file(*args, **kwargs):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    monkeypatch.setattr("peft.peft_model.safe_save_file", save_file)


@pytest.mark.parametrize(
    "fill, name",
    [
        (full_disk, "run.json"),
        (full_disk, "ranks.json"),
        (full_disk_for_tensors, "adapter_model.safetensors"),
        (full_disk, "all_results.json"),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    place, tmp_path, monkeypatch, capsys, fill, name
):
    (tmp_path / "mine.txt").write_text("kept")
    method = "autolora" if name == "ranks.json" else "lora"
    argv = as_argv({**command(place, "glue"), "output_dir": tmp_path, "max_steps": 1, "method": method})
    with monkeypatch.context() as patch:
        fill(patch, name)
        assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and fits(
        "run_glue.py: error: …No space left on device…Free some space, then type the same command with "
        "--resume_from_checkpoint to go on.",
        lines[0],
    )
    assert not (tmp_path / name).exists() and not list(tmp_path.rglob("*.tmp"))
    run_glue.main([*argv, "--resume_from_checkpoint"])
    assert (tmp_path / name).is_file() and (tmp_path / "mine.txt").read_text() == "kept"
