"""Does a command that cannot work, or does not finish, cost a finished run?"""

import os
import shutil

import pytest

import run_glue
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.runs.aside import ASIDE_FOLDER
from autolora_trainer.scripts import pipeline
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.faults import interrupt
from tests.helpers.rows import sentences, write_rows


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".run.lock"}


@pytest.fixture(scope="module")
def finished(place):
    """The output_dir of a finished run."""
    run_glue.main(command(place, place / "finished"))
    return place / "finished"


@pytest.fixture
def output(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "o")


LATE = [  # what no argument is checked for, and the first step finds
    {"lr_scheduler_type": "cosine_with_min_lr"},
    {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"nonsense": 1}'},
    {"optim": "adamw_apex_fused"},
    {"learning_rate": 1e300},
    {"dataloader_prefetch_factor": 2},
    {"neftune_noise_alpha": "much"},
    {"torch_compile_backend": "nosuch"},
]


@pytest.mark.parametrize("changes", LATE, ids=lambda changes: next(iter(changes)))
def test_a_setting_that_fails_in_the_first_step_is_refused_before_anything_is_touched(place, output, capsys, changes):
    before, method = contents(output), ("autolora", "lora")[LATE.index(changes) % 2]
    argv = [*command(place, output, method=method, **changes), "--overwrite"]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("run_glue.py: error: ") and contents(output) == before


def test_what_looks_into_every_layer_is_tried_in_a_new_folder_too(place, tmp_path):
    uneven = [{**row, "sentence": row["sentence"] + " and bad" * (i % 2)} for i, row in enumerate(sentences(40))]
    rows = write_rows(
        tmp_path / "rows.jsonl", uneven
    )  # padded: a mask of truths, which it takes the absolute value of
    with pytest.raises(UsageError, match="the retrain cannot take its first step: NotImplementedError: .*abs_cpu"):
        run_glue.main(command(place, tmp_path / "new", debug="underflow_overflow", train_file=rows))
    assert not (tmp_path / "new").exists()


def test_an_evaluation_that_cannot_work_is_found_too(place, output):
    before = contents(output)
    with pytest.raises(UsageError, match="cannot take its first step: ZeroDivisionError: .* change that setting"):
        run_glue.main([*command(place, output, method="lora", eval_accumulation_steps=0), "--overwrite"])
    assert contents(output) == before


def test_the_retrain_is_tried_before_a_long_search(place, tmp_path, monkeypatch):
    def refuses(self, *args, **kwargs):
        raise RuntimeError("no room")

    monkeypatch.setattr(FinalTrainer, "create_optimizer", refuses)
    with pytest.raises(RuntimeError, match="no room"):  # a short search is no loss
        run_glue.main(command(place, tmp_path / "short"))
    with pytest.raises(UsageError, match="the retrain cannot take its first step: RuntimeError: no room. Nothing was"):
        run_glue.main(command(place, tmp_path / "long", search_epochs=None, search_max_steps=20))
    assert not (tmp_path / "long").exists()


def test_a_rehearsal_leaves_no_trace_in_the_result(place, finished, output):
    run_glue.main([*command(place, output), "--overwrite"])
    for name in ("ranks.json", "adapter_model.safetensors"):
        assert (output / name).read_bytes() == (finished / name).read_bytes()
    assert not (output / ASIDE_FOLDER).exists()


def test_a_run_that_fails_before_its_first_checkpoint_gives_the_folder_back(place, output, monkeypatch, tmp_path):
    before = contents(output)
    monkeypatch.setattr(pipeline, "rehearse", lambda job, plan: None)
    for method, trainer in (("autolora", AutoLoraTrainer), ("lora", FinalTrainer)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, trainer, 1)
            run_glue.main([*command(place, output, method=method, save_strategy="no"), "--overwrite"])
        assert contents(output) == before
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, trainer, 1)
            run_glue.main(command(place, tmp_path / "new", method=method, save_strategy="no"))
        assert not (tmp_path / "new").exists()


def test_a_run_that_is_killed_keeps_what_it_was_to_replace_until_it_is_finished(place, output, monkeypatch, caplog):
    before = contents(output)
    argv = command(place, output, method="lora", save_strategy="steps", save_steps=1, max_steps=4, seed=7)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, FinalTrainer, 3)
        run_glue.main([*argv, "--overwrite"])
    assert "the run that this one was to replace lies in " in caplog.text
    aside = output / ASIDE_FOLDER / "1"
    kept = {output / path.relative_to(aside): content for path, content in contents(aside).items()}
    assert kept.items() <= before.items() and output / "adapter_model.safetensors" in kept
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # begun once more: both are kept
        interrupt(patch, FinalTrainer, 3)
        run_glue.main(argv)
    assert (output / ASIDE_FOLDER / "2" / "checkpoint-2").is_dir()
    assert run_glue.main([*argv, "--resume_from_checkpoint"])["resumed_from"]["step"] >= 2
    assert not (output / ASIDE_FOLDER).exists() and not (output / "search").exists()


@pytest.mark.parametrize("lost", [None, "search"])
def test_a_finished_run_is_finished(place, output, capsys, lost):
    """Also where its checkpoints were deleted to save space."""
    if lost:
        shutil.rmtree(output / lost)
    before = contents(output)
    results = run_glue.main([*command(place, output), "--resume_from_checkpoint"])
    assert capsys.readouterr().out == f"{output} holds this run, already finished\n" and contents(output) == before
    assert results["eval_accuracy"] is not None
    with pytest.raises(UsageError, match="was begun with seed 42, and this command has 1"):
        run_glue.main([*command(place, output, seed=1), "--resume_from_checkpoint"])


def test_where_all_checkpoints_are_damaged_nothing_begins_again(place, tmp_path, monkeypatch):
    argv = command(place, tmp_path, method="lora", save_strategy="steps", save_steps=1, max_steps=4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, FinalTrainer, 3)
        run_glue.main(argv)
    for checkpoint in tmp_path.glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint in .* is whole; the newest has a damaged optimizer.pt. Drop"):
        run_glue.main([*argv, "--resume_from_checkpoint"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["a link", "a mount", "not yours to write"])
def test_a_search_folder_that_is_not_the_run_s_own_is_refused(place, output, tmp_path, monkeypatch, what):
    if what == "a link":
        shutil.move(output / "search", tmp_path / "scratch")
        (output / "search").symlink_to(tmp_path / "scratch")
    elif what == "a mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == str(output / "search"))
    else:
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != str(output / "search") and access(path, mode))
    before = contents(tmp_path)
    with pytest.raises(
        UsageError,
        match=f"search is {what}, and (a run makes its own in its place|what is written there would go elsewhere)",
    ):
        run_glue.main([*command(place, output), "--overwrite"])
    assert contents(tmp_path) == before
