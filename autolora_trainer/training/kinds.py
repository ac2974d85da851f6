"""Whose rows are whose: the trainer that some arguments or rows are for, and the arguments of a trainer."""

import importlib

from transformers import Trainer, TrainingArguments

TRAINERS = {  # of whom a class of arguments is; the first that is found along its ancestors
    "SFTConfig": ("trl", "SFTTrainer"),
    "DPOConfig": ("trl", "DPOTrainer"),
    "KTOConfig": ("trl", "KTOTrainer"),
    "RewardConfig": ("trl", "RewardTrainer"),
    "Seq2SeqTrainingArguments": ("transformers", "Seq2SeqTrainer"),
    "TrainingArguments": ("transformers", "Trainer"),
}
TEXT_ROWS = ({"messages"}, {"prompt", "completion"}, {"text"})  # columns that SFTTrainer prepares, the richest first


def of_trl(name: str) -> type:
    """A class of TRL's.

    Raises:
        ValueError: where TRL is not there.
    """
    try:
        return getattr(importlib.import_module("trl"), name)
    except ImportError as error:
        raise ValueError('Rows of text are prepared by TRL, which is not there: pip install ".[trl]".') from error


def trainer_of(args: TrainingArguments | None, rows=None) -> type[Trainer]:
    """The trainer that arguments are for; without any, that of the rows: TRL's SFTTrainer for texts.

    Example:
        >>> trainer_of(None).__name__
        'Trainer'
    """
    columns = set(getattr(rows, "column_names", None) or ())
    if args is None and "input_ids" not in columns and any(own <= columns for own in TEXT_ROWS):
        return of_trl("SFTTrainer")
    for kind in type(args).__mro__ if args is not None else ():
        if kind.__name__ in TRAINERS:
            module, name = TRAINERS[kind.__name__]
            return getattr(importlib.import_module(module), name)
    return Trainer


def arguments_of(trainer_class: type[Trainer]) -> type[TrainingArguments]:
    """The class of arguments that a trainer takes: TRL's own, else transformers'.

    Example:
        >>> arguments_of(Trainer).__name__
        'TrainingArguments'
    """
    of_class = {trainer: kind for kind, (module, trainer) in TRAINERS.items() if module == "trl"}
    known = [of_class[kind.__name__] for kind in trainer_class.__mro__ if kind.__name__ in of_class]
    return of_trl(known[0]) if known else TrainingArguments
