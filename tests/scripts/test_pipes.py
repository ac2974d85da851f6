"""Pipes and devices for files, and files that are too wide: refused in one line, in seconds."""

import json
import os
import shutil
import signal

import pytest

import run_glue
import run_ner
from autolora_trainer.commands import cli
from autolora_trainer.errors import run_guarded
from tests.helpers.commands import command
from tests.helpers.rows import write_rows


@pytest.fixture(autouse=True)
def in_seconds():
    """An alarm, which would end what waits for a writer."""
    before = signal.signal(signal.SIGALRM, lambda *given: pytest.fail("it waits"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(capsys, main, argv, *says, status=2):
    assert run_guarded(lambda: main(argv), "prog") == status
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in says), line


@pytest.mark.parametrize("name", ["train_file", "validation_file", "test_file", "ranks", "config"])
def test_a_pipe_for_a_file_is_refused(place, tmp_path, capsys, name):
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    argv = command(place, tmp_path / "o", **{name: pipe})
    refused(capsys, run_glue.main, argv, "rows.jsonl", "it is a pipe (FIFO), not a file")
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_folder_of_a_model_is_refused(place, tmp_path, capsys, file):
    shutil.copytree(place / "tiny-roberta", tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    os.mkfifo(tmp_path / "model" / file)
    argv = command(place, tmp_path / "o", model_name_or_path=tmp_path / "model")
    refused(capsys, run_glue.main, argv, "it is a pipe (FIFO), not a file", "--model_name_or_path")
    refused(capsys, cli.main, ["show", str(tmp_path / "model" / file)], "it is a pipe (FIFO), not a file")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_a_hundred_thousand_columns_are_refused(place, tmp_path, capsys, ending):
    names = [f"c{number}" for number in range(100_000)]
    rows = {"jsonl": json.dumps(dict.fromkeys(names, 1)), "csv": ",".join(names), "tsv": "\t".join(names)}
    path = tmp_path / f"rows.{ending}"
    path.write_text(rows[ending] + "\n" + rows[ending] + "\n")
    says = "has 100,000 columns, and at most 1,000 are read"
    refused(capsys, run_glue.main, command(place, tmp_path / "o", train_file=path), says)
    if ending != "tsv":
        model = str(place / "tiny-roberta")
        refused(capsys, cli.main, ["find", model, str(path), "--output_dir", str(tmp_path / "found")], says)


def test_ten_thousand_kinds_of_entities_are_refused(place, tmp_path, capsys):
    rows = [{"tokens": ["good", "film"], "tags": [f"B-{number}", "O"]} for number in range(10_000)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    argv = ["--train_file", path, "--model_name_or_path", str(place / "tiny-roberta"), "--output_dir", str(tmp_path)]
    refused(capsys, run_ner.main, argv, "name 10,000 kinds of entities, as 0, 1; at most 1,000 are taken")


def test_a_million_classes_are_refused(place, tmp_path, capsys):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "good", "label": label} for label in (0, 999_999)] * 8)
    argv = ["find", str(place / "tiny-roberta"), path, "--output_dir", str(tmp_path / "found")]
    refused(capsys, cli.main, argv, "label of", "goes up to 999,999, and at most 10,000 classes are taken")
