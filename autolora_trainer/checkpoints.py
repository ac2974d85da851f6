"""Checkpoints that are whole, or not used: a manifest, written last, names every file with its size and hash."""

import hashlib
import json
import os
import re

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

MANIFEST = "manifest.json"


def write_atomically(path: str, text: str) -> None:
    """Write a text file whole or not at all: a kill in between leaves the old one."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes its own generator states
        if not state.is_world_process_zero:
            return
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        names = sorted(
            name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)) and name != MANIFEST
        )
        files = {
            name: {"bytes": os.path.getsize(p), "sha256": _hash(p)}
            for name in names
            for p in [os.path.join(folder, name)]
        }
        manifest = {"step": state.global_step, "files": files, "cost": self.cost.figures() if self.cost else None}
        write_atomically(os.path.join(folder, MANIFEST), json.dumps(manifest, indent=1) + "\n")
        rotate_checkpoints(args.output_dir, self.keep, state.best_model_checkpoint, use_mtime=True)


def read_manifest(checkpoint: str) -> dict:
    with open(os.path.join(checkpoint, MANIFEST), encoding="utf-8") as file:
        return json.load(file)


def fault(checkpoint: str) -> str | None:
    """Why a folder is no checkpoint to resume from, in a few words; None if it is one."""
    if not os.path.isdir(checkpoint):
        return "is no folder"
    try:
        files = read_manifest(checkpoint)["files"]
    except FileNotFoundError:
        return f"has no {MANIFEST}: writing it was interrupted, or this package did not write it"
    except (ValueError, KeyError, TypeError):
        return f"has a damaged {MANIFEST}"
    for name, entry in files.items():
        path = os.path.join(checkpoint, name)
        if not os.path.isfile(path):
            return f"lacks {name}"
        if os.path.getsize(path) != entry["bytes"] or _hash(path) != entry["sha256"]:
            return f"has a damaged {name}"
    return None


def newest_checkpoint(folder: str) -> tuple[str | None, list[str]]:
    """The newest whole checkpoint in `folder`, and a line for each newer one that had to be passed over."""
    numbers = [
        int(m[1])
        for name in (os.listdir(folder) if os.path.isdir(folder) else [])
        if (m := re.fullmatch(r"checkpoint-(\d+)", name))
    ]
    passed_over = []
    for number in sorted(numbers, reverse=True):
        checkpoint = os.path.join(folder, f"checkpoint-{number}")
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} {reason}")
    return None, passed_over
