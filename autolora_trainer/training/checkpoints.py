"""Checkpoints that are whole, or not used: a manifest, written last, names every file with its size and hash."""

import hashlib
import json
import os
import re
import shutil

from safetensors import safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from autolora_trainer.files import check_regular, read_json, write_json
from autolora_trainer.training.processes import wait_for_everyone

MANIFEST = "manifest.json"


def file_hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: str) -> list[str]:
    """The files of a folder and of those in it (a second adapter's, FSDP's shards), as `name` or `folder/name`."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in paths if os.path.isfile(path))


def sealed(manifest: dict) -> dict:
    """A manifest with a hash of its own content, which tells a damaged one from a whole one."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "sha256": digest}


class CheckpointManifest(TrainerCallback):
    """Seals every checkpoint once all processes have written theirs.

    Args:
        cost: a `CostMeter`, whose figures so far go into the manifest, so that a resumed run reports its whole cost.
        keep: how many checkpoints stay. In place of Trainer's `save_total_limit`, which deletes the old ones before
            the new one is sealed.
    """

    def __init__(self, cost=None, keep: int | None = None):
        self.cost = cost
        self.keep = keep

    def on_save(self, args, state, control, **kwargs):
        wait_for_everyone()  # each process writes its own generator states
        if not state.is_world_process_zero:
            return
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        paths = {name: os.path.join(folder, name) for name in _files(folder) if name != MANIFEST}
        files = {name: {"bytes": os.path.getsize(p), "sha256": file_hash(p)} for name, p in paths.items()}
        manifest = {"step": state.global_step, "files": files, "cost": self.cost.figures() if self.cost else None}
        write_json(os.path.join(folder, MANIFEST), sealed(manifest), indent=1)
        if self.keep:
            rotate(args.output_dir, self.keep, state.best_model_checkpoint)


def rotate(folder: str, keep: int, best: str | None = None) -> None:
    """Delete the oldest checkpoints in a folder until so many are left; never the newest, nor the best. What is newest
    is said by its step: after a clock was set back the newest has the oldest files."""
    steps = checkpoint_steps(folder)
    spared = {*steps[-1:], *(step for step in steps if f"checkpoint-{step}" == os.path.basename(best or ""))}
    others = [step for step in steps if step not in spared]
    for step in others[: max(0, len(steps) - max(keep, len(spared)))]:
        shutil.rmtree(os.path.join(folder, f"checkpoint-{step}"), ignore_errors=True)


def read_manifest(checkpoint: str) -> dict:
    return read_json(os.path.join(checkpoint, MANIFEST))


def fault(checkpoint: str) -> str | None:
    """Why a folder is no checkpoint to resume from, in a few words; None if it is one.

    A manifest whose hashes fit says that nothing was damaged by accident, not who wrote it. So each file is also what
    its name says, and no file that will be read holds anything but data; nothing is unpickled to find out.
    """
    if not os.path.isdir(checkpoint):
        return "is no folder"
    try:
        manifest = read_manifest(checkpoint)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        figures = manifest["cost"] or {}
        if (
            manifest != sealed(manifest)
            or type(manifest["step"]) is not int
            or not all(type(v) in (int, float) for v in figures.values())
        ):
            raise TypeError
    except FileNotFoundError:
        return f"has no {MANIFEST}: writing it was interrupted, or this package did not write it"
    except OSError as error:
        return f"has a {MANIFEST} that cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"has a damaged {MANIFEST}"
    for name, entry in files.items():
        path = os.path.join(checkpoint, name)
        if not os.path.isfile(path):
            return f"lacks {name}"
        try:
            if (os.path.getsize(path), file_hash(path)) != entry:
                return f"has a damaged {name}"
        except OSError as error:  # another user's, a bad block
            return f"has a {name} that cannot be read ({error.strerror})"
    for name in sorted({*os.listdir(checkpoint), *_files(checkpoint)}):
        if not _is_data(os.path.join(checkpoint, name)):
            return f"has a {name} that is no data of a checkpoint"
    return None


def _is_data(path: str) -> bool:
    """Whether a file of a checkpoint is JSON, safetensors, or tensors that `weights_only=True` will read, as its name
    says; true of other files and of training_args.bin, which nothing reads on a resume."""
    try:
        check_regular(path)
        if path.endswith(".json"):
            read_json(path)
        elif path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as tensors:
                tensors.keys()
        elif path.endswith((".pt", ".pth", ".bin")) and os.path.basename(path) != "training_args.bin":
            with safe_globals():  # of numpy's generator, which Trainer lets pass too
                return not get_unsafe_globals_in_checkpoint(path)
    except Exception:  # each format has errors of its own
        return False
    return True


def checkpoint_steps(folder: str) -> list[int]:
    """The steps of the checkpoints in a folder, whole or not, in ascending order."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(m[1]) for name in names if (m := re.fullmatch(r"checkpoint-(\d+)", name)))


def newest_checkpoint(folder: str) -> tuple[str | None, list[str]]:
    """The newest whole checkpoint in `folder`, and a line for each newer one that had to be passed over."""
    passed_over = []
    for step in reversed(checkpoint_steps(folder)):
        checkpoint = os.path.join(folder, f"checkpoint-{step}")
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} {reason}")
    return None, passed_over
