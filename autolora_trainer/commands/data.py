"""Rows of a file as people have them for fine-tuning, and the Trainer that prepares them.

text                          language modelling           TRL's SFTTrainer
prompt, completion            the loss on completions      TRL's SFTTrainer
messages                      the chat template's          TRL's SFTTrainer
label and texts of any name   classification               transformers' Trainer
"""

import logging
import os
import sys
from dataclasses import dataclass, field

import torch
from datasets import Dataset, load_dataset
from pyarrow import parquet
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from autolora_trainer.errors import sentence
from autolora_trainer.files import check_regular
from autolora_trainer.machine import is_terminal
from autolora_trainer.tasks.files import READERS, check_columns, read_columns, shown_columns, shown_value
from autolora_trainer.training.kinds import TEXT_ROWS, of_trl
from autolora_trainer.training.padding import align_tokens, settle_side

logger = logging.getLogger("autolora_trainer")

MOST_CLASSES = 10_000
ENDINGS = (*READERS, ".parquet")


@dataclass
class Task:
    """What rows are for.

    Attributes:
        arguments: the class of a trainer's arguments, which says whose rows they are (`training/kinds.py`).
        model_class: name of transformers' class for the base model.
        labels: classes, where they are labels.
        own_arguments: of `arguments`, beside those of every task.
        prepared: what the trainer is given beside model, arguments and rows.
    """

    arguments: type[TrainingArguments]
    model_class: str
    task_type: str
    labels: int | None = None
    own_arguments: dict = field(default_factory=dict)
    prepared: dict = field(default_factory=dict)

    def training_arguments(self, folder: str, options, **more) -> TrainingArguments:
        """Of a command's options."""
        return self.arguments(
            folder, per_device_train_batch_size=options.batch_size, learning_rate=options.learning_rate,
            bf16=options.bf16, gradient_checkpointing=options.gradient_checkpointing,
            use_cpu=not torch.accelerator.is_available(), report_to="none", disable_tqdm=not is_terminal(sys.stderr),
            **self.own_arguments, **more,
        )  # fmt: skip


def read_rows(path: str) -> Dataset:
    """The rows of a JSON lines, JSON, CSV, TSV or parquet file, texts as they are: to `load_dataset` a text that looks
    like a date, a number or nothing (NA) is one, unless other rows speak against it.

    Raises:
        ValueError: one line, if it is none.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS or not os.path.isfile(path):
        what = "is no file here" if ending in ENDINGS else f"ends in none of {', '.join(ENDINGS)}"
        raise ValueError(f"{path} {what}. Give a file of rows.")
    if not os.path.getsize(path):
        raise ValueError(f"{path} has no rows. Give some.")
    if ending != ".parquet":
        columns, _ = read_columns(path, gaps=True)
        try:
            return Dataset.from_dict(columns, on_mixed_types="use_json")
        except Exception as error:  # pyarrow raises many kinds: numbers and letters that it cannot hold
            raise ValueError(f"{path} holds what no column can: {sentence(error)}") from error
    try:
        found = parquet.read_metadata(path)
    except Exception as error:  # pyarrow raises nearly every kind
        raise ValueError(f"{path} does not read as parquet: {sentence(error)}") from error
    check_columns(path, found.num_columns)
    if not found.num_rows:
        raise ValueError(f"{path} has no rows. Give some.")
    return load_dataset("parquet", data_files=path, split="train")


def task_of(rows: Dataset, path: str, tokenizer, max_length: int) -> tuple[Task, Dataset]:
    """The task that the columns of some rows are for, and the rows as its Trainer takes them.

    Raises:
        ValueError: for columns of no task, and for messages without a chat template.
    """
    columns = set(rows.column_names)
    if "label" in columns:
        return _classification(rows, path, tokenizer, max_length)
    wanted = next((kind for kind in TEXT_ROWS if kind <= columns), None)
    if wanted is None:
        raise ValueError(
            f"{path} has the columns {shown_columns(sorted(columns))}. Needed: messages, or prompt and completion, or "
            "text, or label beside texts."
        )
    for name in sorted(wanted):
        if None in (cells := rows[name][:]):
            raise ValueError(
                f"{path}, row {cells.index(None) + 1}: there is no {name}. Give one, or leave the row out."
            )
    if "messages" in wanted and not tokenizer.chat_template:
        raise ValueError(f"{path} holds messages, and the tokenizer has no chat template. Give prompt and completion.")
    own = {"max_length": max_length}
    prepared = {"processing_class": tokenizer}
    task = Task(of_trl("SFTConfig"), "AutoModelForCausalLM", "CAUSAL_LM", None, own, prepared)
    return task, rows.select_columns(sorted(wanted))


def _classification(rows: Dataset, path: str, tokenizer, max_length: int) -> tuple[Task, Dataset]:
    texts = _text_columns(rows, path)
    labels, values = rows["label"][:], []
    for row, label in enumerate(labels, 1):
        number = label.strip() if isinstance(label, str) else label  # a CSV file has texts alone
        number = int(number) if isinstance(number, str) and number.isdecimal() else number
        if not isinstance(number, int) or number < 0:
            raise ValueError(
                f"label of {path} must be a whole number from 0, got {shown_value(label)} in row {row}. Number the "
                "classes."
            )
        values.append(int(number))
    rows = rows.select_columns(texts).add_column("label", values)

    def tokenized(batch):
        return tokenizer(*(batch[name] for name in texts), truncation=True, max_length=max_length)

    if max(values) >= MOST_CLASSES:
        raise ValueError(
            f"label of {path} goes up to {max(values):,}, and at most {MOST_CLASSES:,} classes are taken. Number them "
            "from 0, one after the other."
        )
    made = rows.map(tokenized, batched=True, remove_columns=[n for n in rows.column_names if n != "label"])
    if empty := [row for row, ids in enumerate(made["input_ids"][:], 1) if not ids]:
        raise ValueError(
            f"{path}, row {empty[0]}: its text is no token of this model. Write one, or leave the row out."
        )
    prepared = {"data_collator": DataCollatorWithPadding(tokenizer)}
    labels = max(2, max(values) + 1)
    task = Task(TrainingArguments, "AutoModelForSequenceClassification", "SEQ_CLS", labels, {}, prepared)
    return task, made.rename_column("label", "labels")


def _text_columns(rows: Dataset, path: str) -> list[str]:
    """The one or two columns that are classified: those of texts, and not those of numbers beside them."""
    texts = []
    for name in rows.column_names:
        cells = rows[name][:] if name != "label" else ()
        if cells and all(isinstance(cell, str) for cell in cells):
            texts.append(name)
        elif any(isinstance(cell, str) for cell in cells):
            row = next(row for row, cell in enumerate(cells, 1) if not isinstance(cell, str))
            raise ValueError(
                f"{path}, row {row}: {shown_columns([name])} is {shown_value(cells[row - 1])}, and text is needed. "
                "Write it as a string, or leave the row or the column out."
            )
    words = [name for name in texts if not all(cell.strip().isdecimal() for cell in rows[name][:])]
    if words and len(words) < len(texts):  # of a CSV file, where numbers are texts
        others = [name for name in texts if name not in words]
        logger.warning(f"{path}: {shown_columns(words)} is classified; {shown_columns(others)} holds numbers alone")
        texts = words
    if len(texts) not in (1, 2):
        raise ValueError(
            f"{path} has label, and one text or two are classified, got {', '.join(texts) or 'none'}. Leave one or "
            "two columns of text."
        )
    return texts


def settle_padding(model, tokenizer, task: Task, rows: Dataset) -> None:
    """Let a classifier read its rows as it would read them alone.

    Raises:
        ValueError: for a model that cannot.
    """
    collate = task.prepared.get("data_collator")
    align_tokens(model, tokenizer)
    if collate is not None and settle_side(model, tokenizer, collate, rows, ("right", "left")):
        raise ValueError(
            f"what {type(model).__name__} computes of a row depends on the rows beside it, wherever they are padded. "
            "Give another model."
        )


def load_tokenizer(source: str, base_model: str):
    """The tokenizer of an adapter's folder, where it has one, else of its base model; one with padding."""
    own = os.path.isdir(source) and os.path.exists(os.path.join(source, "tokenizer_config.json"))
    try:
        if os.path.isdir(place := source if own else base_model):
            check_regular(place)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} gives no tokenizer: {sentence(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
