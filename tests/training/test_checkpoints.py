"""Are only whole checkpoints used?"""

import builtins
import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from autolora_trainer.training.checkpoints import (
    CheckpointManifest,
    checkpoint_steps,
    fault,
    newest_checkpoint,
    rotate,
    sealed,
)
from tests.helpers.trainings import searcher, short_training


def test_only_whole_checkpoints_are_used(tmp_path):
    trainer = searcher(tmp_path, save_strategy="steps", save_steps=4, callbacks=[CheckpointManifest()])
    trainer.train()
    assert newest_checkpoint(str(tmp_path)) == (str(tmp_path / "checkpoint-12"), [])
    newest = tmp_path / "checkpoint-12"
    names = json.loads((newest / "manifest.json").read_text())["files"]
    assert {
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "selection.safetensors",
        "trainer_state.json",
    } <= names.keys()
    for name in [*names, "manifest.json"]:
        saved = (newest / name).read_bytes()
        for damaged in (saved[: len(saved) // 2], saved[:-1] + bytes([saved[-1] ^ 1]), None):
            (newest / name).unlink()
            if damaged is not None:
                (newest / name).write_bytes(damaged)
            reason = fault(str(newest))
            if damaged is None or name != "manifest.json" or len(damaged) < len(saved):
                assert reason and name in reason
                assert newest_checkpoint(str(tmp_path)) == (str(tmp_path / "checkpoint-8"), [f"{newest} {reason}"])
            (newest / name).write_bytes(saved)
    shutil.rmtree(newest)
    assert newest_checkpoint(str(tmp_path))[0] == str(tmp_path / "checkpoint-8")


@pytest.mark.parametrize("best, left", [(None, [4, 5, 10]), (1, [1, 5, 10]), (10, [4, 5, 10])])
def test_the_newest_by_step_stay_whatever_the_clock_says(tmp_path, best, left):
    """A clock that was set back: the newest has the oldest files. What only looks like a checkpoint is the user's."""
    for step in (1, 3, 4, 5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (0, 1e9 - step * 1e6))
    (tmp_path / "checkpoint-2-mine").mkdir()
    rotate(str(tmp_path), 3, best and str(tmp_path / f"checkpoint-{best}"))
    assert checkpoint_steps(str(tmp_path)) == left and (tmp_path / "checkpoint-2-mine").is_dir()


def test_what_cannot_be_read_is_passed_over_and_named(tmp_path, monkeypatch):
    """Another user's file, as mode bits say it to all but root; and a pipe, which nobody would ever write to."""
    for step in (2, 4, 6, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        state = TrainerState(global_step=step, is_world_process_zero=True)
        CheckpointManifest().on_save(short_training(tmp_path), state, None)
    (tmp_path / "checkpoint-4" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "checkpoint-4" / "manifest.json")
    shut = (str(tmp_path / "checkpoint-8" / "manifest.json"), str(tmp_path / "checkpoint-6" / "trainer_state.json"))
    for place in (builtins, os):

        def guarded(path, *args, plain=place.open, **kwargs):
            if str(path) in shut:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return plain(path, *args, **kwargs)

        monkeypatch.setattr(place, "open", guarded)
    found, passed_over = newest_checkpoint(str(tmp_path))
    assert found == str(tmp_path / "checkpoint-2")
    assert [line.split(" ", 1)[1] for line in passed_over] == [
        "has a manifest.json that cannot be read (Permission denied)",
        "has a trainer_state.json that cannot be read (Permission denied)",
        "has a damaged manifest.json",
    ]


def test_files_in_folders_of_a_checkpoint_are_checked_too(tmp_path):
    """The weights of a second adapter; a manifest from before, which does not name them, still holds."""
    folder = tmp_path / "checkpoint-4"
    (folder / "second").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    save_file({"a": torch.zeros(3)}, folder / "second" / "adapter_model.safetensors")
    state = TrainerState(global_step=4, is_world_process_zero=True)
    CheckpointManifest().on_save(short_training(tmp_path), state, None)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["files"]) == ["second/adapter_model.safetensors", "trainer_state.json"]
    assert fault(str(folder)) is None
    save_file({"a": torch.ones(3)}, folder / "second" / "adapter_model.safetensors")
    assert fault(str(folder)) == "has a damaged second/adapter_model.safetensors"
    del manifest["files"]["second/adapter_model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    assert fault(str(folder)) is None
    (folder / "second" / "adapter_model.bin").write_bytes(b"no tensors")
    assert fault(str(folder)) == "has a second/adapter_model.bin that is no data of a checkpoint"
