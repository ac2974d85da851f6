"""One run of a script: the request, its rows, its base model, its folder; what a method may ask for."""

import multiprocessing
import os
from dataclasses import dataclass

import torch
from peft import PeftModel

from autolora_trainer.heldout.split import split_train
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.scripts.request import Request
from autolora_trainer.scripts.source import Source
from autolora_trainer.scripts.task_kind import Rows


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
