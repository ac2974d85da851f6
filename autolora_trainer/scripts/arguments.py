"""The arguments of the scripts, in four groups: dataclasses for `HfArgumentParser`."""

import importlib.util
import os
import sys
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments

from autolora_trainer.clean import usable_token
from autolora_trainer.lora.bits import check_bitsandbytes
from autolora_trainer.machine import is_terminal
from autolora_trainer.methods.adapter import AdapterArguments
from autolora_trainer.methods.autolora import RetrainArguments
from autolora_trainer.methods.grid import GridArguments
from autolora_trainer.methods.grid_space import SAMPLERS
from autolora_trainer.methods.lora import LoraArguments
from autolora_trainer.methods.peft_types import PeftTypeArguments
from autolora_trainer.methods.registry import METHODS, owners
from autolora_trainer.search.arguments import SEARCH_STEPS, SearchArguments
from autolora_trainer.training.finite import NonFiniteArguments
from autolora_trainer.training.processes import launched, waiting_is_said
from autolora_trainer.values import MAX_ADAPTER_SIZE, MAX_RANK, check_choice, check_numbers, setting

# `--preset paper`: §4 (softmax, 1/k, one virtual SGD step, retrain) and §5.1-5.2 (k=8, rates, batch, split 1:1);
# LoRA's own settings are those of the paper's code (lora_alpha 16 at a fixed value, dropout 0.1). Where the paper is
# silent: default.
PRESETS = {
    "paper": {
        "initial_rank": 8,
        "constraint": "softmax",
        "gate_scaling": "paper",
        "rank_rule": "threshold",
        "size": None,
        "min_rank": 1,
        "val_fraction": 0.5,
        "hypergradient": "finite_difference",
        "finite_difference": "central",
        "hypergradient_interval": 1,
        "virtual_step": "sgd",
        "search_learning_rate": 1e-4,
        "selection_learning_rate": 1e-3,
        "search_look_steps": 0,
        "search_epochs": 1.0,
        "lora_target_modules": ["query-value"],
        "scaling": "paper",
        "retrain_init": "scratch",
        "retrain_cut": 0.0,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 16,
        "optim": "adamw_torch",
        "lora_alpha": 16,
        "lora_dropout": 0.1,
    }
}


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str = setting("roberta-base", "A model of the Hub, or a folder with a checkpoint.")
    tokenizer_name: str | None = setting(None, "Default: the model's.")
    base_model_id: str | None = setting(
        None, "The base model's Hub id for the model card and adapter_config.json, where the model is a folder."
    )
    model_revision: str = setting("main", "Branch, tag or commit of the model.")
    attn_implementation: str | None = setting(None, "eager, sdpa, flash_attention_2 …. Default: the model's.")
    cache_dir: str | None = setting(None, "Where downloads are kept.")
    token: str | None = field(
        default=None, repr=False, metadata={"help": "Hub token. Default: the one of `hf auth login`."}
    )
    trust_remote_code: bool = setting(False, "Run code that comes with the model. Only as typed, never from a file.")
    dtype: str = setting(
        "float32", "Of the frozen weights of a causal language model: float32 or bfloat16 (half the memory)."
    )
    load_in_8bit: bool = setting(False, "Hold the frozen weights in 8 bit (bitsandbytes; on a CPU too).")
    load_in_4bit: bool = setting(False, "Hold the frozen weights in 4 bit, NF4 (bitsandbytes; on a CPU too).")

    def __post_init__(self):
        self.token = usable_token(self.token)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("Weights have one width, got --load_in_8bit and --load_in_4bit. Drop one of the two.")
        check_bitsandbytes(self.bits)

    @property
    def bits(self) -> int | None:
        """Of the frozen weights, where bitsandbytes holds them."""
        return 8 if self.load_in_8bit else 4 if self.load_in_4bit else None


@dataclass
class DataArguments:
    """Which rows to train and evaluate on."""

    task_name: str | None = setting(None, "The task: its columns, labels and metric.")
    train_file: str | None = setting(None, "Training rows: JSON lines, JSON, CSV or TSV.")
    validation_file: str | None = setting(None, "Validation rows, likewise.")
    test_file: str | None = setting(None, "Rows to predict, likewise.")
    max_seq_length: int = setting(128, "Longer inputs are cut to this many tokens.")
    pad_to_max_length: bool = setting(False, "Pad to max_seq_length, not to the longest of a batch.")
    max_train_samples: int | None = setting(None, "Train on the first N rows.")
    sample_seed: int | None = setting(
        None, "Draw the rows of max_train_samples at random, by this seed; for files in some order."
    )
    max_eval_samples: int | None = setting(None, "Evaluate on the first N rows.")
    max_predict_samples: int | None = setting(None, "Predict the first N rows.")

    def __post_init__(self):
        rows = "max_train_samples max_eval_samples max_predict_samples"
        check_numbers(self, {"at least 1": rows, "from 0 to 4294967295": "sample_seed"})
        if self.sample_seed is not None and self.max_train_samples is None:
            raise ValueError(f"--sample_seed {self.sample_seed} draws no rows without --max_train_samples N. Add it.")
        if self.max_seq_length < 4:
            raise ValueError(f"max_seq_length must be at least 4, got {self.max_seq_length}.")


@dataclass
class ChosenArguments:
    """Which method, from which ranks, and how long a search may take."""

    method: str = setting("autolora", "One of " + ", ".join(METHODS) + ".")
    preset: str | None = setting(None, "paper: the settings of §4 and §5.1, exactly.")
    ranks: str | None = setting(
        None, "A ranks.json. autolora: skip the search; eva and pattern baselines: match its size."
    )
    search_learning_rate: float | None = setting(
        None, "Learning rate of the weights in the search. Default: learning_rate."
    )
    search_epochs: float | None = setting(
        None,
        f"Epochs of the search over D_tr. Default: until it has learned and settled, {SEARCH_STEPS} weight steps at "
        "most.",
    )
    search_max_steps: int = setting(-1, "Weight steps of the search, instead of search_epochs; see search_look_steps.")


@dataclass
class MethodArguments(
    # the last base has the first fields
    GridArguments,
    PeftTypeArguments,
    AdapterArguments,
    LoraArguments,
    RetrainArguments,
    ChosenArguments,
    SearchArguments,
):
    """How to adapt the model."""

    overwrite: bool = setting(False, "Replace a finished run in output_dir.")

    def __post_init__(self):
        super().__post_init__()
        check_choice("method", self.method, tuple(METHODS))
        check_choice("scaling", self.scaling, ("constant", "paper"))
        if self.retrain_init is not None:
            check_choice("retrain_init", self.retrain_init, ("scratch", "search"))
        if self.preset is not None:
            check_choice("preset", self.preset, tuple(PRESETS))
        check_numbers(
            self,
            {
                "at least 1": "lora_r lora_alpha adapter_size grid_trials",
                f"at most {MAX_RANK}": "initial_rank lora_r",
                f"at most {MAX_ADAPTER_SIZE}": "adapter_size",
                "a positive number": "search_epochs retrain_epochs search_learning_rate",
                "at least 0 and below 1": "lora_dropout retrain_cut",
                "at least 1, or -1 for its default": "search_max_steps",
            },
        )
        if self.retrain_cut and (self.retrain_init == "search" or self.scaling == "paper"):
            raise ValueError(
                "--retrain_cut starts from all components at one scale, got --retrain_init search or --scaling paper. "
                "Drop one of the two."
            )
        if self.search_max_steps > 0 and self._typed("search_epochs") is not None:
            raise ValueError(
                f"A search has one length, got --search_epochs {self.search_epochs} and --search_max_steps "
                f"{self.search_max_steps}. Drop one of the two."
            )
        if self.ranks is not None and self.retrain_init == "search":
            raise ValueError("--retrain_init search needs this run's own search, got --ranks. Drop one of the two.")
        self._refuse_own_arguments_of_others()
        self._refuse_shared_arguments()
        if self.sampler is not None:
            check_choice("sampler", self.sampler, SAMPLERS)

    def _typed(self, name: str):
        """The value of an argument; None where it is that of the preset, which holds for every method."""
        value = getattr(self, name)
        return None if value == PRESETS.get(self.preset, {}).get(name) else value

    def _refuse_own_arguments_of_others(self) -> None:
        """Raise `ValueError` for an argument of another method: it would have no effect."""
        method = METHODS[self.method]
        for other in METHODS.values():
            for own in fields(other.arguments) if other.arguments is not None else ():
                acts = own.name in method.reads or method.arguments is other.arguments
                if not acts and self._typed(own.name) not in (None, own.default):
                    owner = " or ".join(owners(own.name))
                    raise ValueError(f"--{own.name} is for --method {owner}, got --method {self.method}. Drop it.")

    def _refuse_shared_arguments(self) -> None:
        """Raise `ValueError` for an argument that several methods share, and this one does not read."""
        method = METHODS[self.method]
        ignored = {name for name in ("ranks", "lora_r", "size", "lora_target_modules")
                   if self._typed(name) is not None and name not in method.reads}  # fmt: skip
        if "ranks" in ignored:
            raise ValueError(
                f"--ranks is for autolora, eva and the pattern baselines, got --method {self.method}. Did you mean "
                "--method autolora?"
            )
        if "lora_r" in ignored:
            size = f", whose size is --size lora:{self.lora_r}" if method.has_lora else ""
            raise ValueError(f"--lora_r {self.lora_r} has no effect on --method {self.method}{size}. Drop it.")
        if "size" in ignored and not method.has_lora:
            raise ValueError(f"--size is for methods with ranks, got --method {self.method}. Drop it.")
        if "size" in ignored:
            raise ValueError(
                f"--size {self.size} has no effect on --method {self.method}, whose rank is --lora_r. "
                "Type that, or --method uniform."
            )
        if "lora_target_modules" in ignored:
            raise ValueError(
                f"--lora_target_modules is for LoRA and PEFT's other methods, got --method {self.method}. Drop it."
            )


@dataclass
class ScriptTrainingArguments(NonFiniteArguments, TrainingArguments):
    """`TrainingArguments` of the final training of every method, with the paper's defaults (§5.1)."""

    output_dir: str | None = setting(None, "Default: outputs/<task>-<method>.")
    do_train: bool = setting(
        False, "Train. With none of these three: train, evaluate, and predict the rows of test_file."
    )
    do_eval: bool = setting(False, "Evaluate; without do_train what output_dir holds.")
    do_predict: bool = setting(False, "Predict the test rows; without do_train by what output_dir holds.")
    push_to_hub: bool = setting(False, "Upload the finished result, with its model card.")
    learning_rate: float = setting(1e-4, "Learning rate of AdamW in the final training (§5.1).")
    per_device_train_batch_size: int = setting(16, "Batch size per process (§5.1).")
    per_device_eval_batch_size: int = setting(32, "Batch size of evaluation.")
    logging_steps: float = setting(50, "Log every N steps.")
    ddp_find_unused_parameters: bool | None = setting(
        False, "Look for parameters without a gradient; an adapter has none."
    )
    resume_from_checkpoint: str | None = setting(
        None, "Go on from the newest whole checkpoint of either phase (no value), or from this one."
    )

    def __post_init__(self):
        self.check_non_finite()
        self.hub_token = usable_token(self.hub_token, "hub_token")
        self.chose_cpu = False
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # there is no device to copy to
        self.chose_output_dir = self.output_dir is None
        self.asked = (self.do_train, self.do_eval, self.do_predict)  # before eval_strategy turns do_eval on
        if str(self.resume_from_checkpoint).lower() in ("none", "false", ""):
            self.resume_from_checkpoint = None
        if self.disable_tqdm is None:
            self.disable_tqdm = not is_terminal(sys.stderr)  # a log file is no place for a moving bar
        several = launched() > 1 and "LOCAL_RANK" in os.environ
        # without use_cpu accelerate starts no group of processes on CPUs, and each would do the whole run by itself
        if (self.bf16 or several) and not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu, self.chose_cpu = True, self.bf16
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"  # as with load_best_model_at_end
        if self.deepspeed and importlib.util.find_spec("deepspeed") is None:
            raise ValueError("--deepspeed needs DeepSpeed, which is not installed. Type pip install deepspeed.")
        check_numbers(
            self,
            {
                "a positive number": "learning_rate num_train_epochs logging_steps save_steps adam_epsilon",
                "at least 1": "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
                "save_total_limit",
                "at least 1, or -1 for its default": "max_steps",
                "at least 0": "weight_decay warmup_steps max_grad_norm eval_steps eval_delay",
                "at least 0 and below 1": "adam_beta1 adam_beta2 label_smoothing_factor",
                "from 0 to 1024": "dataloader_num_workers",  # each is a process
                "from 0 to 4294967295": "seed data_seed",
            },
        )
        with waiting_is_said():
            super().__post_init__()
