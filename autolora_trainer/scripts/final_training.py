"""The final training of every method: one Trainer, but for what the method says."""

import copy
import logging
import sys

import torch
from datasets import disable_progress_bars
from transformers import Trainer, set_seed
from transformers.utils import logging as transformers_logging

from autolora_trainer.compat import save_without_asking, silence_known_warnings
from autolora_trainer.training.loss import fix_loss_scale
from autolora_trainer.training.trainer import FinalTrainer


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
