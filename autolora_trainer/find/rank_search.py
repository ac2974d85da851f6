"""`find_ranks`: which modules, which ranks and how large, in one call before a training.

The rows and the loss are those of the trainer that `args` belong to; the search is `AutoLoraMixin` over it. What comes
back is a plain `peft.LoraConfig`, and the model as it was given.
"""

import dataclasses
import os
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from autolora_trainer.find import resuming
from autolora_trainer.find.arguments import search_arguments, size_and_width, task_type_of
from autolora_trainer.heldout.split import check_rows, check_set
from autolora_trainer.lora.cut import check_cuttable
from autolora_trainer.lora.fresh import untrained_fresh, with_modules
from autolora_trainer.lora.heads import WHOLE_HEADS
from autolora_trainer.lora.targets import ALL_LINEAR
from autolora_trainer.machine import naming_a_full_disk
from autolora_trainer.ranks.adapter import save_adapter
from autolora_trainer.ranks.curve import Curve
from autolora_trainer.ranks.grid import rank_summary
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.curve import curve_figure
from autolora_trainer.search.arguments import search_length
from autolora_trainer.search.handover import adapter_tensors, handover_tensors
from autolora_trainer.search.suitability import check_module, check_trainer
from autolora_trainer.search.trainer import AutoLoraMixin
from autolora_trainer.training.callbacks import TerminationCallback
from autolora_trainer.training.checkpoints import CheckpointManifest
from autolora_trainer.training.forecast import Forecast, StepForecast
from autolora_trainer.training.kinds import trainer_of
from autolora_trainer.training.processes import sharding
from autolora_trainer.untouched import sharing_memory, untouched

SEARCH_FOLDER = "search"  # in the folder that is given


class RankSearch:
    """A search of ranks; see `find_ranks`, whose arguments it takes.

    Attributes:
        config: a plain `LoraConfig`, after `run`.
        ranks: `LearnedRanks`.
        curve: held-out loss against size; None for a size that was given.
        parameters: adapter parameters of the learned ranks.
        costs: {module: adapter parameters of one rank of it}.
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
        tolerance: float = 0.06,
        max_lora_rank: int | None = None,
        min_rank: int = 0,
        initial_rank: int | None = None,
        rank_rule: str = "contributions",
        search_steps: int | None = None,
        output_dir: str | os.PathLike | None = None,
        seed: int = 42,
    ):
        if peft_config is not None and type(peft_config) is not LoraConfig:
            raise ValueError(f"peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}.")
        check_trainer(type(args), *filter(None, [trainer_class]))
        check_set(train_dataset, "train_dataset")
        check_rows(eval_dataset, "eval_dataset")
        if not hasattr(train_dataset, "__len__"):
            raise ValueError(
                f"Held-out rows are split off the training rows, and a stream ({type(train_dataset).__name__}) cannot "
                "be. Give a dataset with a length, e.g. Dataset.from_list(list(rows))."
            )
        if search_steps is not None and search_steps < 1:
            raise ValueError(
                f"search_steps must be at least 1, got {search_steps}. Leave it out for a length that ends."
            )
        if args is not None and args.gradient_accumulation_steps < 1:
            raise ValueError(
                f"gradient_accumulation_steps must be at least 1, got {args.gradient_accumulation_steps}."
            )
        self.model = AutoModelForCausalLM.from_pretrained(model) if isinstance(model, str) else model
        check_module(self.model)
        self.train_dataset, self.eval_dataset, self.peft_config = train_dataset, eval_dataset, peft_config
        self.trainer_class, self.output_dir = trainer_class or trainer_of(args, train_dataset), output_dir
        self.args = args
        self.prepared = {"data_collator": data_collator, "processing_class": processing_class}
        self.settings = {
            "val_fraction": val_fraction, "size": size, "tolerance": tolerance, "max_lora_rank": max_lora_rank,
            "min_rank": min_rank, "initial_rank": initial_rank, "rank_rule": rank_rule, "seed": seed,
            **search_length(
                rank_rule, getattr(args, "warmup_steps", 0), search_steps or -1,
                look_steps=getattr(args, "search_look_steps", 0),
            ),
        }  # fmt: skip
        self.config: LoraConfig | None = None
        self.ranks: LearnedRanks | None = None
        self.start: dict[str, torch.Tensor] = {}
        self.costs: dict[str, int] = {}
        self.parameters = 0
        self.shows_progress = False

    @property
    def curve(self) -> Curve | None:
        return None if self.ranks is None else self.ranks.curve

    @property
    def summary(self) -> str:
        """What was found, in a line."""
        if self.ranks is None:
            raise ValueError("There is nothing to sum up. Call run() first.")
        if self.curve is not None and not self.curve.decided:
            return "undecided: the search has learned nothing that held-out rows see, so ranks are uniform"
        width = self.ranks.initial_rank
        share = self.parameters / (width * sum(self.costs.values()))
        return f"found {self.parameters:,} parameters, {share:.0%} of rank {width}'s: {rank_summary(self.ranks.ranks)}"

    def run(self, resume_from_checkpoint: bool = False, keep_checkpoints: bool = False) -> "RankSearch":
        """Search; the model is given back as it came, after an exception and Ctrl-C too.

        Args:
            resume_from_checkpoint: go on with the search in `output_dir` that was interrupted; it is then the same
                search, bit for bit.
            keep_checkpoints: leave the last one in `output_dir` until `end`, once what was found is written.
        """
        if resume_from_checkpoint and self.output_dir is None:
            raise ValueError(
                "resume_from_checkpoint needs the output_dir of the search that was interrupted. Give it."
            )
        place = self.output_dir or tempfile.gettempdir()
        with naming_a_full_disk(place), untouched(self.model), tempfile.TemporaryDirectory() as temporary:
            set_seed(self.settings["seed"])
            folder = os.path.join(self.output_dir or temporary, SEARCH_FOLDER)
            trainer, given = self._trainer(folder)
            termination = TerminationCallback()
            checkpoint = None
            if self.output_dir is not None:
                if resume_from_checkpoint:
                    checkpoint = resuming.go_on(trainer, folder)
                else:
                    resuming.end(folder)  # an earlier search, whose checkpoints are not of this one
                    resuming.begin(trainer, folder)
                trainer.add_callback(CheckpointManifest(keep=1))
                trainer.add_callback(termination)
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            finally:
                termination.restore()
            termination.check(trainer.state)
            self._keep(trainer, given)
        if not keep_checkpoints:
            self.end()
        return self

    def end(self) -> None:
        """Remove the checkpoints of the search."""
        if self.output_dir is not None:
            resuming.end(os.path.join(self.output_dir, SEARCH_FOLDER))

    def _trainer(self, folder: str) -> tuple[Trainer, LoraConfig]:
        """The trainer of the search, and the LoRA settings that it was given."""
        base, given = self._base()
        if sharding(self.args) == "FSDP":
            base = sharing_memory(base)
        whole = with_modules(given, untrained_fresh(base, given)[0])  # as the search completes it
        settings = {**self.settings, **size_and_width(self.settings, given.r), "output_dir": folder}
        if self.output_dir is not None:
            every = settings.get("search_look_steps") or max(1, settings["max_steps"] // 4)
            settings |= {**resuming.CHECKPOINTS, "save_steps": every}
        trainer = _searching(self.trainer_class)(
            model=base, args=search_arguments(self.args, settings, self.trainer_class),
            train_dataset=self.train_dataset, eval_dataset=self.eval_dataset, val_dataset=self.eval_dataset,
            peft_config=given,
            **{name: value for name, value in self.prepared.items() if value is not None},
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        args, speaks = trainer.args, trainer.is_world_process_zero()

        def forecast(state):
            passes = trainer.expected_passes(state.max_steps)[1]
            return Forecast("find", passes, args.per_device_train_batch_size, trainer.model, speaks)

        trainer.add_callback(StepForecast(forecast, trainer.expected_passes(1)[0]))
        return trainer, whole

    def _keep(self, trainer, given: LoraConfig) -> None:
        """Take from a trainer what it has found."""
        self.ranks = trainer.learned_ranks
        directions = self.settings["rank_rule"] != "threshold"
        chosen = trainer.rank_selection.found.chosen
        start = handover_tensors(trainer.gates, chosen, directions, trainer.model)
        parts = trainer.gates.parts.items()
        rows = {n: (p.rows, p.layer.lora_B["default"].weight.shape[0]) for n, p in parts if p.rows is not None}
        self.config = self.ranks.to_lora_config(given)
        self.start = adapter_tensors(start, self.config, rows, self.ranks.parameters)
        self.costs = {name: part.cost for name, part in parts}
        self.parameters = sum(cost * self.ranks.ranks[name] for name, cost in self.costs.items())
        self.shows_progress = trainer.is_world_process_zero() and not trainer.args.disable_tqdm

    def _base(self) -> tuple[torch.nn.Module, LoraConfig]:
        """(model without an adapter, the LoRA settings of the search)."""
        if not isinstance(self.model, PeftModel):
            task = task_type_of(self.model)
            names = [name for name, _ in self.model.named_modules()]
            heads = [head for head in WHOLE_HEADS.get(task, ()) if any(name.endswith(head) for name in names)]
            return self.model, self.peft_config or LoraConfig(
                task_type=task, target_modules=ALL_LINEAR, exclude_modules=heads or None
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
    `get_peft_model` and any Trainer. Where a progress bar is shown, a line says what was found.

    Args:
        model: a model as `SFTTrainer` takes it, a Hub id of a causal language model, or a `PeftModel`, of which the
            base and the LoRA settings are taken; it is given back as it came.
        train_dataset: as the trainer takes it.
        peft_config: a `LoraConfig` whose task_type, target_modules, lora_alpha … are kept. Default: all linear
            layers.
        eval_dataset: held-out rows, which choose (so report no score of them); default: `val_fraction` of the rows.
        args: `TrainingArguments`, `SFTConfig`, `DPOConfig` …: batch, precision, rate. Its trainer prepares the rows;
            without any, `SFTTrainer` where they are texts.
        data_collator, processing_class, trainer_class: as the trainer takes them; by default that of `args`.
        size: auto (found on held-out rows; of threshold its own count), same (as many parameters as peft_config),
            lora:R, or parameters.
        tolerance: share of the held-out gain that a size which is found may lose; a retrain wins most of it back.
        max_lora_rank, min_rank: most and least of a module.
        initial_rank: the search's width, the most that a module can get; default: `r` of peft_config, twice R for size
            lora:R (and twice r for same), and 8 at least.
        rank_rule: contributions, or threshold, the paper's.
        search_steps: weight steps of the search; default: until it has settled, 112 at most. Its rate does not fall
            (of threshold with steps that are given it does as the training's).
        output_dir: for what the search writes, and for checkpoints, from which `RankSearch.run` can go on; seed: of
            the search and the split.
    Raises:
        ValueError: one line, before the first step, for what cannot be searched.
    """
    search = RankSearch(model, train_dataset, peft_config, **settings).run()
    if search.shows_progress:
        tqdm.write(search.summary, file=sys.stderr)
    return search.config


def _searching(trainer_class: type[Trainer]) -> type[Trainer]:
    """A trainer whose training is the search."""
    if issubclass(trainer_class, AutoLoraMixin):
        return trainer_class
    return type(f"Searching{trainer_class.__name__}", (AutoLoraMixin, trainer_class), {})
