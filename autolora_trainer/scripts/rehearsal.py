"""The first step of every training of a run, taken before anything is written: what cannot work fails here."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator

from accelerate.utils import release_memory
from transformers import Trainer, TrainerCallback

from autolora_trainer.errors import UsageError, sentence
from autolora_trainer.methods.base import Plan
from autolora_trainer.scripts.job import Job
from autolora_trainer.scripts.request import NO_FILES
from autolora_trainer.training.processes import sharding

LONG_SEARCH = 20  # steps, from which on a final training that cannot begin is found out too late
CHANGES = {name: value for name, value in NO_FILES.items() if not name.startswith("do_")}


def rehearse(job: Job, plan: Plan) -> None:
    """Build every Trainer of the run, let it take one step, evaluate some rows and save the model, and throw it away:
    optimizer, schedule, backend, data loaders, collator and file of weights are those of the run.

    It takes a step or two, and the model once more from disk. So it is done where something hangs on it: where the run
    is to replace another, or has a long search before its final training. Sharded models are left alone.

    Raises:
        UsageError: in one line, for whatever fails.
    """
    request = job.request
    if job.folder.resume.origin is not None or sharding(request.training):
        return
    long = request.method.steps_before(job) >= LONG_SEARCH
    if not (job.folder.later_files() or long or request.training.debug):  # which looks into every layer, and may fail
        return
    for phase, make in request.method.rehearsals(job, plan).items():
        try:
            with tempfile.TemporaryDirectory() as folder, _quiet():
                trainer = make({**CHANGES, "output_dir": folder}, [_OneStep()])
                with contextlib.suppress(_Enough):
                    trainer.train()
                trainer.check_finite()
                _evaluate_some(trainer)
                trainer.save_model()
                del trainer
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"the {phase} cannot take its first step: {type(error).__name__}: {sentence(error)} Nothing was "
                "written; change that setting."
            ) from error
        release_memory()


def _evaluate_some(trainer: Trainer) -> None:
    """The loss of one batch; scores of so few rows may not exist."""
    rows = trainer.eval_dataset
    if rows is None:
        return
    trainer.compute_metrics = None
    trainer.evaluate(rows.select(range(min(len(rows), trainer.args.eval_batch_size))))


class _Enough(Exception):
    """The step was taken."""


class _OneStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise _Enough


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said twice."""
    logger = logging.getLogger("autolora_trainer")
    disabled, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled = disabled
