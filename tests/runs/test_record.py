"""Is pushed what a run wrote, and nothing that lies there under its names?"""

import json
import os
import re

import pytest

import run_glue
from autolora_trainer.errors import run_guarded
from autolora_trainer.hub.push import PushError, push_to_hub
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.runs.outputs import RECORD_FILE
from autolora_trainer.runs.record import RecordError, recorded, seen, staged, write_record
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import sst2_command
from tests.helpers.faults import interrupt

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"
NOTE = {"command": "x", "version": "1", "settings": {}}


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run, and a private key beside it."""
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "o").mkdir()
    folder = RunFolder(str(tmp_path / "o"))
    with folder.claim(NOTE):
        folder.clear()
        for name in ("labels.json", "adapter_config.json", "tokenizer.json", "my_notes.txt", "training_args.bin"):
            (tmp_path / "o" / name).write_text(name)
        folder.publish({"eval_accuracy": 0.5})
    return tmp_path / "o"


def contents(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_a_run_records_what_it_wrote(run):
    pushed = {"all_results.json", "labels.json", "adapter_config.json", "tokenizer.json"}
    with staged(run) as place:
        assert set(os.listdir(place)) == pushed and os.stat(place).st_mode & 0o77 == 0
        assert json.loads((run / "all_results.json").read_text()) == {"eval_accuracy": 0.5}
    before = os.listdir(run)
    with pytest.raises(ZeroDivisionError), staged(run):
        1 / 0
    assert os.listdir(run) == before


def test_what_lay_there_before_is_not_the_run_s(tmp_path):
    for name in ("tokenizer.json", "vocab.txt", "README.md"):
        (tmp_path / name).write_text("another's")
    before = seen(tmp_path)
    (tmp_path / "README.md").write_text("the run's")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("the run's")
    write_record(tmp_path, before)
    assert set(recorded(tmp_path)) == {"README.md", "model-00001-of-00002.safetensors"}


def test_a_run_that_went_on_pushes_what_one_in_one_go_does(place, tmp_path, monkeypatch):
    """What was written before it was interrupted, too."""
    settings = {"search_max_steps": 8, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    argv = [sst2_command(place, tmp_path / name, **settings) for name in ("a", "b")]
    run_glue.main(argv[0])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, FinalTrainer, 3)
        run_glue.main(argv[1])
    assert (tmp_path / "b" / "ranks.json").exists()
    run_glue.main([*argv[1], "--resume_from_checkpoint"])
    assert recorded(tmp_path / "b").keys() == recorded(tmp_path / "a").keys() >= {"ranks.json", "README.md"}


@pytest.mark.parametrize("name", ["labels.json", "all_results.json", "adapter_config.json"])
@pytest.mark.parametrize("how", ["link", "hard link", "other text", "fifo", "folder", "gone"])
def test_what_has_taken_the_place_of_a_file_is_not_pushed(run, name, how):
    (run / name).unlink()
    key = run.parent / "key"
    {
        "link": lambda: (run / name).symlink_to(key),
        "hard link": lambda: os.link(key, run / name),
        "other text": lambda: (run / name).write_text(KEY),
        "fifo": lambda: os.mkfifo(run / name),
        "folder": lambda: (run / name).mkdir(),
        "gone": lambda: None,
    }[how]()
    with pytest.raises(PushError, match=re.escape(f"{run / name} is not the file that the run wrote")):
        push_to_hub(run, "me/x", endpoint="http://127.0.0.1:9")  # nothing is asked of it
    assert not [path for path in os.listdir(run) if path.endswith(".tmp")]


@pytest.mark.parametrize("content", ["{", "[]", '{"files": {"../key": {"bytes": 1, "sha256": ""}}}', '{"files": []}',
                                     '{"files": {"labels.json": null}}', None])  # fmt: skip
def test_a_record_of_another_shape_is_none(run, content):
    (run / RECORD_FILE).unlink()
    if content is None:
        (run.parent / "record").write_text('{"files": {}}')
        (run / RECORD_FILE).symlink_to(run.parent / "record")
    else:
        (run / RECORD_FILE).write_text(content)
    with pytest.raises(RecordError, match=f"{RECORD_FILE} is damaged, and only what it names is pushed"):
        recorded(run)


def test_scores_are_added_to_nothing_but_the_run_s_own(run):
    """Or a push would send the JSON that it leads to."""
    (run.parent / "credentials.json").write_text('{"private": "key"}')
    folder = RunFolder(str(run))
    folder.add_results({"eval_accuracy": 1.0})
    assert json.loads((run / "all_results.json").read_text()) == {"eval_accuracy": 1.0}
    with staged(run):
        pass
    for link in (os.symlink, os.link):
        (run / "all_results.json").unlink()
        link(run.parent / "credentials.json", run / "all_results.json")
        folder.add_results({"eval_accuracy": 0.0})
        assert json.loads((run / "all_results.json").read_text()) == {"private": "key"}
        with pytest.raises(RecordError, match="all_results.json is not the file that the run wrote"), staged(run):
            pass


def test_an_evaluation_pushes_no_folder_of_others(place, tmp_path, capsys):
    """Refused before anything is loaded."""
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "labels.json").symlink_to(tmp_path / "key")
    argv = sst2_command(
        place, tmp_path / "o", do_eval=True, push_to_hub=True, hub_model_id="me/x", base_model_id="a/b"
    )
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    line = capsys.readouterr().err
    assert f"o has no {RECORD_FILE}, the record of what a run wrote, and nothing else is pushed" in line
    assert line.count("\n") == 1 and os.listdir(tmp_path / "o") == ["labels.json"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json", ".run.lock", "search"])
@pytest.mark.parametrize("extra", ["--overwrite", "--resume_from_checkpoint"])
def test_a_run_writes_through_no_link_of_a_folder(place, run, capsys, name, extra):
    if extra == "--resume_from_checkpoint":
        (run / "all_results.json").unlink()  # or there is nothing to do
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(run.parent / "key")
    before = contents(run)
    argv = [*sst2_command(place, run, method="lora", max_steps=1), extra]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    assert f"{name} is a link, and what is written there would go elsewhere" in capsys.readouterr().err
    assert (run.parent / "key").read_text() == KEY and contents(run) == before
