"""What scalars do not show, for the trackers of `report_to`: the selection variables on their way as histograms, and
the grid of ranks as a picture. Scalars go there through Trainer itself, the search's as `search_*`.

All of it goes through what Trainer's own integrations (TensorBoard, Weights & Biases, Trackio) have opened. A tracker
that fails is named in one line and left alone: no picture is worth a run.
"""

import functools
import importlib
import logging
from collections.abc import Callable

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from autolora_trainer.errors import one_line, shown
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.heatmap import rank_heatmap_pixels

logger = logging.getLogger("autolora_trainer")


TRACKERS = (TensorBoardCallback, WandbCallback, TrackioCallback)


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
        self._failed = set()

    def send(self, kind: str, tag: str, make: Callable[[], np.ndarray], step: int) -> None:
        """Send what `make` returns: for `histogram` any array of numbers, for `image` (height, width, 3) bytes."""
        if not self._trainer.is_world_process_zero():
            return
        make = functools.cache(make)  # drawn once, and only if there is a tracker
        for callback in self._trainer.callback_handler.callbacks:
            for kind_of_tracker in TRACKERS:
                if isinstance(callback, kind_of_tracker) and kind_of_tracker not in self._failed:
                    try:
                        _send(callback, kind, tag, make(), step)
                    except Exception as error:  # of a library, a network, a service
                        self._failed.add(kind_of_tracker)
                        name = kind_of_tracker.__name__.removesuffix("Callback")
                        logger.warning("%s does not take the %s %s: %s", name, kind, tag, shown(one_line(error)))


class RankTracking(Tracking):
    """The grid of the ranks that a training trains, once, when it begins."""

    def __init__(self, trainer, ranks: LearnedRanks):
        super().__init__(trainer)
        self._ranks = ranks

    def on_train_begin(self, args, state, control, **kwargs):
        self.send("image", "train/ranks", lambda: rank_heatmap_pixels(self._ranks), state.global_step)
