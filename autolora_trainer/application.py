"""What a script adds to the pipeline: its tasks, how rows become batches, its model class, its scores.

`run_glue.py`, `run_ner.py` and `run_nlg.py` each hold one subclass; everything else is `autolora_trainer.pipeline`.
"""

import copy
import os
from abc import ABC, abstractmethod

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer

from autolora_trainer.errors import one_line


class Application(ABC):
    """A kind of task.

    A subclass sets the class attributes and fills in `load_rows`, `check_rows`, `tokenize`, `make_collator` and
    `predict`; the rest has defaults.

    Attributes:
        task_type: PEFT's, e.g. `SEQ_CLS`.
        task_names: what `--task_name` may be.
        task_aliases: {other name: task name}.
        own_task: the task name of a user's own files where none is typed; None: it must be typed.
        auto_class: e.g. `AutoModelForSequenceClassification`.
        datasets: {split: tokenized rows}, after `load_data`.
    """

    task_type: str
    task_names: list[str]
    task_aliases: dict[str, str] = {}
    own_task: str | None = None
    auto_class = None

    # ---- Rows: from files, from the Hub or built in, to batches

    def load_data(self, run) -> None:
        """Read, check, cut and tokenize the rows, into `run.datasets`; set `run.tokenizer` and `run.data_collator`.

        Raises:
            ValueError: on the first thing that is wrong with the rows or the tokenizer.
        """
        self.datasets = run.datasets
        rows = self.load_rows(run)
        self._check_splits(run, rows)
        run.tokenizer = self.load_tokenizer(run)
        self.config = self.load_config(run)
        limits = {
            "train": run.data.max_train_samples,
            "validation": run.data.max_eval_samples,
            "test": run.data.max_predict_samples,
        }
        for split, dataset in rows.items():
            limit = limits[split.removesuffix("_mm")]
            if limit is not None:
                dataset = dataset.select(range(min(limit, len(dataset))))
            self.check_rows(dataset, split, getattr(run.data, f"{split}_file", None))
            with run.training.main_process_first(desc="tokenization"):
                run.datasets[split] = self.tokenize(run, dataset, split)
        run.data_collator = self.make_collator(run)

    @abstractmethod
    def load_rows(self, run) -> DatasetDict:
        """The rows of every split that there is, as they come: train, validation, test."""

    @abstractmethod
    def check_rows(self, dataset: Dataset, split: str, path: str | None) -> None:
        """Raise `DataError` if these are not rows of the task."""

    @abstractmethod
    def tokenize(self, run, dataset: Dataset, split: str) -> Dataset:
        """Rows to what the model takes; only those columns stay."""

    @abstractmethod
    def make_collator(self, run):
        """Rows to a batch; see `padding_multiple`."""

    def padding_multiple(self, run) -> int | None:
        """Padding to a multiple of 8 suits tensor cores; on a CPU it is work for nothing."""
        return 8 if (run.training.fp16 or run.training.bf16) and not run.training.use_cpu else None

    def _check_splits(self, run, rows) -> None:
        needs = {"train": run.training.do_train, "validation": run.training.do_eval, "test": run.training.do_predict}
        for split, needed in needs.items():
            if needed and split not in rows:
                argument = {"train": "do_train", "validation": "do_eval", "test": "do_predict"}[split]
                raise ValueError(f"--{argument} needs rows, got no {split} rows. Add --{split}_file.")

    def load_tokenizer(self, run, **arguments):
        """The tokenizer, with a padding token (GPT-2 and Llama have none)."""
        tokenizer = load_pretrained(
            AutoTokenizer, run.model.tokenizer_name or run.model.model_name_or_path, run.model, **arguments
        )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    f"The tokenizer of {run.model.model_name_or_path} has neither a padding nor an end token, and "
                    "batches need one. Give another with --tokenizer_name."
                )
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    # ---- Model

    def load_config(self, run):
        """The model's config, changed for the task."""
        return load_pretrained(AutoConfig, run.model.model_name_or_path, run.model)

    def load_model(self, run):
        """The pre-trained model for the task, in fp32, with a new head where it has none."""
        model = load_pretrained(
            self.auto_class,
            run.model.model_name_or_path,
            run.model,
            config=copy.deepcopy(self.config),
            dtype="float32",
            ignore_mismatched_sizes=True,
            attn_implementation=run.model.attn_implementation,
        )
        if run.model.base_model_id:
            model.name_or_path = model.config._name_or_path = run.model.base_model_id
        if model.config.pad_token_id is None:
            model.config.pad_token_id = run.tokenizer.pad_token_id
        return model

    # ---- Scores

    def compute_metrics(self, run):
        """Trainer's `compute_metrics`; None: the loss alone."""
        return None

    def evaluation_splits(self, run) -> dict[str, str]:
        """{suffix of the metric: split}; MNLI has mismatched rows too."""
        splits = {"": "validation", "_mm": "validation_mm"}
        return {suffix: split for suffix, split in splits.items() if split in run.datasets}

    def extra_scores(self, run, trainer, split: str) -> dict[str, float]:
        """Scores that one forward pass per batch does not give, such as those of generated text, by bare name."""
        return {}

    @abstractmethod
    def predict(self, run, trainer) -> dict[str, float]:
        """Write `predict_results_<task>.txt` for the test rows; return their scores, by bare name, where they have
        labels."""

    def save(self, run) -> None:
        """Write what belongs beside the adapter and neither PEFT nor the tokenizer writes."""

    def card_details(self, run) -> dict:
        """`task_name`, `dataset_id` (None for own rows) and `dataset_name` of the model card."""
        return {"task_name": run.data.task_name, "dataset_id": None, "dataset_name": run.data.task_name}


def load_pretrained(auto_class, name: str, model, **arguments):
    """`auto_class.from_pretrained(name)` with the script's Hub arguments, and one line for what can go wrong.

    Args:
        auto_class: e.g. `AutoConfig`.
        name: a Hub id or a folder.
        model: `ModelArguments`.
    Raises:
        ValueError: if there is no such model, or it cannot be reached.
    """
    try:
        return auto_class.from_pretrained(
            name,
            cache_dir=model.cache_dir,
            revision=model.model_revision,
            token=model.token,
            trust_remote_code=model.trust_remote_code,
            **arguments,
        )
    except OSError as error:
        if os.path.isdir(name):
            raise ValueError(f"The folder {name} holds no whole checkpoint: {one_line(error)}") from error
        raise ValueError(
            f"Could not load {name!r}: it is no folder here, and the Hugging Face Hub does not give it (no "
            "connection, or no such model). Give a folder with --model_name_or_path, or connect once so that the "
            "model is cached."
        ) from error
