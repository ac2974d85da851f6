"""The arguments of the scripts: dataclasses for `HfArgumentParser`, `--config file.yaml` and `--preset`.

What is typed wins over the YAML file, and the file over a preset: all three become one command line, in that order.
"""

import difflib
import importlib.util
import json
import math
import os
import re
import sys
from dataclasses import dataclass, field

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from autolora_trainer.arguments import (
    SEARCH_STEPS,
    NonFiniteArguments,
    SearchArguments,
    check_choice,
    check_effect,
)
from autolora_trainer.errors import UsageError, usage_errors
from autolora_trainer.methods import METHODS, OWN_ARGUMENTS, SIZED_BY_RANKS, WITHOUT_LORA
from autolora_trainer.methods.adapter import DEFAULT_SIZE
from autolora_trainer.methods.grid import SAMPLERS, TRIALS
from autolora_trainer.ranks import MAX_RANK

# `--preset paper`: §4 (softmax, 1/k, one virtual SGD step, retrain) and §5.1-5.2 (k=8, rates, batch, split 1:1);
# LoRA's own settings are those of the paper's code (lora_alpha 16 at a fixed value, dropout 0.1). Where the paper is
# silent: default.
PRESETS = {
    "paper": {
        "initial_rank": 8,
        "constraint": "softmax",
        "gate_scaling": "paper",
        "rank_rule": "threshold",
        "min_rank": 1,
        "val_fraction": 0.5,
        "hypergradient": "finite_difference",
        "finite_difference": "central",
        "hypergradient_interval": 1,
        "virtual_step": "sgd",
        "search_learning_rate": 1e-4,
        "selection_learning_rate": 1e-3,
        "search_patience": 0,
        "search_epochs": 1.0,
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


SECRET_ARGUMENTS = ("--token", "--hub_token")
LORA_RANK = 4  # §5.1
RETRAIN_ARGUMENTS = dict.fromkeys(("retrain_epochs", "retrain_init"), ("autolora",))  # as OWN_ARGUMENTS
MAX_ADAPTER_SIZE = 65_536

NUMBERS = {  # what a number must be: whether it is
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "at least 1, or -1 for its default": lambda value: value >= 1 or value == -1,
    "a positive number": lambda value: value > 0,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
    "from 0 to 4294967295": lambda value: 0 <= value < 2**32,
    f"at most {MAX_RANK}": lambda value: value <= MAX_RANK,
    f"at most {MAX_ADAPTER_SIZE}": lambda value: value <= MAX_ADAPTER_SIZE,
}


def check_numbers(arguments, needed: dict[str, str]) -> None:
    """Raise `ValueError` for the first number that is not finite or not what it must be.

    Args:
        arguments: a dataclass; None is no number.
        needed: {a key of `NUMBERS`: names of fields}.
    Example:
        >>> check_numbers(DataArguments(max_train_samples=0), {"at least 1": "max_seq_length max_train_samples"})
        Traceback (most recent call last):
        ValueError: max_train_samples must be at least 1, got 0.
    """
    for words, names in needed.items():
        for name in names.split():
            value = getattr(arguments, name)
            if value is not None and not (math.isfinite(value) and NUMBERS[words](value)):
                raise ValueError(f"{name} must be {words}, got {value}.")


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str = field(
        default="roberta-base", metadata={"help": "A model of the Hub, or a folder with a checkpoint."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Default: the model's."})
    base_model_id: str | None = field(
        default=None,
        metadata={
            "help": "The base model's Hub id for the model card and adapter_config.json, where the model is a folder."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2 …. Default: the model's."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    token: str | None = field(default=None, metadata={"help": "Hub token. Default: the one of `hf auth login`."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model. Only as typed, never from a file."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Of the frozen weights of a causal language model: float32 or bfloat16 (half the memory)."},
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Hold the frozen weights in 8 bit (bitsandbytes; on a CPU too)."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Hold the frozen weights in 4 bit, NF4 (bitsandbytes; on a CPU too)."}
    )

    def __post_init__(self):
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("Weights have one width, got --load_in_8bit and --load_in_4bit. Drop one of the two.")
        if (self.load_in_8bit or self.load_in_4bit) and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                f"--load_in_{'8' if self.load_in_8bit else '4'}bit needs bitsandbytes, which is not installed. Type "
                'pip install "autolora_trainer[quantization]", or drop it.'
            )


@dataclass
class DataArguments:
    """Which rows to train and evaluate on."""

    task_name: str | None = field(default=None, metadata={"help": "The task: its columns, labels and metric."})
    train_file: str | None = field(default=None, metadata={"help": "Training rows: JSON lines, JSON, CSV or TSV."})
    validation_file: str | None = field(default=None, metadata={"help": "Validation rows, likewise."})
    test_file: str | None = field(default=None, metadata={"help": "Rows to predict, likewise."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer inputs are cut to this many tokens."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad to max_seq_length, not to the longest of a batch."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N rows."})
    sample_seed: int | None = field(
        default=None,
        metadata={"help": "Draw the rows of max_train_samples at random, by this seed; for files in some order."},
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first N rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first N rows."})


@dataclass
class MethodArguments(SearchArguments):
    """How to adapt the model."""

    method: str = field(default="autolora", metadata={"help": "One of " + ", ".join(METHODS) + "."})
    preset: str | None = field(default=None, metadata={"help": "paper: the settings of §4 and §5.1, exactly."})
    ranks: str | None = field(
        default=None,
        metadata={"help": "A ranks.json. autolora: skip the search; eva and pattern baselines: match its size."},
    )
    search_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the weights in the search. Default: learning_rate."}
    )
    search_epochs: float | None = field(
        default=None, metadata={"help": f"Epochs of the search over D_tr. Default: {SEARCH_STEPS} weight steps."}
    )
    search_max_steps: int = field(
        default=-1,
        metadata={"help": "Weight steps of the search, at most, instead of search_epochs; see search_patience."},
    )
    retrain_epochs: float | None = field(
        default=None, metadata={"help": "Epochs of the retrain of autolora. Default: num_train_epochs."}
    )
    retrain_init: str | None = field(
        default=None,
        metadata={
            "help": "search: from the search's kept components and head; scratch: from the pre-trained model (§4.5). "
            "Default: search where this run searches, without --retrain_cut."
        },
    )
    retrain_cut: float = field(
        default=0.0,
        metadata={
            "help": "Share of the retrain that trains all initial_rank components; then every update is cut to its "
            "learned rank (truncated SVD) and trained on. 0: the learned ranks from the start (§4.5)."
        },
    )
    scaling: str = field(
        default="constant",
        metadata={
            "help": "constant: every module has the scale of plain LoRA of that size, lora_alpha / mean rank; paper: "
            "lora_alpha / its own rank."
        },
    )
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Rank of --method lora, average rank of --method adalora. Default: 4 (§5.1)."},
    )
    lora_alpha: int = field(default=16, metadata={"help": "LoRA's scale is lora_alpha / r."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before lora_A."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Modules to adapt, or all-linear. Default: PEFT's for the model, query and value."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / sqrt(r)."})
    adapter_size: int | None = field(
        default=None,
        metadata={"help": f"Width of the bottleneck of --method adapter. Default: {DEFAULT_SIZE} (Houlsby et al.)."},
    )
    adapter_layer_norm: bool | None = field(
        default=None,
        metadata={"help": "adapter: train the layer norms too. Default: true, as Houlsby et al. do."},
    )
    peft_type: str | None = field(
        default=None, metadata={"help": "The type of --method peft: IA3, PREFIX_TUNING, DORA, VERA, RANDLORA …."}
    )
    peft_kwargs: str | None = field(
        default=None, metadata={"help": "Settings of its PEFT config as JSON, e.g. '{\"num_virtual_tokens\": 10}'."}
    )
    sampler: str | None = field(
        default=None, metadata={"help": "Of --method grid: grid (default), random or tpe (Optuna's samplers)."}
    )
    grid_trials: int | None = field(
        default=None, metadata={"help": f"Configurations that --method grid tries. Default: {TRIALS} (§5.7)."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a finished run in output_dir."})

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
        if self.ranks is not None and self.method not in SIZED_BY_RANKS:
            raise ValueError(
                f"--ranks is for autolora, eva and the pattern baselines, got --method {self.method}. Did you mean "
                "--method autolora?"
            )
        self._check_own_arguments()

    @property
    def rank(self) -> int:
        """`--lora_r`, or its default."""
        return LORA_RANK if self.lora_r is None else self.lora_r

    @property
    def warm_start(self) -> bool:
        """Whether the retrain begins where the search ended."""
        if self.retrain_init is None:
            return self.ranks is None and not self.retrain_cut
        return self.retrain_init == "search"

    def _typed(self, name: str):
        """The value of an argument; None where it is that of the preset, which holds for every method."""
        value = getattr(self, name)
        return None if value == PRESETS.get(self.preset, {}).get(name) else value

    def _check_own_arguments(self) -> None:
        """Raise `ValueError` for an argument of another method: it would have no effect."""
        if self.retrain_cut and self.method != "autolora":
            raise ValueError(f"--retrain_cut is for --method autolora, got --method {self.method}. Drop it.")
        for name, methods in {**OWN_ARGUMENTS, **RETRAIN_ARGUMENTS}.items():
            if self._typed(name) is not None and self.method not in methods:
                raise ValueError(
                    f"--{name} is for --method {' or '.join(methods[:1] if name == 'peft_kwargs' else methods)}, got "
                    f"--method {self.method}. Drop it."
                )
        if self.lora_r is not None and self.method not in ("lora", "adalora", "peft"):
            size = f", whose size is --rank_budget lora:{self.lora_r}" if self.method not in WITHOUT_LORA else ""
            raise ValueError(f"--lora_r {self.lora_r} has no effect on --method {self.method}{size}. Drop it.")
        if self.rank_budget is not None and self.method in WITHOUT_LORA:
            raise ValueError(f"--rank_budget is for methods with ranks, got --method {self.method}. Drop it.")
        if self.rank_budget is not None and self.method == "lora":
            raise ValueError(
                f"--rank_budget {self.rank_budget} has no effect on --method lora, whose rank is --lora_r. Type that, "
                "or --method uniform."
            )
        if self.lora_target_modules is not None and self.method in ("full", "adapter"):
            raise ValueError(
                f"--lora_target_modules is for LoRA and PEFT's other methods, got --method {self.method}. Drop it."
            )
        if self.sampler is not None:
            check_choice("sampler", self.sampler, SAMPLERS)


@dataclass
class ScriptTrainingArguments(NonFiniteArguments, TrainingArguments):
    """`TrainingArguments` of the final training of every method, with the paper's defaults (§5.1)."""

    output_dir: str | None = field(default=None, metadata={"help": "Default: outputs/<task>-<method>."})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Learning rate of AdamW in the final training (§5.1)."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Batch size per process (§5.1)."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Batch size of evaluation."})
    logging_steps: float = field(default=50, metadata={"help": "Log every N steps."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without a gradient; an adapter has none."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Go on from the newest whole checkpoint of either phase (no value), or from this one."},
    )

    def __post_init__(self):
        self.check_non_finite()
        self.chose_cpu = False
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # there is no device to copy to
        self.chose_output_dir = self.output_dir is None
        self.asked = (self.do_train, self.do_eval, self.do_predict)  # before eval_strategy turns do_eval on
        if str(self.resume_from_checkpoint).lower() in ("none", "false", ""):
            self.resume_from_checkpoint = None
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()  # a log file is no place for a moving bar
        # without use_cpu accelerate starts no group of processes on CPUs, and each would do the whole run by itself
        several = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
        if (self.bf16 or several) and not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu, self.chose_cpu = True, self.bf16
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"  # as with load_best_model_at_end
        if self.deepspeed and importlib.util.find_spec("deepspeed") is None:
            raise ValueError("--deepspeed needs DeepSpeed, which is not installed. Type pip install deepspeed.")
        check_numbers(
            self,
            {
                "a positive number": "learning_rate num_train_epochs logging_steps save_steps",
                "at least 1": "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
                "save_total_limit",
                "at least 1, or -1 for its default": "max_steps",
                "at least 0": "weight_decay warmup_steps max_grad_norm adam_epsilon dataloader_num_workers eval_steps "
                "eval_delay",
                "at least 0 and below 1": "adam_beta1 adam_beta2 label_smoothing_factor",
                "from 0 to 4294967295": "seed data_seed",
            },
        )
        super().__post_init__()


class _OneLineParser(HfArgumentParser):
    def error(self, message):
        raise UsageError(f"{message}; --help lists the arguments")


def parse_arguments(
    argv: list[str] | None = None,
    task_defaults: dict[str, dict] | None = None,
    data_arguments: type = DataArguments,
    preset_changes: dict | None = None,
    **defaults,
):
    """Parse a script's command line.

    Args:
        argv: the arguments, without the program's name; default `sys.argv[1:]`.
        task_defaults: {task name: defaults of that task}, e.g. the built-in sample's own small model.
        data_arguments: `DataArguments`, or the script's own subclass of it.
        preset_changes: what a preset sets otherwise in this script, e.g. the batch size of §5.4.
        **defaults: defaults of the script that differ from the dataclasses'.
    Returns:
        (ModelArguments, DataArguments, MethodArguments, ScriptTrainingArguments).
    Raises:
        UsageError: one line, for whatever is wrong with them.
    """
    if argv is None:
        argv, sys.argv[1:] = sys.argv[1:], hide_secrets(sys.argv[1:])
    argv = [_with_underscores(word) for word in argv]
    groups = (ModelArguments, data_arguments, MethodArguments, ScriptTrainingArguments)
    parser = _OneLineParser(groups, allow_abbrev=False, prog=os.path.basename(sys.argv[0]))
    parser.add_argument("--config", help="A YAML file with any of these arguments; what is typed wins over it.")
    parser.set_defaults(**defaults)
    known = {action.dest: action for action in parser._actions}
    with usage_errors():
        typed, config = _take_config(argv)
        from_file = _config_tokens(config, known) if config else []
        name = _last_value(from_file + typed, "--preset")
        if name is not None:
            check_choice("preset", name, tuple(PRESETS))
        task = _last_value(from_file + typed, "--task_name")
        parser.set_defaults(**(task_defaults or {}).get(task and task.lower(), {}))
        preset = {**PRESETS[name], **(preset_changes or {})} if name is not None else {}
        tokens = _tokens(preset) + from_file + _complete_resume(typed)
        if _last_value(tokens, "--search_epochs") is not None and _last_value(tokens, "--search_max_steps") is None:
            parser.set_defaults(search_max_steps=-1)  # a task's own number of steps would win over epochs
        *groups, unknown = parser.parse_args_into_dataclasses(tokens, return_remaining_strings=True)
        typed_names = {word[2:].partition("=")[0] for word in from_file + typed if word.startswith("--")}
        check_effect(groups[2], typed_names)
        if unknown:
            raise ValueError(f"{unknown[0]} is no argument of this script.{_suggestion(unknown[0], known)}")
        return tuple(groups[:4])


def _suggestion(name: str, known) -> str:
    """What to type in place of an argument that there is not."""
    name = str(name).lstrip("-").partition("=")[0].replace("-", "_")
    close = difflib.get_close_matches(name, [dest for dest in known if dest not in ("config", "help")], 1)
    return f" Did you mean {close[0]}?" if close else " --help lists the arguments."


def hide_secrets(argv: list[str]) -> list[str]:
    """A command line without the Hub's tokens: trackers send `sys.argv` along (seen with wandb 0.31).

    Example:
        >>> hide_secrets(["--hub_token", "hf_abc", "--token=hf_abc", "--seed", "1"])
        ['--hub_token', '***', '--token=***', '--seed', '1']
    """
    hidden = []
    for word in argv:
        name, equals, _ = word.partition("=")
        if hidden and _with_underscores(hidden[-1]) in SECRET_ARGUMENTS:
            word = "***"
        hidden.append(f"{name}=***" if equals and _with_underscores(name) in SECRET_ARGUMENTS else word)
    return hidden


def _with_underscores(word: str) -> str:
    """`--hub-token=a-b` -> `--hub_token=a-b`: HfArgumentParser takes both, and so must what reads the words."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word


def _take_config(argv):
    """Split off `--config FILE`, `--config=FILE` or a file as the only argument."""
    if len(argv) == 1 and argv[0].endswith((".yaml", ".yml", ".json")) and not argv[0].startswith("-"):
        return [], argv[0]
    typed, config, index = [], None, 0
    while index < len(argv):
        if argv[index] == "--config":
            if index + 1 == len(argv) or argv[index + 1].startswith("--"):
                raise ValueError("--config needs a YAML file after it.")
            config, index = argv[index + 1], index + 2
        elif argv[index].startswith("--config="):
            config, index = argv[index].split("=", 1)[1], index + 1
        else:
            typed.append(argv[index])
            index += 1
    return typed, config


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a name stands once; PyYAML takes the last of several."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"it sets {name!r} twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-6, without a point, for text
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _config_tokens(path, known):
    """The settings of a YAML file as words of a command line.

    Args:
        path: of the file.
        known: {argument: action of the parser}.
    """
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.load(file, _UniqueKeys)
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}. Give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"--config {path} is not YAML: {reason}{where}. Write 'name: value' lines.") from None
    if not isinstance(settings, dict):
        given = "nothing" if settings is None else type(settings).__name__
        raise ValueError(f"--config {path} must hold 'name: value' lines, got {given}.")
    for name, value in settings.items():
        if name in ("config", "help"):
            raise ValueError(f"--config {path} sets {name}, which is for the command line alone. Type --{name}.")
        if name not in known:
            hint = " Write its settings without it." if isinstance(value, dict) else _suggestion(name, known)
            raise ValueError(f"--config {path} sets {name!r}, which is no argument.{hint}")
        if isinstance(value, list) and known[name].nargs not in ("+", "*"):
            raise ValueError(f"--config {path} sets {name} to the list {value}, and it takes one value. Write one.")
    if "trust_remote_code" in settings:
        raise ValueError(
            f"--config {path} sets trust_remote_code. Type --trust_remote_code yourself if you trust the model."
        )
    return _tokens(settings)


def _tokens(settings: dict) -> list[str]:
    """{'bf16': True, 'lora_target_modules': ['q', 'v']} -> ['--bf16=True', '--lora_target_modules', 'q', 'v']"""
    tokens = []
    for name, value in settings.items():
        if isinstance(value, list):
            if any(str(item).startswith("-") for item in value):
                raise ValueError(
                    f"the list {name} holds {next(i for i in value if str(i).startswith('-'))!r}, an argument. "
                    "Write values only."
                )
            tokens += [f"--{name}", *map(str, value)]
        elif value is not None:
            tokens.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return tokens


def _complete_resume(argv):
    """`--resume_from_checkpoint` without a value means True."""
    completed = []
    for index, token in enumerate(argv):
        completed.append(token)
        if token == "--resume_from_checkpoint" and (index + 1 == len(argv) or argv[index + 1].startswith("--")):
            completed.append("True")
    return completed


def _last_value(tokens, name):
    value = None
    for index, token in enumerate(tokens):
        if token == name and index + 1 < len(tokens):
            value = tokens[index + 1]
        elif token.startswith(name + "="):
            value = token.split("=", 1)[1]
    return value
