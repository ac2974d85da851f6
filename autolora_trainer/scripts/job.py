"""The final training of every method, and the job that leads to it: request, rows, base model, folder."""

import copy
import logging
import multiprocessing
import os
import sys
from dataclasses import dataclass

import torch
from datasets import disable_progress_bars
from peft import PeftModel
from transformers import Trainer, set_seed
from transformers.utils import logging as transformers_logging

from autolora_trainer.compat import save_without_asking, silence_known_warnings
from autolora_trainer.heldout.split import split_train
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.scripts.request import Request
from autolora_trainer.scripts.source import Source
from autolora_trainer.scripts.task_kind import Rows
from autolora_trainer.training.passes import fix_loss_scale
from autolora_trainer.training.trainer import FinalTrainer


@dataclass
class Job:
    """See `methods.base.Job`.

    Attributes:
        trial: (what a trial in a folder is asked for, what its process runs); see `scripts.trial`.
    """

    request: Request
    source: Source
    rows: Rows
    folder: RunFolder
    ranks: LearnedRanks | None = None
    trial: tuple | None = None

    @property
    def train_rows(self):
        return self.rows.datasets["train"]

    def split(self, val_fraction: float):
        """(D_tr, D_val) of the training rows; rows of one input stay together, where the task has several of them."""
        return split_train(self.train_rows, val_fraction, self.request.training.seed, self.rows.groups)

    def build(self, ranks: LearnedRanks, base: torch.nn.Module | None = None) -> PeftModel:
        """The ordinary adapter of some ranks, on `base` or on the base model anew."""
        base = self.source.base_model() if base is None else base
        return build_adapter(base, ranks, self.source.lora_config(), self.request.settings.scaling)

    def try_ranks(self, ranks: dict[str, int], place: str) -> int:
        """Train an adapter with these ranks on D_tr and score it on D_val, in a new process, to its end; {"loss",
        "cost"} is then in result.json in `place`, or the reason why not in error.txt.

        Returns:
            The exit status.
        """
        trial_request, run_trial = self.trial
        arguments = (trial_request(self.request, place), ranks, place, os.getpid())
        # a fork would share this process's threads and devices
        process = multiprocessing.get_context("spawn").Process(target=run_trial, args=arguments)
        process.start()
        try:
            process.join()
        finally:
            process.terminate()
        return process.exitcode

    def say(self, text: str) -> None:
        self.request.say(text)

    def warn(self, text: str) -> None:
        self.request.warn(text)


def make_trainer(
    job,
    model: torch.nn.Module,
    callbacks,
    trainer_class: type[FinalTrainer] = FinalTrainer,
    changes: dict | None = None,
) -> Trainer:
    """The standard Trainer of the final training.

    Args:
        job: `scripts.job.Job`.
        model: what is trained, or evaluated.
        callbacks: of the training.
        trainer_class, changes: `Built.trainer` and `Built.arguments`.
    """
    request, rows = job.request, job.rows
    arguments = copy.copy(request.training)
    for name, value in {**(changes or {}), "save_total_limit": None}.items():  # see CheckpointManifest
        setattr(arguments, name, value)
    save_without_asking(model)
    set_seed(arguments.seed)  # the training that follows does not depend on what a search drew before it
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows.datasets.get("train"),
        eval_dataset=rows.datasets.get("validation"),
        data_collator=rows.collator,
        processing_class=rows.tokenizer,
        compute_metrics=request.task.compute_metrics(),
        callbacks=callbacks,
    )
    return fix_loss_scale(trainer)


def set_up_logging(training) -> None:
    """Warnings on stderr, in one form; no bars where none are wanted."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    transformers_logging.set_verbosity(
        logging.ERROR if training.log_level == "passive" else training.get_process_log_level()
    )
    if training.disable_tqdm:
        transformers_logging.disable_progress_bar()
        disable_progress_bars()
    silence_known_warnings()
