"""A run as its method sees it: request, rows, base model, folder; its Trainer, and trials of ranks."""

import copy
import dataclasses
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass

import torch
from datasets import disable_progress_bars
from peft import PeftModel
from transformers import Trainer, set_seed
from transformers.utils import logging as transformers_logging

from autolora_trainer.clean import clean, clean_output
from autolora_trainer.compat import save_without_asking, silence_known_warnings
from autolora_trainer.errors import NonFiniteError, one_line
from autolora_trainer.files import no_link, write_atomically, write_json
from autolora_trainer.heldout.split import split_three, split_train
from autolora_trainer.methods.base import Built
from autolora_trainer.methods.grid import ERROR
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.report.trackers import spare_the_run
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.runs.outputs import TRIAL_FILE
from autolora_trainer.scripts.checks import check_padding
from autolora_trainer.scripts.request import NO_FILES, Request
from autolora_trainer.scripts.source import Source
from autolora_trainer.scripts.task_kind import Rows
from autolora_trainer.training.cost import CostMeter
from autolora_trainer.training.passes import fix_loss_scale, full_precision
from autolora_trainer.training.trainer import FinalTrainer


@dataclass
class Job:
    """See `methods.base.Job`."""

    request: Request
    source: Source
    rows: Rows
    folder: RunFolder
    ranks: LearnedRanks | None = None

    def split(self, val_fraction: float):
        """(D_tr, D_val) of the training rows; rows of one input stay together, where the task has several of them."""
        return split_train(self.rows.datasets["train"], val_fraction, self.request.training.seed, self.rows.groups)

    def split_three(self, val_fraction: float):
        """The same with D_val in two: rows that order the components, and rows that judge the size."""
        return split_three(self.rows.datasets["train"], val_fraction, self.request.training.seed, self.rows.groups)

    def build(self, ranks: LearnedRanks, base: torch.nn.Module | None = None) -> PeftModel:
        """The ordinary adapter of some ranks, on `base` or on the base model anew."""
        base = self.source.base_model() if base is None else base
        return build_adapter(base, ranks, self.source.lora_config(), self.request.settings.scaling)

    def trainer(self, built: Built, callbacks: list, changes: dict | None = None) -> Trainer:
        """The Trainer of the final training of what was built."""
        own = [*built.callbacks, *callbacks]
        return make_trainer(self, built.model, own, built.trainer, {**built.arguments, **(changes or {})})

    def try_ranks(self, ranks: dict[str, int], place: str) -> int:
        """Train an adapter with these ranks on D_tr and score it on D_val, in a new process, to its end: the exit
        status of `run_trial`, which leaves files in `place`."""
        arguments = (trial_request(self.request, place), ranks, place, os.getpid())
        # a fork would share this process's threads and devices
        process = multiprocessing.get_context("spawn").Process(target=run_trial, args=arguments)
        process.start()
        try:
            process.join()
        finally:
            process.terminate()
        return process.exitcode

    say = property(lambda self: self.request.say)
    warn = property(lambda self: self.request.warn)


def make_trainer(
    job,
    model: torch.nn.Module,
    callbacks,
    trainer_class: type[FinalTrainer] = FinalTrainer,
    changes: dict | None = None,
) -> Trainer:
    """The Trainer of the final training; `trainer_class` and `changes` are `Built.trainer` and `Built.arguments`."""
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
    spare_the_run(trainer)
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


def trial_request(request: Request, folder: str) -> Request:
    """What a trial in `folder` is asked for; its task has read no rows, so that a new process can have it."""
    training = dataclasses.replace(request.training, output_dir=folder, **NO_FILES)
    return dataclasses.replace(request, task=type(request.task)(), training=training)


def run_trial(request: Request, ranks: dict[str, int], folder: str, parent: int) -> None:
    """One trial, in a process of its own: writes result.json, {"loss", "cost"}, or error.txt, into `folder`.

    Without the process `parent`, that of the run, it ends too.
    """
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with open(os.path.join(folder, "log.txt"), "w", encoding="utf-8", opener=no_link) as log:
            os.dup2(log.fileno(), 1)
        with clean_output():
            write_json(os.path.join(folder, TRIAL_FILE), train_trial(request, ranks))
    except BaseException as error:
        write_atomically(os.path.join(folder, ERROR), clean(f"{type(error).__name__}: {one_line(error)}\n"))
        if os.environ.get("AUTOLORA_DEBUG") == "1":
            print(clean(traceback.format_exc()), end="", file=sys.stderr)
        os._exit(1)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def train_trial(request: Request, ranks: dict[str, int]) -> dict:
    """{"loss", "cost"} of an adapter with these ranks, trained on D_tr: its loss on D_val; None where it diverged."""
    set_up_logging(request.training)
    rows, settings = request.task.load(request), request.settings
    job = Job(request, Source(request), rows, RunFolder(request.output_dir))
    train, held_out = job.split(settings.val_fraction)
    job.rows = dataclasses.replace(rows, datasets={**rows.datasets, "train": train})
    check_padding(job)
    learned = LearnedRanks(
        {name: ModuleRank(rank, experts=job.source.experts.get(name)) for name, rank in ranks.items()},
        initial_rank=settings.initial_rank,
    )
    model, cost = job.build(learned), CostMeter()
    trainer = make_trainer(job, model, [cost])
    try:
        trainer.train()
        trainer.compute_metrics = None  # of the benchmark's rows; the loss is what a search compares
        with full_precision(trainer.model):
            loss = trainer.evaluate(held_out)["eval_loss"]
    except NonFiniteError:  # a configuration that diverges is the worst, and no reason to end the others
        loss = None
    return {"loss": loss, "cost": cost.stop()}
