"""Are only whole checkpoints used?"""

import json
import shutil

import torch
from safetensors.torch import save_file
from transformers import TrainerState

from autolora_trainer.training.checkpoints import CheckpointManifest, fault, newest_checkpoint, sealed
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
