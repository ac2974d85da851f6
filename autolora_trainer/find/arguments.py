"""Whose rows are whose: the trainer, the arguments and the task of a search, from what a training is given."""

import dataclasses
import importlib
import sys

import torch
from transformers import Trainer, TrainingArguments

from autolora_trainer.machine import is_terminal
from autolora_trainer.search.arguments import AutoLoraTrainingArguments

TRAINERS = {  # of whom a class of arguments is; the first that is found along its ancestors
    "SFTConfig": ("trl", "SFTTrainer"),
    "DPOConfig": ("trl", "DPOTrainer"),
    "KTOConfig": ("trl", "KTOTrainer"),
    "RewardConfig": ("trl", "RewardTrainer"),
    "Seq2SeqTrainingArguments": ("transformers", "Seq2SeqTrainer"),
    "TrainingArguments": ("transformers", "Trainer"),
}
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


TEXT_ROWS = ({"messages"}, {"prompt", "completion"}, {"text"})  # columns that SFTTrainer prepares, the richest first


def trainer_of(args: TrainingArguments | None, rows=None) -> type[Trainer]:
    """The trainer that arguments are for; without any, that of the rows: TRL's SFTTrainer for texts.

    Example:
        >>> trainer_of(None).__name__
        'Trainer'
    """
    columns = set(getattr(rows, "column_names", None) or ())
    if args is None and "input_ids" not in columns and any(own <= columns for own in TEXT_ROWS):
        return getattr(importlib.import_module("trl"), "SFTTrainer")
    for kind in type(args).__mro__ if args is not None else ():
        if kind.__name__ in TRAINERS:
            module, name = TRAINERS[kind.__name__]
            return getattr(importlib.import_module(module), name)
    return Trainer


def task_type_of(model: torch.nn.Module) -> str | None:
    """PEFT's task type for a model of transformers; None of others."""
    name = type(model).__name__
    return next((task for end, task in TASK_TYPES.items() if name.endswith(end)), None)


def search_arguments(
    args: TrainingArguments | None, settings: dict, trainer_class: type[Trainer] = Trainer
) -> AutoLoraTrainingArguments:
    """The arguments of a search from those of a training: of its class too, and with its batch, rate and precision.
    Without any, a rate of 1e-4, in bfloat16 where there is an accelerator."""
    if args is None:
        known = [kind.__name__ for kind in trainer_class.__mro__]
        of_class = {trainer: kind for kind, (module, trainer) in TRAINERS.items() if module == "trl"}
        name = next((of_class[own] for own in known if own in of_class), None)
        kind = TrainingArguments if name is None else getattr(importlib.import_module("trl"), name)
        bf16 = torch.accelerator.is_available()
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
