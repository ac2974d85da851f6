"""What a resume compares: the settings that decide what is learned and in which shapes."""

import dataclasses
import json
import os

from autolora_trainer.files import read_json
from autolora_trainer.runs.outputs import RUN_FILE

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
    try:
        earlier = dict(read_json(os.path.join(place, RUN_FILE))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # a damaged note of them stops nobody
    for name, value in json.loads(json.dumps(settings)).items():
        if earlier.get(name, value) != value:
            raise ValueError(
                f"--resume_from_checkpoint: the run in {place} was begun with {name} {earlier[name]}, and "
                f"this command has {value}. Type it as it was, or start anew with --overwrite."
            )
