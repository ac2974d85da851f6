"""What every run is checked for before anything is written, in this order: the request alone, then rows and model.

Each check raises `ValueError` with one line: what was given, what is needed, what to type.
"""

import contextlib
import copy
import os
import tempfile

import pyarrow.compute as pc
import torch
from transformers import Trainer
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from autolora_trainer.errors import one_line, sentence
from autolora_trainer.files import no_number
from autolora_trainer.hub.push import check_repo_id
from autolora_trainer.lora.experts import stacked_weights
from autolora_trainer.lora.parts import adaptable_names
from autolora_trainer.lora.targets import target_lines
from autolora_trainer.methods.lora import ALL_LINEAR, QUERY_VALUE
from autolora_trainer.names import module_of
from autolora_trainer.runs.record import recorded
from autolora_trainer.scripts.request import NO_FILES
from autolora_trainer.tasks.lengths import longest_row, positions
from autolora_trainer.training.padding import counts_from_padding, settle_side, two_lengths
from autolora_trainer.training.passes import check_smoothing
from autolora_trainer.training.processes import sharding
from autolora_trainer.values import check_choice


def check_finite(request) -> None:
    """Numbers inside of others, too, as of --lr_scheduler_kwargs."""
    for group in (request.model, request.data, request.settings, request.training):
        for name, value in vars(group).items():
            if place := no_number(value, name):
                raise ValueError(f"--{place} is NaN or infinite, and every number must be one. Correct it.")


def check_method(request) -> None:
    if request.training.do_train:
        request.method.check_request(request)


def check_attention(request) -> None:
    asked = request.model.attn_implementation
    if "flash" in (asked or "") and request.model.dtype == "float32":
        other = ", or add --dtype bfloat16" if request.task.task_type == "CAUSAL_LM" else ""
        raise ValueError(
            f"--attn_implementation {asked} takes no fp32, and scores are evaluated with fp32 weights. Type "
            f"--attn_implementation sdpa{other}."
        )


def check_frozen_base(request) -> None:
    model, name = request.model, request.method.name
    if model.dtype != "float32" and request.task.task_type != "CAUSAL_LM":
        raise ValueError(f"--dtype {model.dtype} would train the new head in it. Drop it; --bf16 is for speed.")
    if request.method.base_stays_frozen:
        return
    if model.dtype != "float32":
        raise ValueError(
            f"--dtype {model.dtype} is for frozen weights, and --method {name} would train in it. Drop it; --bf16 is "
            "for speed."
        )
    if model.bits is not None:
        raise ValueError(f"--load_in_{model.bits}bit is for LoRA, got --method {name}. Drop it.")


def check_prediction(request) -> None:
    training = request.training
    if training.prediction_loss_only and training.do_predict and request.task.task_type != "CAUSAL_LM":
        raise ValueError("--prediction_loss_only leaves --do_predict nothing to write. Drop one of the two.")


def check_trackers(request) -> None:
    asked = request.training.report_to
    try:
        for callback in get_reporting_integration_callbacks(asked):
            callback()
    except (RuntimeError, ImportError, ValueError) as error:
        raise ValueError(f"--report_to {' '.join(asked)}: {one_line(error)}") from error


def check_names(request) -> None:
    """Names of repositories, of the base model and of the push."""
    training = request.training
    if request.model.base_model_id:
        check_repo_id(request.model.base_model_id, "base_model_id")
    if not request.push:
        return
    if not training.do_train:
        recorded(training.output_dir)  # what is not a run's own is not pushed
    if training.hub_model_id:
        check_repo_id(training.hub_model_id)
    else:
        check_repo_id(os.path.basename(os.path.normpath(training.output_dir)), "the name of output_dir")
    if request.hub_id is None:
        raise ValueError(
            "--push_to_hub needs the base model's Hub id, got a folder "
            f"({os.path.basename(request.model.model_name_or_path)}). Add --base_model_id OWNER/NAME."
        )


def check_training(request) -> None:
    """Optimizer, schedule and backend, made for one weight: what cannot be made is known before a model is loaded."""
    training = request.training
    if training.fsdp and training.world_size == 1:
        raise ValueError(
            "--fsdp shards weights over several processes, got one. Start them with accelerate launch or torchrun, or "
            "drop --fsdp."
        )
    if not training.do_train or sharding(training):
        return
    if training.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError(
            "--use_liger_kernel needs liger-kernel, which is not installed. Type pip install liger-kernel, or drop it."
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments = copy.copy(training)
        for name, value in {**NO_FILES, "output_dir": folder, "label_smoothing_factor": 0.0}.items():
            setattr(arguments, name, value)
        with _named("The settings make no Trainer"):
            trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=[{}])
        with _named(f"--optim {training.optim.value} cannot be made", training.optim_target_modules is not None):
            trainer.create_optimizer()
        with _named(f"--lr_scheduler_type {training.lr_scheduler_type.value} cannot be made"):
            if trainer.optimizer is not None:
                trainer.create_scheduler(10, trainer.optimizer)


@contextlib.contextmanager
def _named(what: str, of_modules: bool = False):
    """One line for whatever fails inside; `of_modules`: modules are asked for that one weight has not got."""
    try:
        yield
    except Exception as error:
        if not of_modules or isinstance(error, ImportError):
            raise ValueError(f"{what}: {sentence(error)} Give another, or correct its arguments.") from error


BEFORE_LOADING = (
    check_finite,
    check_method,
    check_attention,
    check_prediction,
    check_trackers,
    check_names,
    check_frozen_base,
    check_training,
)


def check_folder(request, folder) -> None:
    """The place for the run's files, and what lies there."""
    folder.check_place()
    if request.training.do_train:
        given = {name: getattr(request.data, name) for name in ("train_file", "validation_file", "test_file")}
        given |= {name: getattr(request.model, name) for name in ("model_name_or_path", "tokenizer_name")}
        resuming = bool(request.training.resume_from_checkpoint)
        folder.check({**given, "ranks": request.settings.ranks}, request.settings.overwrite, resuming)


# ---- of rows and model


def check_batch_metrics(job) -> None:
    if job.request.training.batch_eval_metrics and job.request.task.compute_metrics() is not None:
        raise ValueError("--batch_eval_metrics scores a batch at a time, and scores here are of all rows. Drop it.")


def check_model(job) -> None:
    """A wrong id or folder shows here, and so does a model that loads and cannot do the task."""
    job.request.task.check_model(job.request, job.source.loaded())


def check_labels(job) -> None:
    check_smoothing(job.source.loaded(), job.request.training.label_smoothing_factor)


def check_vocabulary(job) -> None:
    """A tokenizer may know more tokens than the model (padding that no row has), but not the rows."""
    known = getattr(job.source.loaded().get_input_embeddings(), "num_embeddings", None)
    if known is None or len(job.rows.tokenizer) <= known:
        return
    for split, dataset in job.rows.datasets.items():
        batches = dataset.with_format("arrow").iter(10_000)
        highest = max(pc.max(pc.list_flatten(batch["input_ids"])).as_py() for batch in batches)
        if highest >= known:
            raise ValueError(
                f"The {split} rows hold token {highest}, and {job.request.model.model_name_or_path} has {known} "
                "tokens: the tokenizer is another model's. Give its own with --tokenizer_name, or leave that out."
            )


def check_positions(job) -> None:
    """A tokenizer's own limit may be missing, or another model's."""
    base = job.source.loaded()
    limit = positions(base)
    for split, dataset in job.rows.datasets.items() if limit is not None else ():
        if (longest := longest_row(dataset)) > limit:
            raise ValueError(
                f"The longest {split} row has {longest} tokens, and {type(base).__name__} has {limit} positions. "
                f"Lower --max_seq_length to {limit}, or give another model."
            )


def check_padding(job) -> None:
    """A row has one score, whatever is beside it: rows are padded on the side where the model passes over padding."""
    tokenizer, model = job.rows.tokenizer, job.source.loaded()
    own, counted = tokenizer.padding_side, counts_from_padding(model)
    if counted not in (None, tokenizer.pad_token_id):
        raise ValueError(
            f"The tokenizer pads with token {tokenizer.pad_token_id}, and {type(model).__name__} counts positions "
            f"from its own padding token, {counted}. Give its own tokenizer with --tokenizer_name."
        )
    sides = ("right", "left") if job.request.task.pads_either_side else (own,)
    rows = next(filter(two_lengths, job.rows.datasets.values()), None)
    if rows is None or job.request.data.pad_to_max_length:
        return
    if errors := settle_side(model, tokenizer, job.rows.collator, rows, sides):
        raise ValueError(
            f"What {type(model).__name__} computes of a row depends on the rows beside it: padding on the "
            f"{' or '.join(errors)} changes it by {min(errors.values()):.0%}. Add --pad_to_max_length, so that all "
            "rows have one length, or give another model."
        )
    if tokenizer.padding_side != own:
        job.say(f"rows are padded on the {tokenizer.padding_side}, and not on the {own} as this tokenizer does")


def check_targets(job) -> None:
    """PEFT is content where one of several targets is there, and passes over the others."""
    base, targets = job.source.loaded(), job.request.settings.lora_target_modules or []
    names = [name for name, _ in base.named_modules() if name] + [*stacked_weights(base)]
    for target in targets:
        module = module_of(target)
        if target in (ALL_LINEAR, QUERY_VALUE) and len(targets) > 1:
            raise ValueError(
                f"--lora_target_modules {' '.join(targets)}: {target} stands for modules by itself. Give it alone, or "
                "names alone."
            )
        if target not in (ALL_LINEAR, QUERY_VALUE) and not any(
            name == module or name.endswith(f".{module}") for name in names
        ):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in job.source.linear_names()}))
            raise ValueError(
                f"--lora_target_modules {target or repr(target)} fits no module of {type(base).__name__}. "
                f"{job.source.linear_example()} and end in {ends or 'nothing'}; give some of these."
            )


def check_best_metric(job) -> None:
    metric = job.request.training.metric_for_best_model
    if metric is not None:
        names = () if job.request.training.prediction_loss_only else job.request.task.metric_names()
        check_choice("metric_for_best_model", metric.removeprefix("eval_"), ("loss", *names))


def check_ranks(job) -> None:
    """`--ranks` name modules of this model."""
    request = job.request
    if not request.training.do_train:
        return
    request.method.adapted(job)  # a LoRA that fits nothing shows here
    if job.ranks is not None:
        job.ranks.check_names(adaptable_names(job.source.loaded()))


def say_experts(job) -> None:
    """What targets mean in a mixture of experts is no fault, and worth a line."""
    request = job.request
    if request.training.do_train and request.method.has_lora:
        for line in target_lines(job.source.loaded(), job.source.lora_config()):
            job.warn(line)


AFTER_LOADING = (
    check_batch_metrics,
    check_model,
    check_labels,
    check_vocabulary,
    check_positions,
    check_padding,
    check_targets,
    check_best_metric,
    check_ranks,
    say_experts,
)
