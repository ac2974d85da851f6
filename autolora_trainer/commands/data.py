"""Rows of a file as people have them for fine-tuning, and the Trainer that prepares them.

text                          language modelling           TRL's SFTTrainer
prompt, completion            the loss on completions      TRL's SFTTrainer
messages                      the chat template's          TRL's SFTTrainer
label and texts of any name   classification               transformers' Trainer
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from pyarrow import parquet
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from autolora_trainer.errors import sentence
from autolora_trainer.files import check_regular
from autolora_trainer.find.arguments import TEXT_ROWS
from autolora_trainer.tasks.files import DataError, check_columns, shown_columns

MOST_CLASSES = 10_000
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass
class Task:
    """What rows are for.

    Attributes:
        trainer_class, arguments: whose rows they are, and the class of its arguments.
        model_class: name of transformers' class for the base model.
        labels: classes, where they are labels.
        prepared: what the trainer is given beside model, arguments and rows.
    """

    trainer_class: type[Trainer]
    arguments: type[TrainingArguments]
    model_class: str
    task_type: str
    labels: int | None = None
    own_arguments: dict = field(default_factory=dict)
    prepared: dict = field(default_factory=dict)


def read_rows(path: str) -> Dataset:
    """The rows of a JSON lines, JSON, CSV or parquet file.

    Raises:
        ValueError: one line, if it is none.
    """
    kind = FORMATS.get(os.path.splitext(path)[1].lower())
    if kind is None or not os.path.isfile(path):
        what = "is no file here" if kind else f"ends in none of {', '.join(FORMATS)}"
        raise ValueError(f"{path} {what}. Give a file of rows.")
    try:
        check_columns(path, _columns_of(path, kind))
        rows = load_dataset(kind, data_files=path, split="train")
    except DataError:
        raise
    except Exception as error:  # datasets and pyarrow raise nearly every kind
        raise ValueError(f"{path} does not read as {kind}: {sentence(error.__cause__ or error)}") from error
    if not len(rows):
        raise ValueError(f"{path} has no rows. Give some.")
    return rows


def _columns_of(path: str, kind: str) -> int:
    """How many columns a file has, by its first line or its schema; 0 where that does not tell."""
    if kind == "parquet":
        return len(parquet.read_schema(path))
    with open(path, "rb") as file:
        line = file.readline()
    if kind == "csv":
        return line.count(b",") + 1
    with suppress(ValueError, RecursionError):
        return len(json.loads(line)) if line.lstrip().startswith(b"{") else 0
    return 0


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
    if "messages" in wanted and not tokenizer.chat_template:
        raise ValueError(f"{path} holds messages, and the tokenizer has no chat template. Give prompt and completion.")
    try:
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        raise ValueError('Rows of text are prepared by TRL, which is not there: pip install "autolora_trainer[trl]".')
    own = {"max_length": max_length, "gradient_checkpointing": False}
    prepared = {"processing_class": tokenizer}
    task = Task(SFTTrainer, SFTConfig, "AutoModelForCausalLM", "CAUSAL_LM", None, own, prepared)
    return task, rows.select_columns(sorted(wanted))


def _classification(rows: Dataset, path: str, tokenizer, max_length: int) -> tuple[Task, Dataset]:
    texts = [name for name in rows.column_names if name != "label" and isinstance(rows[0][name], str)]
    if len(texts) not in (1, 2):
        raise ValueError(
            f"{path} has label, and one text or two are classified, got {', '.join(texts) or 'none'}. Leave one or "
            "two columns of text."
        )
    values = rows.unique("label")
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError(f"label of {path} must be a whole number from 0, got {values[0]!r}. Number the classes.")

    def tokenized(batch):
        return tokenizer(*(batch[name] for name in texts), truncation=True, max_length=max_length)

    if max(values) >= MOST_CLASSES:
        raise ValueError(
            f"label of {path} goes up to {max(values):,}, and at most {MOST_CLASSES:,} classes are taken. Number them "
            "from 0, one after the other."
        )
    made = rows.map(tokenized, batched=True, remove_columns=[n for n in rows.column_names if n != "label"])
    prepared = {"data_collator": DataCollatorWithPadding(tokenizer)}
    labels = max(2, max(values) + 1)
    task = Task(Trainer, TrainingArguments, "AutoModelForSequenceClassification", "SEQ_CLS", labels, {}, prepared)
    return task, made.rename_column("label", "labels")


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
