"""A search of ranks that was interrupted, in the folder that was given for it."""

import hashlib
import json
import logging
import os
import shutil

from autolora_trainer.errors import is_first_process
from autolora_trainer.files import read_json, refuse_links, write_json
from autolora_trainer.ranks.adapter import fingerprint
from autolora_trainer.runs.fingerprints import of_rows
from autolora_trainer.runs.settings import of_arguments
from autolora_trainer.training.checkpoints import checkpoint_steps, newest_checkpoint

logger = logging.getLogger("autolora_trainer")
SEARCH_FILE = "search.json"  # what decides a search; it marks a folder as one
ROWS = 256  # that stand for all where they are no table
CHECKPOINTS = {"save_strategy": "steps", "save_only_model": False, "save_total_limit": None}


def begin(trainer, folder: str) -> None:
    """Note what decides a search, before its first step."""
    if trainer.is_world_process_zero():
        refuse_links(os.path.dirname(folder), [os.path.basename(folder)])
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, SEARCH_FILE), _note(trainer), indent=1)


def go_on(trainer, folder: str) -> str | None:
    """The newest whole checkpoint of the search in a folder; None where it had not got so far.

    Raises:
        ValueError: if the folder holds no search, or one of other rows, another model or other settings.
    """
    refuse_links(os.path.dirname(folder), [os.path.basename(folder)])
    try:
        earlier = read_json(os.path.join(folder, SEARCH_FILE))
    except (OSError, ValueError):
        raise ValueError(f"{folder} holds no search to go on with. Search without resume_from_checkpoint.") from None
    for name, value in json.loads(json.dumps(_note(trainer))).items():
        if earlier.get(name, value) != value:
            raise ValueError(
                f"The search in {folder} was begun with {name} {earlier[name]}, and this one has {value}. Search as "
                "it was begun, or in a new folder."
            )
    checkpoint, passed_over = newest_checkpoint(folder)
    if trainer.is_world_process_zero():
        for line in passed_over:
            logger.warning("passed over: %s", line)
        steps = checkpoint_steps(folder)
        for step in steps[len(steps) - len(passed_over) :]:  # or one of them would count as the newest
            shutil.rmtree(os.path.join(folder, f"checkpoint-{step}"), ignore_errors=True)
    return checkpoint


def end(folder: str) -> None:
    """Remove the checkpoints of a search that is through."""
    if is_first_process() and os.path.exists(os.path.join(folder, SEARCH_FILE)):
        for step in checkpoint_steps(folder):
            shutil.rmtree(os.path.join(folder, f"checkpoint-{step}"))


def _note(trainer) -> dict:
    """What decides a search: its settings, its rows as they are prepared, its base model."""
    lora = trainer.model.peft_config["default"]
    return {
        **of_arguments(trainer.args)[0],
        **{name: getattr(lora, name) for name in ("lora_alpha", "lora_dropout", "use_rslora")},
        "train_dataset": _digest(trainer.train_dataset),
        "val_dataset": _digest(trainer.val_dataset),
        "model": fingerprint(trainer.model, trainer.gates.names),
    }


def _digest(rows) -> str:
    """Of all rows of a `datasets.Dataset`; of others their number, and 256 of them."""
    if hasattr(rows, "with_format"):
        return of_rows(rows)
    digest = hashlib.sha256(str(len(rows)).encode())
    for place in range(0, len(rows), max(1, len(rows) // ROWS)):
        row = rows[place]
        digest.update(repr(sorted(row.items()) if isinstance(row, dict) else row).encode())
    return digest.hexdigest()[:16]
