"""The arguments and the task of a search, from what a training is given."""

import dataclasses
import sys

import torch
from transformers import Trainer, TrainingArguments

from autolora_trainer.machine import is_terminal
from autolora_trainer.search.arguments import AutoLoraTrainingArguments
from autolora_trainer.training.kinds import arguments_of

LEAST_WIDTH = 8  # components of every module that a search begins with, the paper's k
TASK_TYPES = {  # by the end of a model's class name
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
# What a search has no use for: evaluations, checkpoints, uploads, a length of its own.
QUIET = {
    "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False,
    "report_to": "none", "run_name": None, "num_train_epochs": 1.0, "resume_from_checkpoint": None,
    "logging_strategy": "no",
}  # fmt: skip


def task_type_of(model: torch.nn.Module) -> str | None:
    """PEFT's task type for a model of transformers; None of others."""
    name = type(model).__name__
    return next((task for end, task in TASK_TYPES.items() if name.endswith(end)), None)


def size_and_width(settings: dict, r: int) -> dict:
    """Size and width of a search with these settings, beside LoRA of rank `r`.

    Example:
        >>> size_and_width({"size": "same", "initial_rank": None, "rank_rule": "contributions"}, 16)
        {'size': 'lora:16', 'initial_rank': 32}
    """
    size, width = settings["size"], settings["initial_rank"]
    if size == "auto" and settings["rank_rule"] == "threshold":
        size = None  # the rule's own count
    elif size == "same":
        size = f"lora:{r}"
    if width is None:
        kind, _, asked = str(size).partition(":")
        twice = 2 * int(asked) if kind == "lora" and asked.isdecimal() else 0  # or there was nothing to choose
        width = max(LEAST_WIDTH, r, twice)
    return {"size": size, "initial_rank": width}


def search_arguments(
    args: TrainingArguments | None, settings: dict, trainer_class: type[Trainer] = Trainer
) -> AutoLoraTrainingArguments:
    """The arguments of a search from those of a training: of its class too, and with its batch, rate and precision.
    Without any, a rate of 1e-4, in bfloat16 where there is an accelerator."""
    if args is None:
        bf16, kind = torch.accelerator.is_available(), arguments_of(trainer_class)
        args = kind(settings["output_dir"], learning_rate=1e-4, bf16=bf16, report_to="none")
        args.disable_tqdm = not is_terminal(sys.stderr)
    kind = type(args)
    own = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}
    if issubclass(AutoLoraTrainingArguments, kind):
        kind = AutoLoraTrainingArguments
    elif not issubclass(kind, AutoLoraTrainingArguments):
        kind = _searching(kind)
    return kind(**{**own, **QUIET, **settings})


def _searching(kind: type[TrainingArguments]) -> type[AutoLoraTrainingArguments]:
    """The arguments of a search that are a trainer's own too."""
    kept = {"__reduce__": lambda self: (_restored, (kind, vars(self)))}  # Trainer pickles them into checkpoints
    bases = (kind, AutoLoraTrainingArguments)
    return dataclasses.make_dataclass(f"Search{kind.__name__}", [], bases=bases, namespace=kept)


def _restored(kind: type[TrainingArguments], values: dict) -> AutoLoraTrainingArguments:
    made = object.__new__(_searching(kind))
    vars(made).update(values)
    return made
