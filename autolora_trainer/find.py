"""`find_ranks`: which modules, which ranks and how large, in one call before a training.

The rows and the loss are those of the trainer that `args` belong to; the search is `AutoLoraMixin` over it. What comes
back is a plain `peft.LoraConfig`, and the model as it was given.
"""

import dataclasses
import importlib
import os
import tempfile

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from autolora_trainer.lora.cut import check_cuttable
from autolora_trainer.ranks.adapter import save_adapter
from autolora_trainer.ranks.curve import Curve
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.curve import curve_figure
from autolora_trainer.search.arguments import (
    AutoLoraTrainingArguments,
    default_length,
)
from autolora_trainer.search.handover import adapter_tensors, handover_tensors
from autolora_trainer.search.trainer import AutoLoraMixin
from autolora_trainer.untouched import untouched

TRAINERS = {  # of whom a class of arguments is; the first that is found along its ancestors
    "SFTConfig": ("trl", "SFTTrainer"),
    "DPOConfig": ("trl", "DPOTrainer"),
    "KTOConfig": ("trl", "KTOTrainer"),
    "RewardConfig": ("trl", "RewardTrainer"),
    "Seq2SeqTrainingArguments": ("transformers", "Seq2SeqTrainer"),
    "TrainingArguments": ("transformers", "Trainer"),
}
TASK_TYPES = {  # by the end of a model's class name
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
# What a search has no use for: evaluations, checkpoints, uploads, a length of its own.
QUIET = {
    "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False,
    "report_to": "none", "run_name": None, "num_train_epochs": 1.0, "resume_from_checkpoint": None,
}  # fmt: skip


class RankSearch:
    """A search of ranks; see `find_ranks`, whose arguments it takes.

    Attributes:
        config: a plain `LoraConfig`, after `run`.
        ranks: `LearnedRanks`.
        curve: held-out loss against size; None for a size that was given.
        parameters: adapter parameters of the learned ranks.
        start: what the search has learned, {name in adapter_model.safetensors: tensor}; see `save_adapter`.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        train_dataset,
        peft_config: LoraConfig | None = None,
        *,
        eval_dataset=None,
        val_fraction: float = 0.2,
        args: TrainingArguments | None = None,
        data_collator=None,
        processing_class=None,
        trainer_class: type[Trainer] | None = None,
        size: str | int = "auto",
        tolerance: float = 0.05,
        max_lora_rank: int | None = None,
        min_rank: int = 0,
        initial_rank: int = 8,
        rank_rule: str = "contributions",
        search_steps: int | None = None,
        output_dir: str | os.PathLike | None = None,
        seed: int = 42,
    ):
        if peft_config is not None and type(peft_config) is not LoraConfig:
            raise ValueError(f"peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}.")
        if not hasattr(train_dataset, "__len__"):
            raise ValueError(
                f"Held-out rows are split off the training rows, and a stream ({type(train_dataset).__name__}) cannot "
                "be. Give a dataset with a length, e.g. Dataset.from_list(list(rows))."
            )
        self.model = AutoModelForCausalLM.from_pretrained(model) if isinstance(model, str) else model
        self.train_dataset, self.eval_dataset, self.peft_config = train_dataset, eval_dataset, peft_config
        self.trainer_class, self.output_dir = trainer_class or trainer_of(args, train_dataset), output_dir
        self.args = args
        self.prepared = {"data_collator": data_collator, "processing_class": processing_class}
        self.settings = {
            "val_fraction": val_fraction, "size": size, "tolerance": tolerance, "max_lora_rank": max_lora_rank,
            "min_rank": min_rank, "initial_rank": initial_rank, "rank_rule": rank_rule, "seed": seed,
            **({"max_steps": search_steps} if search_steps else default_length(rank_rule)),
        }  # fmt: skip
        self.config: LoraConfig | None = None
        self.ranks: LearnedRanks | None = None
        self.start: dict[str, torch.Tensor] = {}
        self.parameters = 0

    @property
    def curve(self) -> Curve | None:
        return None if self.ranks is None else self.ranks.curve

    def run(self) -> "RankSearch":
        """Search; the model is given back as it came, after an exception and Ctrl-C too."""
        with untouched(self.model), tempfile.TemporaryDirectory() as temporary:
            base, given = self._base()
            settings = {**self.settings, "output_dir": os.fspath(self.output_dir or temporary)}
            if settings["size"] == "same":
                settings["size"] = f"lora:{given.r}"
            trainer = _searching(self.trainer_class)(
                model=base, args=search_arguments(self.args, settings, self.trainer_class),
                train_dataset=self.train_dataset, eval_dataset=self.eval_dataset, val_dataset=self.eval_dataset,
                peft_config=given,
                **{name: value for name, value in self.prepared.items() if value is not None},
            )  # fmt: skip
            trainer.train()
            self.ranks = trainer.learned_ranks
            directions = self.settings["rank_rule"] != "threshold"
            chosen = trainer.rank_selection.found.chosen
            start = handover_tensors(trainer.gates, chosen, directions, trainer.model)
            parts = trainer.gates.parts.items()
            rows = {n: (p.rows, p.layer.lora_B["default"].weight.shape[0]) for n, p in parts if p.rows is not None}
            self.config = self.ranks.to_lora_config(given)
            self.start = adapter_tensors(start, self.config, rows)
            self.parameters = sum(part.cost * self.ranks.ranks[name] for name, part in parts)
        return self

    def _base(self) -> tuple[torch.nn.Module, LoraConfig]:
        """(model without an adapter, the LoRA settings of the search)."""
        if not isinstance(self.model, PeftModel):
            return self.model, self.peft_config or LoraConfig(
                task_type=task_type_of(self.model), target_modules="all-linear"
            )
        name = self.model.active_adapter
        check_cuttable(self.model, name)
        config = self.peft_config or dataclasses.replace(
            self.model.peft_config[name], rank_pattern={}, alpha_pattern={}, inference_mode=False
        )
        return self.model.unload(), config

    def plot(self):
        """The curve as a matplotlib figure."""
        if self.curve is None:
            raise ValueError("There is no curve: call run() first, with size auto.")
        return curve_figure(self.curve, self.parameters)

    def save_adapter(self, folder: str | os.PathLike) -> None:
        """Write a trainable PEFT adapter of the learned ranks that holds what the search has learned, for tools that
        go on training an adapter."""
        if self.config is None:
            raise ValueError("There is nothing to save. Call run() first.")
        save_adapter(self.config, self.start, folder)


def find_ranks(model, train_dataset, peft_config: LoraConfig | None = None, **settings) -> LoraConfig:
    """Which modules, which ranks and how large: a plain `LoraConfig` for `SFTTrainer(peft_config=...)`,
    `get_peft_model` and any Trainer.

    Args:
        model: a model as `SFTTrainer` takes it, a Hub id of a causal language model, or a `PeftModel`, of which the
            base and the LoRA settings are taken; it is given back as it came.
        train_dataset: as the trainer takes it.
        peft_config: a `LoraConfig` whose task_type, target_modules, lora_alpha … are kept. Default: all linear
            layers.
        eval_dataset: held-out rows, which choose; default: `val_fraction` (0.2) of the training rows.
        args: `TrainingArguments`, `SFTConfig`, `DPOConfig` …: batch, precision, rate. Its trainer prepares the rows;
            without any, `SFTTrainer` where they are texts.
        data_collator, processing_class, trainer_class: as the trainer takes them; by default that of `args`.
        size: auto (found on held-out rows), same (as many parameters as peft_config), lora:R, or parameters.
        tolerance: share of the held-out gain that a size which is found may lose; a retrain wins most of it back.
        max_lora_rank, min_rank: most and least of a module; initial_rank: the search's width.
        rank_rule: contributions, or threshold, the paper's.
        search_steps: weight steps of the search; default: until it has settled, 112 at most.
        output_dir: for what the search writes; seed: of the search and the split.
    Raises:
        ValueError: one line, before the first step, for what cannot be searched.
    """
    return RankSearch(model, train_dataset, peft_config, **settings).run().config


TEXT_ROWS = ({"messages"}, {"prompt", "completion"}, {"text"})  # columns that SFTTrainer prepares, the richest first


def trainer_of(args: TrainingArguments | None, rows=None) -> type[Trainer]:
    """The trainer that arguments are for; without any, that of the rows: TRL's SFTTrainer for texts.

    Example:
        >>> trainer_of(None).__name__
        'Trainer'
    """
    columns = set(getattr(rows, "column_names", None) or ())
    if args is None and "input_ids" not in columns and any(own <= columns for own in TEXT_ROWS):
        return getattr(importlib.import_module("trl"), "SFTTrainer")
    for kind in type(args).__mro__ if args is not None else ():
        if kind.__name__ in TRAINERS:
            module, name = TRAINERS[kind.__name__]
            return getattr(importlib.import_module(module), name)
    return Trainer


def task_type_of(model: torch.nn.Module) -> str | None:
    """PEFT's task type for a model of transformers; None of others."""
    name = type(model).__name__
    return next((task for end, task in TASK_TYPES.items() if name.endswith(end)), None)


def search_arguments(
    args: TrainingArguments | None, settings: dict, trainer_class: type[Trainer] = Trainer
) -> AutoLoraTrainingArguments:
    """The arguments of a search from those of a training: of its class too, and with its batch, rate and precision.
    Without any, a rate of 1e-4, in bfloat16 where there is an accelerator."""
    if args is None:
        known = [kind.__name__ for kind in trainer_class.__mro__]
        of_class = {trainer: kind for kind, (module, trainer) in TRAINERS.items() if module == "trl"}
        name = next((of_class[own] for own in known if own in of_class), None)
        kind = TrainingArguments if name is None else getattr(importlib.import_module("trl"), name)
        bf16 = torch.accelerator.is_available()
        args = kind(settings["output_dir"], learning_rate=1e-4, bf16=bf16, report_to="none", disable_tqdm=True)
    kind = type(args)
    own = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}
    if issubclass(AutoLoraTrainingArguments, kind):
        kind = AutoLoraTrainingArguments
    elif not issubclass(kind, AutoLoraTrainingArguments):
        kind = dataclasses.make_dataclass(f"Search{kind.__name__}", [], bases=(kind, AutoLoraTrainingArguments))
    return kind(**{**own, **QUIET, **settings})


def _searching(trainer_class: type[Trainer]) -> type[Trainer]:
    """A trainer whose training is the search."""
    if issubclass(trainer_class, AutoLoraMixin):
        return trainer_class
    return type(f"Searching{trainer_class.__name__}", (AutoLoraMixin, trainer_class), {})
