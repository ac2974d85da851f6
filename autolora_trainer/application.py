"""What a script adds to the pipeline: its tasks, how rows become batches, its model class, its scores.

`run_glue.py`, `run_ner.py` and `run_nlg.py` each hold one subclass; everything else is `autolora_trainer.pipeline`.
"""

import copy
import os
from abc import ABC, abstractmethod

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

from autolora_trainer.errors import sentence
from autolora_trainer.heads import fresh_modules
from autolora_trainer.tasks import hub_data


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
        groups: for every training row what it is made from, after `load_data`, where several rows can be made from one
            input; they are not split.
    """

    task_type: str
    task_names: list[str]
    task_aliases: dict[str, str] = {}
    own_task: str | None = None
    auto_class = None
    groups: list | None = None

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
            limit, path = limits[split.removesuffix("_mm")], getattr(run.data, f"{split}_file", None)
            if split == "train" and run.data.sample_seed is not None:
                self.check_rows(dataset, split, path)  # while the rows are where its messages say
                dataset = dataset.shuffle(seed=run.data.sample_seed, keep_in_memory=True)
            if limit is not None:
                dataset = dataset.select(range(min(limit, len(dataset))))
            self.check_rows(dataset, split, path)
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
        training = run.training
        evaluates = training.eval_strategy != "no"
        asked = "do_eval" if training.asked[1] or not evaluates else "eval_strategy"
        needs = {
            "train": ("do_train", training.do_train),
            "validation": (asked, training.do_eval or evaluates),
            "test": ("do_predict", training.do_predict),
        }
        for split, (argument, needed) in needs.items():
            if needed and split not in rows:
                raise ValueError(f"--{argument} needs rows, got no {split} rows. Add --{split}_file.")

    def load_tokenizer(self, run, **arguments):
        """The tokenizer, with a padding token (GPT-2 and Llama have none)."""
        name = run.model.tokenizer_name or run.model.model_name_or_path
        tokenizer = load_pretrained(AutoTokenizer, name, run.model, **arguments)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without one
            raise ValueError(f"{name} holds no tokenizer: it knows no word. Give one with --tokenizer_name.")
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
        """The pre-trained model for the task, with a new head where it has none; in fp32 but for what `--dtype`,
        `--load_in_8bit` and `--load_in_4bit` say of frozen weights."""
        if run.model.dtype != "float32" and self.task_type != "CAUSAL_LM":
            raise ValueError(
                f"--dtype {run.model.dtype} would train the new head in it. Drop it; --bf16 is for speed."
            )
        if run.model.dtype != "float32" and run.method.method in ("full", "adapter"):
            raise ValueError(
                f"--dtype {run.model.dtype} is for frozen weights, and --method {run.method.method} would train in "
                "it. Drop it; --bf16 is for speed."
            )
        model, info = load_pretrained(
            self.auto_class,
            run.model.model_name_or_path,
            run.model,
            output_loading_info=True,
            config=copy.deepcopy(self.config),
            dtype=run.model.dtype,
            ignore_mismatched_sizes=True,
            attn_implementation=run.model.attn_implementation,
            quantization_config=quantization(run),
        )
        check_weights(model, info, run.model.model_name_or_path)
        model.fresh_modules = run.fresh_modules = fresh_modules(model, info)
        if run.model.base_model_id:
            model.name_or_path = model.config._name_or_path = run.model.base_model_id
        if model.config.pad_token_id is None:
            model.config.pad_token_id = run.tokenizer.pad_token_id
        return model

    def check_model(self, run, model) -> None:
        """Raise `ValueError` for a model that loads and cannot do the task."""

    # ---- Scores

    def metric_names(self, run) -> tuple[str, ...]:
        """What `compute_metrics` will give, by bare name, as far as it is known before the run."""
        return ()

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
        return self.data_details(run, run.data.task_name)

    def data_details(self, run, name: str, dataset_id: str | None = None) -> dict:
        """The card's details for data of this name and Hub id, or for a user's own rows in its form."""
        own = any((run.data.train_file, run.data.validation_file))
        if own and run.data.task_name != self.own_task:
            name = f"own rows in the form of {name}"
        return {"task_name": run.data.task_name, "dataset_id": None if own else dataset_id, "dataset_name": name}


def quantization(run) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds the frozen weights; heads stay as they are, since they are trained or tied.

    Raises:
        ValueError: for a method that trains more than an adapter.
    """
    model, method = run.model, run.method.method
    if not (model.load_in_8bit or model.load_in_4bit):
        return None
    if method in ("full", "adapter"):
        raise ValueError(f"--load_in_{8 if model.load_in_8bit else 4}bit is for LoRA, got --method {method}. Drop it.")
    return BitsAndBytesConfig(
        load_in_8bit=model.load_in_8bit,
        load_in_4bit=model.load_in_4bit,
        bnb_4bit_quant_type="nf4",  # QLoRA (Dettmers et al. 2023)
        bnb_4bit_compute_dtype="bfloat16" if run.training.bf16 else model.dtype,
        llm_int8_skip_modules=["classifier", "score", "lm_head"],
    )


def load_pretrained(auto_class, name: str, model, **arguments):
    """`auto_class.from_pretrained(name)` with the script's Hub arguments, and one line for what can go wrong.

    Args:
        auto_class: e.g. `AutoConfig`.
        name: a Hub id or a folder.
        model: `ModelArguments`.
    Raises:
        ValueError: if there is no such model, or it cannot be reached.
    """
    if not os.path.isdir(name) and not hub_data.hub_answers():
        arguments["local_files_only"] = True  # the client asks a silent Hub for minutes, file by file
    try:
        return auto_class.from_pretrained(
            name,
            cache_dir=model.cache_dir,
            revision=model.model_revision,
            token=model.token,
            trust_remote_code=model.trust_remote_code,
            **arguments,
        )
    except Exception as error:  # transformers, tokenizers and safetensors raise nearly every kind
        raise ValueError(_load_failure(auto_class, name, model, error)) from error


def _load_failure(auto_class, name: str, model, error: Exception) -> str:
    """Why `auto_class` could not be loaded, and what to type."""
    arguments = {model.tokenizer_name: "--tokenizer_name", model.model_name_or_path: "--model_name_or_path"}
    advice = f"Give another with {arguments.get(name, '--output_dir')}"
    if "trust_remote_code" in str(error):
        return f"{name} comes with code of its own. Type --trust_remote_code if you trust it. {advice} if not."
    reason = sentence(error).partition(" Model type should be one of")[0]  # a hundred names follow
    if os.path.isdir(name):
        return f"The folder {name} gives no {auto_class.__name__}: {reason} {advice}."
    if isinstance(error, OSError):
        return (
            f"Could not load {name!r}: it is no folder here, and the Hugging Face Hub does not give it (no "
            "connection, or no such model). Give a folder with --model_name_or_path, or connect once so that the "
            "model is cached."
        )
    return f"Could not load {name!r}: {reason} {advice}."


def check_weights(model, info: dict, name: str) -> None:
    """Raise `ValueError` where a checkpoint does not hold the model: transformers draws at random what it lacks, which
    is right for a task's new head, and says so in a warning.

    Args:
        model: as `from_pretrained` made it.
        info: of `output_loading_info=True`.
        name: where it comes from.
    """
    inside = f"{model.base_model_prefix}."
    other = sorted(key for key, *_ in info["mismatched_keys"] if key.startswith(inside))
    if other:
        raise ValueError(
            f"The weights in {name} have other shapes than its config says, {len(other)} of them; the first is "
            f"{other[0]!r}. Give a model whose files belong together with --model_name_or_path."
        )
    wanted = [key for key in model.state_dict() if key.startswith(inside)]
    missing = sorted(key for key in info["missing_keys"] if key.startswith(inside))
    if 2 * len(missing) > len(wanted):
        raise ValueError(
            f"The weights in {name} are not those of a {type(model).__name__}: {len(missing)} of {len(wanted)} are "
            f"missing; the first is {missing[0]!r}. Give another model with --model_name_or_path."
        )
