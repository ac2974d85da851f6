"""Benchmark data for the scripts: columns, labels, tokenization, metrics. Nothing here knows LoRA or the package."""

from autolora_trainer.tasks.files import DataError, read_rows
from autolora_trainer.tasks.glue import GLUE_TASKS, Task, align_labels, check_split, get_task, load_task, tokenize

__all__ = [
    "DataError",
    "GLUE_TASKS",
    "Task",
    "align_labels",
    "check_split",
    "get_task",
    "load_task",
    "read_rows",
    "tokenize",
]
