"""What a script adds to the pipeline: its tasks, how rows become batches, its model class, its scores.

`run_glue.py`, `run_ner.py` and `run_nlg.py` each hold one subclass; everything else is `scripts.pipeline`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer

from autolora_trainer.heldout.groups import grouped, input_links
from autolora_trainer.scripts.source import load_pretrained


@dataclass
class Rows:
    """The rows of a run, as its model takes them."""

    datasets: dict[str, Dataset] = field(default_factory=dict)  # {split: rows}: train, validation, test, if there
    tokenizer: object = None  # with a padding token
    collator: object = None  # rows -> batch
    groups: list | None = None  # of every training row; D_tr and D_val share none (see `heldout.groups`)
    sharing: str = ""  # a sentence about them, where a group has several rows


class TaskKind(ABC):
    """A kind of task.

    A subclass sets the class attributes and fills in `load_rows`, `check_rows`, `tokenize`, `make_collator` and
    `predict`; the rest has defaults. `request` is `scripts.request.Request`, `job` is `scripts.job.Job`.
    """

    task_type: str  # PEFT's, e.g. `SEQ_CLS`
    task_names: list[str]  # what `--task_name` may be
    task_aliases: dict[str, str] = {}  # {other name: task name}
    own_task: str | None = None  # the task name of a user's own files where none is typed; None: it must be typed
    auto_class = None  # e.g. `AutoModelForSequenceClassification`
    pads_either_side = False  # whether rows may be padded on the left as well as on the right
    tokenizer = None  # these two are the model's, changed for the task, after `load`
    config = None
    rows: Rows | None = None  # after `load`

    # ---- Rows: from files, from the Hub or built in, to batches

    def load(self, request) -> Rows:
        """Read, check, cut and tokenize the rows.

        Raises:
            ValueError: on the first thing that is wrong with the rows or the tokenizer.
        """
        raw = self.load_rows(request)
        self._check_splits(request, raw)
        self.tokenizer = self.load_tokenizer(request)
        self.config = self.load_config(request)
        data, datasets, groups = request.data, {}, (None, "")
        limits = {
            "train": data.max_train_samples,
            "validation": data.max_eval_samples,
            "test": data.max_predict_samples,
        }
        for split, dataset in raw.items():
            limit, path = limits[split.removesuffix("_mm")], getattr(data, f"{split}_file", None)
            if split == "train" and data.sample_seed is not None:
                self.check_rows(dataset, split, path)  # while the rows are where its messages say
                dataset = dataset.shuffle(seed=data.sample_seed, keep_in_memory=True)
            if limit is not None:
                dataset = dataset.select(range(min(limit, len(dataset))))
            self.check_rows(dataset, split, path)
            with request.training.main_process_first(desc="tokenization"):
                datasets[split] = self.tokenize(request, dataset, split)
            if split == "train":
                inputs = [own[0] for own in input_links(datasets[split])]
                groups = grouped(self.links(dataset, inputs))
        self.rows = Rows(datasets, self.tokenizer, self.make_collator(request), *groups)
        return self.rows

    @abstractmethod
    def load_rows(self, request) -> DatasetDict:
        """The rows of every split that there is, as they come: train, validation, test."""

    @abstractmethod
    def check_rows(self, dataset: Dataset, split: str, path: str | None) -> None:
        """Raise `DataError` if these are not rows of the task."""

    @abstractmethod
    def tokenize(self, request, dataset: Dataset, split: str) -> Dataset:
        """Rows to what the model takes; only those columns stay."""

    def links(self, dataset: Dataset, inputs: list) -> list[tuple]:
        """For every training row what it shares with rows that belong on its side of D_tr and D_val.

        Args:
            dataset: as `tokenize` was given it.
            inputs: of every row that `tokenize` made, what says whether the model reads the same.
        """
        return [(own,) for own in inputs]

    @abstractmethod
    def make_collator(self, request):
        """Rows to a batch; see `padding_multiple`."""

    def padding_multiple(self, request) -> int | None:
        """Padding to a multiple of 8 suits tensor cores; on a CPU it is work for nothing."""
        training = request.training
        return 8 if (training.fp16 or training.bf16) and not training.use_cpu else None

    def _check_splits(self, request, raw) -> None:
        training = request.training
        evaluates = training.eval_strategy != "no"
        asked = "do_eval" if training.asked[1] or not evaluates else "eval_strategy"
        needs = {
            "train": ("do_train", training.do_train),
            "validation": (asked, training.do_eval or evaluates),
            "test": ("do_predict", training.do_predict),
        }
        for split, (argument, needed) in needs.items():
            if needed and split not in raw:
                raise ValueError(f"--{argument} needs rows, got no {split} rows. Add --{split}_file.")

    def load_tokenizer(self, request, **arguments):
        """The tokenizer, with a padding token (GPT-2 and Llama have none)."""
        model = request.model
        name = model.tokenizer_name or model.model_name_or_path
        tokenizer = load_pretrained(AutoTokenizer, name, model, **arguments)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without one
            raise ValueError(f"{name} holds no tokenizer: it knows no word. Give one with --tokenizer_name.")
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    f"The tokenizer of {model.model_name_or_path} has neither a padding nor an end token, and "
                    "batches need one. Give another with --tokenizer_name."
                )
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    # ---- Model

    def load_config(self, request):
        """The model's config, changed for the task."""
        return load_pretrained(AutoConfig, request.model.model_name_or_path, request.model)

    def check_model(self, request, model) -> None:
        """Raise `ValueError` for a model that loads and cannot do the task."""

    # ---- Scores

    def metric_names(self) -> tuple[str, ...]:
        """What `compute_metrics` will give, by bare name, as far as it is known before the run."""
        return ()

    def compute_metrics(self):
        """Trainer's `compute_metrics`; None: the loss alone."""
        return None

    def evaluation_splits(self, rows: Rows) -> dict[str, str]:
        """{suffix of the metric: split}; MNLI has mismatched rows too."""
        splits = {"": "validation", "_mm": "validation_mm"}
        return {suffix: split for suffix, split in splits.items() if split in rows.datasets}

    def extra_scores(self, job, trainer, split: str) -> dict[str, float]:
        """Scores that one forward pass per batch does not give, such as those of generated text, by bare name."""
        return {}

    @abstractmethod
    def predict(self, job, trainer) -> dict[str, float]:
        """Write `predict_results_<task>.txt` for the test rows; return their scores, by bare name, where they have
        labels."""

    def save(self, folder: str) -> None:
        """Write what belongs beside the adapter and neither PEFT nor the tokenizer writes."""

    def card_details(self, request) -> dict:
        """`task_name`, `dataset_id` (None for own rows) and `dataset_name` of the model card."""
        return self.data_details(request, request.data.task_name)

    def data_details(self, request, name: str, dataset_id: str | None = None) -> dict:
        """The card's details for data of this name and Hub id, or for a user's own rows in its form."""
        data = request.data
        own = any((data.train_file, data.validation_file))
        if own and data.task_name != self.own_task:
            name = f"own rows in the form of {name}"
        return {"task_name": data.task_name, "dataset_id": None if own else dataset_id, "dataset_name": name}
