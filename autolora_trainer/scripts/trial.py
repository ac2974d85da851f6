"""A trial: one training with given ranks, in a process of its own, scored on held-out rows."""

import dataclasses
import math
import os
import threading
import time
import traceback

from autolora_trainer.errors import one_line
from autolora_trainer.files import write_atomically, write_json
from autolora_trainer.methods.grid import ERROR, RESULT
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.scripts.job import Job, make_trainer, set_up_logging
from autolora_trainer.scripts.request import Request
from autolora_trainer.scripts.source import Source
from autolora_trainer.training.cost import CostMeter
from autolora_trainer.training.finite import NonFiniteError
from autolora_trainer.training.passes import full_precision

# the final training's arguments for a trial: the same training, and no files of its own
NO_FILES = {
    "do_train": True,
    "do_eval": False,
    "do_predict": False,
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "resume_from_checkpoint": None,
    "report_to": [],
    "disable_tqdm": True,
}


def trial_request(request: Request, folder: str) -> Request:
    """What a trial in `folder` is asked for; its task has read no rows, so that a new process can have it."""
    training = dataclasses.replace(request.training, output_dir=folder, **NO_FILES)
    return dataclasses.replace(request, task=type(request.task)(), training=training)


def run_trial(request: Request, ranks: dict[str, int], folder: str, parent: int) -> None:
    """One trial, in a process of its own: writes result.json, {"loss", "cost"}, or error.txt, into `folder`.

    Args:
        request: of `trial_request`.
        ranks: {module: rank}.
        folder: of this trial.
        parent: process id of the run; without it the trial ends too.
    """
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with open(os.path.join(folder, "log.txt"), "w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
        write_json(os.path.join(folder, RESULT), train_trial(request, ranks))
    except BaseException as error:
        write_atomically(os.path.join(folder, ERROR), f"{type(error).__name__}: {one_line(error)}\n")
        if os.environ.get("AUTOLORA_DEBUG") == "1":
            traceback.print_exc()
        os._exit(1)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def train_trial(request: Request, ranks: dict[str, int]) -> dict:
    """{"loss", "cost"} of an adapter with these ranks, trained on D_tr: its loss on D_val."""
    set_up_logging(request.training)
    rows, settings = request.task.load(request), request.settings
    job = Job(request, Source(request), rows, RunFolder(request.output_dir))
    train, held_out = job.split(settings.val_fraction)
    job.rows = dataclasses.replace(rows, datasets={**rows.datasets, "train": train})
    learned = LearnedRanks(
        {name: ModuleRank(rank) for name, rank in ranks.items()}, initial_rank=settings.initial_rank
    )
    model, cost = job.build(learned), CostMeter()
    trainer = make_trainer(job, model, [cost])
    try:
        trainer.train()
    except NonFiniteError:  # a configuration that diverges is the worst, and no reason to end the others
        return {"loss": math.inf, "cost": cost.stop()}
    trainer.compute_metrics = None  # of the benchmark's rows; the loss is what a search compares
    with full_precision(trainer.model):
        loss = trainer.evaluate(held_out)["eval_loss"]
    return {"loss": loss if math.isfinite(loss) else math.inf, "cost": cost.stop()}  # one that diverged is the worst
