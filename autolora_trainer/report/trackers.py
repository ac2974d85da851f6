"""What scalars do not show, for the trackers of `report_to`: the selection variables on their way as histograms, and
the grid of ranks as a picture. Scalars go there through Trainer itself, the search's as `search_*`.

All of it goes through what Trainer's own integrations (TensorBoard, Weights & Biases, Trackio) have opened. A tracker
that fails is named in one line and left alone: no picture is worth a run.
"""

import functools
import importlib
import logging
import weakref
from collections.abc import Callable

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from autolora_trainer.drawing import drawn
from autolora_trainer.errors import one_line, shown
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.heatmap import rank_heatmap_pixels

logger = logging.getLogger("autolora_trainer")


TRACKERS = (TensorBoardCallback, WandbCallback, TrackioCallback)
INTEGRATIONS = tuple(INTEGRATION_TO_CALLBACK.values())
EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]
_left_alone = weakref.WeakSet()  # callbacks that failed


def spare_the_run(trainer) -> None:
    """From now on a tracker of a Trainer that fails (its folder is gone, full or a file, its service does not answer)
    is named in one line and left alone, and the training goes on."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, INTEGRATIONS):
            for event in EVENTS:
                setattr(callback, event, _sparing(callback, getattr(callback, event)))


def _sparing(callback, call: Callable) -> Callable:
    @functools.wraps(call)
    def spared(*args, **kwargs):
        if callback not in _left_alone:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                _leave_alone(callback, f"failed, and the training goes on without it: {shown(one_line(error))}")

    return spared


def _leave_alone(callback, why: str) -> None:
    _left_alone.add(callback)
    kind = next(kind for kind in INTEGRATIONS if isinstance(callback, kind))
    logger.warning("%s %s", kind.__name__.removesuffix("Callback"), why)


def _send(callback, kind: str, tag: str, value: np.ndarray, step: int) -> None:
    if isinstance(callback, TensorBoardCallback):
        writer = callback.tb_writer
        if writer is not None and kind == "histogram":
            writer.add_histogram(tag, value, step)
        elif writer is not None:
            writer.add_image(tag, value, step, dataformats="HWC")
    else:
        library = importlib.import_module("wandb" if isinstance(callback, WandbCallback) else "trackio")
        shown = library.Histogram(value) if kind == "histogram" else library.Image(value)
        library.log({tag: shown, "train/global_step": step})  # the step that the integration plots scalars over


class Tracking(TrainerCallback):
    """Sends to every tracker among a Trainer's callbacks, from the main process."""

    def __init__(self, trainer):
        self._trainer = trainer

    def send(self, kind: str, tag: str, make: Callable[[], np.ndarray], step: int) -> None:
        """Send what `make` returns: for `histogram` any array of numbers, for `image` (height, width, 3) bytes."""
        if not self._trainer.is_world_process_zero():
            return
        callbacks = self._trainer.callback_handler.callbacks
        takers = [one for one in callbacks if isinstance(one, TRACKERS) and one not in _left_alone]
        if not takers:
            return
        with drawn(tag):
            value = make()
            for callback in takers:
                try:
                    _send(callback, kind, tag, value, step)
                except Exception as error:  # of a library, a network, a service
                    _leave_alone(callback, f"does not take the {kind} {tag}: {shown(one_line(error))}")


class RankTracking(Tracking):
    """The grid of the ranks that a training trains, once, when it begins."""

    def __init__(self, trainer, ranks: LearnedRanks):
        super().__init__(trainer)
        self._ranks = ranks

    def on_train_begin(self, args, state, control, **kwargs):
        self.send("image", "train/ranks", lambda: rank_heatmap_pixels(self._ranks), state.global_step)
