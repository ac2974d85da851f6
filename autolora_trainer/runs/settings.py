"""What decides the bits of a run, and what cannot. run.json keeps both; a resume compares the first and names the
second."""

import dataclasses
import json
import os

from autolora_trainer.files import read_json
from autolora_trainer.runs.outputs import RUN_FILE

DATA = """
    task_name max_seq_length pad_to_max_length max_train_samples sample_seed prompt_format one_line base_dropout
""".split()
# Of a training: what it logs, shows, sends, evaluates, keeps and how it waits. All else is taken to decide.
HARMLESS = """
    output_dir do_train do_eval do_predict resume_from_checkpoint local_rank hub_token push_to_hub hub_private_repo
    hub_model_id hub_strategy hub_always_push hub_revision project trackio_space_id trackio_bucket_id
    trackio_static_space_id report_to run_name disable_tqdm log_level log_level_replica logging_strategy logging_steps
    logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen skip_memory_metrics debug
    per_device_eval_batch_size prediction_loss_only eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval save_on_each_node
    save_total_limit save_only_model enable_jit_checkpoint dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context ddp_timeout
    torch_empty_cache_steps
""".split()
# Harmless too, unless one of several checkpoints is the result.
CHECKPOINTS = "eval_strategy eval_steps eval_delay eval_on_start save_strategy save_steps".split()
BEST = "metric_for_best_model greater_is_better".split()
PRIVATE = {"output_dir", "hub_token", "local_rank", "resume_from_checkpoint", "run_name"}  # for no file


def settings_of(model, data, settings, training) -> tuple[dict, dict]:
    """(what decides what is learned and in which shapes, the rest) of the four groups of a script's arguments."""
    kept = dataclasses.asdict(settings)
    for name in ("preset", "overwrite", "grid_trials"):
        kept.pop(name)
    of_training, rest = of_arguments(training)
    places = {"ranks": settings.ranks, "model_name_or_path": model.model_name_or_path, "train_file": data.train_file}
    decides = {
        **kept,
        **{name: getattr(data, name) for name in DATA if hasattr(data, name)},
        **{name: getattr(model, name) for name in ("dtype", "load_in_8bit", "load_in_4bit", "model_revision")},
        **of_training,
        **{kind: training.mixed_precision == kind for kind in ("bf16", "fp16")},  # accelerate's configuration too
        **{name: path and os.path.basename(os.path.normpath(path)) for name, path in places.items()},  # no folders
    }
    return decides, rest


def of_arguments(training) -> tuple[dict, dict]:
    """(what decides, what cannot) of `TrainingArguments`, the number of processes among the first."""
    names = {field.name for field in dataclasses.fields(training)} - {"fsdp_config", "accelerator_config"}
    harmless = {*HARMLESS, *([] if training.load_best_model_at_end else [*CHECKPOINTS, *BEST])}
    decides, rest = (
        {name: _plain(getattr(training, name)) for name in sorted(own)} for own in (names - harmless, names & harmless)
    )
    return {**decides, "processes": training.world_size}, {n: v for n, v in rest.items() if n not in PRIVATE}


def _plain(value):
    """As JSON will have it."""
    value = getattr(value, "value", value)  # of an enumeration
    return value if isinstance(value, (type(None), bool, int, float, str, list, dict)) else str(value)


def check_same(place: str, part: str, current: dict) -> None:
    """Raise `ValueError` if the run in a folder, which is to go on, was begun with another value: it would end in
    neither's result.

    Args:
        part: of run.json.
        current: {name: value} of this command; what the earlier run has not noted is passed over.
    """
    earlier = noted(place, part)
    for name, value in json.loads(json.dumps(current)).items():
        if earlier.get(name, value) != value:
            raise ValueError(
                f"--resume_from_checkpoint: the run in {place} was begun with {name} {earlier[name]}, and "
                f"this command has {value}. {CURES.get(part, 'Type it as it was')}, or start anew with --overwrite."
            )


CURES = {"environment": "Go on where it was begun"}


def changed(place: str, part: str, current: dict) -> list[str]:
    """`name old -> new` of what differs and cannot change the bits."""
    earlier = noted(place, part)
    pairs = json.loads(json.dumps(current)).items()
    return [f"{name} {earlier[name]} -> {value}" for name, value in pairs if earlier.get(name, value) != value]


def noted(place: str, part: str) -> dict:
    """A part of run.json of a folder, as `settings`; a damaged one stops nobody."""
    try:
        note = read_json(os.path.join(place, RUN_FILE))[part]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    usable = isinstance(note, dict) and (part != "inputs" or all(isinstance(v, dict) for v in note.values()))
    return note if usable else {}
