"""What `--resume_from_checkpoint` means in an output folder: where a run goes on, and that it is the same run."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from autolora_trainer.files import read_json
from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.runs.outputs import RUN_FILE, SEARCH_FOLDER
from autolora_trainer.training.checkpoints import fault, file_hash, newest_checkpoint, read_manifest

# What `learned_settings` takes of the arguments.
LEARNED_DATA = """
    task_name max_seq_length max_train_samples sample_seed prompt_format one_line base_dropout
""".split()
LEARNED_TRAINING = """
    learning_rate train_sampling_strategy seed data_seed weight_decay lr_scheduler_type lr_scheduler_kwargs
    warmup_steps label_smoothing_factor max_grad_norm optim optim_args adam_beta1 adam_beta2 adam_epsilon non_finite
""".split()


def learned_settings(model, data, settings, training, length_is_learned: bool = False) -> dict:
    """The arguments that decide what is learned and in which shapes; `run.json` keeps them.

    Args:
        model, data, settings, training: the four groups of a script's arguments.
        length_is_learned: whether the length of the final training is one of them; any other may be prolonged.
    """
    kept = dataclasses.asdict(settings)
    for name in ("preset", "overwrite", "retrain_epochs", "grid_trials"):
        kept.pop(name)
    places = {"ranks": settings.ranks, "model_name_or_path": model.model_name_or_path, "train_file": data.train_file}
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    lengths = ("num_train_epochs", "max_steps") if length_is_learned else ()
    return {
        **kept,
        **{name: getattr(data, name) for name in LEARNED_DATA if hasattr(data, name)},
        **{name: getattr(model, name) for name in ("dtype", "load_in_8bit", "load_in_4bit")},
        **{name: getattr(training, name) for name in (*LEARNED_TRAINING, *lengths)},
        **{kind: training.mixed_precision == kind for kind in ("bf16", "fp16")},  # accelerate's configuration too
        **{name: path and os.path.basename(os.path.normpath(path)) for name, path in places.items()},  # no folders
        "global_batch_size": batch,
    }


def check_same_settings(place: str, settings: dict) -> None:
    """Raise `ValueError` if the run in a folder, which is to go on, was begun with other settings: it would end in
    neither's result."""
    earlier = noted(place, "settings")
    for name, value in json.loads(json.dumps(settings)).items():
        if earlier.get(name, value) != value:
            raise ValueError(
                f"--resume_from_checkpoint: the run in {place} was begun with {name} {earlier[name]}, and "
                f"this command has {value}. Type it as it was, or start anew with --overwrite."
            )


@dataclass(frozen=True)
class Progress:
    """What an earlier run in a folder has finished of its method's own phase.

    Attributes:
        done: the phase has ended in ranks.
        trials: of a grid, finished.
        checkpoints: the folder of the phase's own checkpoints; None for a method without any.
    """

    done: bool = False
    trials: int = 0
    checkpoints: str | None = None


@dataclass
class Resume:
    """Where an interrupted run goes on: at a checkpoint of the search, or of the retrain, or between the two."""

    search_checkpoint: str | None = None
    search_done: bool = False
    train_checkpoint: str | None = None
    trials: int = 0  # of a grid, finished
    passed_over: list[str] = field(default_factory=list)  # a line for each newer checkpoint that is damaged
    origin: dict | None = field(init=False, default=None)  # `resumed_from` of all_results.json

    def __post_init__(self):
        checkpoint = self.train_checkpoint or self.search_checkpoint
        if checkpoint or self.search_done:  # read now: the training that goes on rotates its checkpoints
            step = read_manifest(checkpoint)["step"] if checkpoint else 0
            self.origin = {"phase": "search" if self.search_checkpoint else "retrain", "step": step}
        elif self.trials:
            self.origin = {"phase": "search", "step": self.trials}


def find_resume(place: str, asked: str, progress: Callable[[bool], Progress], check_settings: Callable) -> Resume:
    """A checkpoint to go on from, and the phase it belongs to.

    Args:
        place: the output folder.
        asked: a checkpoint's folder, or True for the newest whole one of either phase.
        progress: (whether there is a whole checkpoint of the final training) -> `Progress`.
        check_settings: raises `ValueError` if the earlier run had other settings.
    Raises:
        ValueError: if what was asked for is no checkpoint, or of another run.
    """
    named = asked not in ("True", "true")
    parent = os.path.dirname(os.path.abspath(asked))  # the run's own folder may be called search, too
    of_search = os.path.basename(parent) == SEARCH_FOLDER and os.path.realpath(parent) != os.path.realpath(place)
    if named and (reason := fault(asked)):
        raise ValueError(
            f"--resume_from_checkpoint {asked} {reason}. Give a checkpoint-N folder, or no value for the newest."
        )
    if named and of_search and progress(False).checkpoints is None:
        raise ValueError(
            f"--resume_from_checkpoint {asked} belongs to a search, and this run does not search. Drop it, or give a "
            "checkpoint-N folder beside search/."
        )
    check_settings()
    if named and of_search:
        return Resume(search_checkpoint=asked)
    if named:
        return Resume(train_checkpoint=asked, search_done=os.path.exists(os.path.join(place, RANKS_FILE)))
    checkpoint, passed_over = newest_checkpoint(place)  # of the final training
    own = progress(checkpoint is not None)
    if own.done or own.checkpoints is None:
        return Resume(train_checkpoint=checkpoint, search_done=own.done, trials=own.trials, passed_over=passed_over)
    checkpoint, passed_over = newest_checkpoint(own.checkpoints)
    return Resume(search_checkpoint=checkpoint, trials=own.trials, passed_over=passed_over)


def fingerprints(inputs: dict[str, str | None], known: dict | None = None) -> dict[str, dict]:
    """{argument: {"sha256", "seen"}} of the content of every local file, and of every folder's own files, that decides
    what a run learns.

    Args:
        inputs: {argument: path, or None, or a Hub id}.
        known: of an earlier look; what has its sizes, inodes and times is not read again.
    """
    found = {}
    for argument, place in inputs.items():
        if not place or not os.path.exists(place):
            continue
        names = sorted(os.listdir(place)) if os.path.isdir(place) else [""]
        paths = [path for name in names if os.path.isfile(path := os.path.join(place, name) if name else place)]
        seen = [[os.path.basename(p), s.st_size, s.st_ino, s.st_mtime_ns] for p in paths for s in [os.stat(p)]]
        earlier = (known or {}).get(argument, {})
        if earlier.get("seen") == seen:
            found[argument] = earlier
            continue
        digest = hashlib.sha256()
        for path in paths:
            digest.update(f"{os.path.basename(path)} {file_hash(path)} ".encode())
        found[argument] = {"sha256": digest.hexdigest(), "seen": seen}
    return found


def check_same_inputs(place: str, inputs: dict[str, str | None]) -> None:
    """Raise `ValueError` if the run in a folder, which is to go on, was begun with other content of what it reads."""
    earlier = noted(place, "inputs")
    for argument, found in fingerprints(inputs, earlier).items():
        if found["sha256"] != earlier.get(argument, found).get("sha256"):
            name = os.path.basename(os.path.normpath(inputs[argument]))
            raise ValueError(
                f"--resume_from_checkpoint: {argument} {name} holds something else than when the run in {place} was "
                "begun. Give it as it was, or start anew with --overwrite."
            )


def noted(place: str, what: str) -> dict:
    """The `settings` or the `inputs` in run.json of a folder; a damaged one stops nobody."""
    try:
        note = read_json(os.path.join(place, RUN_FILE))[what]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    usable = isinstance(note, dict) and (what == "settings" or all(isinstance(v, dict) for v in note.values()))
    return note if usable else {}
