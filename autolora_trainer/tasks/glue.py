"""GLUE's nine tasks (Table 1 of the paper) and the built-in sample: columns, labels, loading and tokenization."""

import logging
from dataclasses import dataclass

import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value

from autolora_trainer.tasks.files import DataError, load_from_hub, read_rows, shown_columns, shown_path, shown_value

logger = logging.getLogger(__name__)

UNLABELLED = -1  # GLUE's mark for a test row whose label is kept secret; of a score, which may be -1, None
LARGEST = torch.finfo(torch.float32).max  # of a score, which a model computes in fp32


@dataclass(frozen=True)
class Task:
    """What a task is, apart from its rows.

    Args:
        text_columns: one column, or two for sentence pairs.
        label_names: in the hub's order, so that `label_names[id]` is the name; `None` for regression.
        metrics: names of the numbers that `tasks.metrics.compute_metrics` gives.
        reported_metric: the one of them that the paper's Table 1 reports.
        hub_id: the hub data set, with the task's name as its config; `None` where the rows come from a loader.
        splits: pairs (our name, the hub's name).
    """

    name: str
    text_columns: tuple
    label_names: tuple | None
    metrics: tuple = ("accuracy",)
    reported_metric: str = "accuracy"
    hub_id: str | None = "nyu-mll/glue"
    splits: tuple = (("train", "train"), ("validation", "validation"), ("test", "test"))

    @property
    def is_regression(self) -> bool:
        return self.label_names is None

    @property
    def unlabelled(self):
        """The label of a row without one."""
        return None if self.is_regression else UNLABELLED

    @property
    def num_labels(self) -> int:
        return 1 if self.is_regression else len(self.label_names)

    @property
    def hub_config(self) -> str:
        return self.name


_PAIR = ("sentence1", "sentence2")
_MNLI_SPLITS = (
    ("train", "train"),
    *(("validation", "validation_matched"), ("validation_mm", "validation_mismatched")),
    *(("test", "test_matched"), ("test_mm", "test_mismatched")),
)

GLUE_TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",), "matthews_correlation"),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        Task("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), splits=_MNLI_SPLITS),
        Task("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        Task("rte", _PAIR, ("entailment", "not_entailment")),
        Task("stsb", _PAIR, None, ("pearsonr", "spearmanr"), "spearmanr"),
        Task("wnli", _PAIR, ("not_entailment", "entailment")),  # not in the paper's Table 1
        Task("sample", ("sentence",), ("unfavourable", "favourable"), hub_id=None),
    )
}


def get_task(task) -> Task:
    """The `Task` of a name; a `Task` is returned as it is. What takes a task below takes either."""
    if isinstance(task, Task):
        return task
    if task not in GLUE_TASKS:
        raise DataError(f"task_name must be one of {', '.join(GLUE_TASKS)}, got {shown_value(task)}.")
    return GLUE_TASKS[task]


def load_task(
    task, *, train_file=None, validation_file=None, test_file=None, cache_dir=None, token=None, loader=None
) -> DatasetDict:
    """Load a task's rows: from files where any is given, else from its loader (sample) or from the hub.

    Args:
        train_file, validation_file, test_file: .jsonl, .json, .csv or .tsv files with the hub's column names. With one
            of them every split comes from a file, and a split without a file is left out. Labels may be ids or names.
        loader: function without arguments that gives the `DatasetDict` of a task that is not on the hub.
    Returns:
        The splits train, validation and test, where there are such; of mnli also validation_mm and test_mm (hub only).
    Raises:
        DataError: If a file is malformed, or the hub cannot be reached and the data is not in its cache.
    """
    task = get_task(task)
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {split: path for split, path in files.items() if path is not None}
    if files:
        return DatasetDict({split: _from_file(path, task, split) for split, path in files.items()})
    if task.hub_id is not None:
        return load_from_hub(task.hub_id, task.hub_config, task.splits, cache_dir=cache_dir, token=token)
    if loader is None:
        raise DataError(
            f"The task {task.name} is not on the hub. Give local files with --train_file and --validation_file."
        )
    return loader()


def _from_file(path, task: Task, split: str) -> Dataset:
    dataset = read_rows(path)
    check_split(dataset, task, split, path)
    columns = dataset.column_names
    if "label" not in columns:
        return dataset
    # The hub's feature types, so that nothing that follows can tell where the rows came from.
    feature = Value("float32") if task.is_regression else ClassLabel(names=list(task.label_names))
    labels = _encode_labels(dataset, task, shown_path(path))
    return dataset.remove_columns("label").add_column("label", labels, feature=feature).select_columns(columns)


def check_split(dataset: Dataset, task, split: str, path=None) -> None:
    """Check that the rows of one split are rows of the task, before anything slow starts.

    Args:
        split: "train" (needs labels, at least two of them), "validation" (needs labels) or "test" (may have none).
    Raises:
        DataError: On the first thing that is wrong; rows are counted from 1, without a header.
    """
    task = get_task(task)
    source = shown_path(path) if path is not None else f"The {split} split"
    if len(dataset) == 0:
        raise DataError(f"{source} has no rows. Give at least one row for {split}.")
    needed = task.text_columns if split.startswith("test") else (*task.text_columns, "label")
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"{source} has no column {missing[0]!r}: {task.name} needs {', '.join(needed)}, and the columns given are "
            f"{shown_columns(dataset.column_names)}. Rename the columns, or choose another --task_name."
        )
    for column in task.text_columns:
        for row, text in enumerate(dataset[column][:], 1):
            if not isinstance(text, str):
                raise DataError(
                    f"{source}, row {row}: {column} is {shown_value(text)}, and text is needed. Write it as a string, "
                    "or leave the row out."
                )
    if "label" not in dataset.column_names:
        return
    labels = _encode_labels(dataset, task, source)
    if task.unlabelled in labels and not split.startswith("test"):
        row = labels.index(task.unlabelled)
        raise DataError(
            f"{source}, row {row + 1}: the row has no label (label {shown_value(dataset['label'][row])}), and every "
            f"row for {split} needs one. Give the label, or leave the row out."
        )
    if split == "train" and len(set(labels)) == 1:
        only = f"{labels[0]}" + ("" if task.is_regression else f" ({task.label_names[labels[0]]})")
        raise DataError(
            f"{source}: every row ({len(labels)}) has the label {only}, and training needs two labels at least. "
            "Add rows with another label, or check the label column."
        )


def _encode_labels(dataset: Dataset, task: Task, source: str) -> list:
    """The label column as ids (scores for regression), with `Task.unlabelled` where a row has none."""
    labels = []
    for row, value in enumerate(dataset["label"][:], 1):
        try:
            labels.append(_encode_label(value, task))
        except ValueError:
            names = [f"{index} ({name})" for index, name in enumerate(task.label_names or ())]
            needed = f"{task.name} has {', '.join(names)}" if names else f"{task.name} needs a finite number"
            raise DataError(
                f"{source}, row {row}: the label is {shown_value(value)}, and {needed}. Correct the label, or leave "
                "the row out."
            ) from None
    return labels


def _encode_label(value, task: Task):
    """An id or a score; `ValueError` where it is neither."""
    if value is None or value == "":
        return task.unlabelled
    if isinstance(value, str) and not task.is_regression:
        names = [name.casefold() for name in task.label_names]
        if value.strip().casefold() in names:
            return names.index(value.strip().casefold())
    if isinstance(value, bool) or "_" in str(value):  # Python reads "1_0" as 10
        raise ValueError
    try:
        number = float(value)
    except (TypeError, OverflowError):
        raise ValueError from None
    if not (abs(number) <= LARGEST if task.is_regression else number in range(UNLABELLED, task.num_labels)):
        raise ValueError
    return number if task.is_regression else int(number)


def align_labels(model_config, task) -> tuple[dict, dict]:
    """The label ids to train with: the model's own, if it was trained on these labels before, else the task's.

    A checkpoint may number the labels of its task in another order (many MNLI models start with contradiction). Its
    head is of use only with its own numbers, so they win where the names are the task's; capitals do not count.

    Args:
        model_config: the base model's config. Names such as LABEL_0 say nothing and are passed over.
    Returns:
        (label2id, id2label), in the task's names: for the config, and for `tokenize` and `compute_metrics`.
    """
    task = get_task(task)
    names = ["LABEL_0"] if task.is_regression else list(task.label_names)
    label2id = {name: index for index, name in enumerate(names)}
    given = getattr(model_config, "label2id", None) or {}
    given = {str(name).casefold(): int(index) for name, index in given.items()}
    if not task.is_regression and not all(name.startswith("label_") for name in given):
        if given.keys() == {name.casefold() for name in names} and sorted(given.values()) == list(range(len(names))):
            label2id = {name: given[name.casefold()] for name in names}
        else:
            logger.warning(
                f"The base model was trained on the labels {', '.join(given)}, {task.name} has {', '.join(names)}: "
                "the labels are numbered as in the task."
            )
    return label2id, {index: name for name, index in sorted(label2id.items(), key=lambda item: item[1])}


def tokenize(
    dataset: Dataset, tokenizer, task, max_seq_length: int = 128, pad_to_max_length: bool = False, label2id=None
) -> Dataset:
    """Turn texts into what a sequence classifier takes; texts, idx and all other columns are dropped.

    Args:
        dataset: rows with the task's columns; labels are ids, names or, for regression, numbers.
        max_seq_length: longer texts are cut, of a pair the longer one first.
        pad_to_max_length: pad every row; otherwise the collator pads each batch.
        label2id: the model's ids by label name, from `align_labels`; `None` keeps the task's.
    Returns:
        input_ids, attention_mask (token_type_ids where the tokenizer makes them) and labels, -1 (None for regression)
        where a row has none (test splits): take that column away before a model computes a loss.
    Raises:
        DataError: If a label is none of the task's, or max_seq_length leaves no room for text.
    """
    task = get_task(task)
    longest = getattr(tokenizer, "model_max_length", None) or max_seq_length
    if max_seq_length > longest:
        logger.warning("max_seq_length %d is more than the model takes; using %d.", max_seq_length, longest)
        max_seq_length = longest
    special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    if max_seq_length < special + len(task.text_columns):
        raise DataError(
            f"max_seq_length={max_seq_length} leaves no room for text: {task.name} needs {special} special tokens and "
            f"at least one token for each text. Give --max_seq_length {special + len(task.text_columns)} or more."
        )
    if pad_to_max_length and tokenizer.pad_token is None:
        raise DataError("pad_to_max_length needs a padding token, the tokenizer has none. Set tokenizer.pad_token.")
    labels = [task.unlabelled] * len(dataset)
    if "label" in dataset.column_names:
        labels = _encode_labels(dataset, task, "The data set")

    def encode(batch):
        texts = [batch[column] for column in task.text_columns]
        padding = "max_length" if pad_to_max_length else False
        return tokenizer(*texts, padding=padding, max_length=max_seq_length, truncation=True)

    # Rows from files live in memory, and so does what is made of them; the hub's rows have a cache that map can use.
    memory, columns = not dataset.cache_files, dataset.column_names
    encoded = dataset.map(encode, batched=True, remove_columns=columns, keep_in_memory=memory, desc="Tokenizing")
    lengths = [pc.list_value_length(batch["input_ids"]) for batch in encoded.with_format("arrow").iter(10_000)]
    for row, length in enumerate(length for own in lengths for length in own.to_pylist()):
        if not length:
            texts = shown_value(dataset[row][task.text_columns[0]])
            raise DataError(
                f"Row {row + 1} has no token: {texts} is none to this tokenizer. Write a text, or leave it out."
            )
    if label2id is not None and not task.is_regression:
        order = [label2id[name] for name in task.label_names]  # the task's id -> the model's id
        labels = [label if label == UNLABELLED else order[label] for label in labels]
    return encoded.add_column("labels", labels, feature=Value("float32" if task.is_regression else "int64"))
