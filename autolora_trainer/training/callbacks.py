"""Callbacks of a training: SIGTERM, the bar, and a cut on the way."""

import os
import signal
import threading
from collections.abc import Callable

import torch
from transformers import ProgressCallback, Trainer, TrainerCallback

from autolora_trainer.errors import Terminated
from autolora_trainer.lora.svd import cut_to_ranks
from autolora_trainer.ranks.learned import LearnedRanks


class TerminationCallback(TrainerCallback):
    """Turns SIGTERM during a training into a checkpoint after the running step and an early end.

    Several processes agree on it after every step, so that all of them stop at the same one, whichever got the signal.
    Outside a training, and where signals cannot be caught (another thread), SIGTERM means what it meant before.
    """

    def __init__(self):
        self.asked = False
        self.stopped = False  # after a step, with a checkpoint; whether or not it would have been the last
        self.cut_short = False  # with steps left
        self._earlier = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self._earlier is None and threading.current_thread() is threading.main_thread():  # not begun a second time
            self._earlier = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number, frame):
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        agreed = self.asked
        if args.world_size > 1:
            flag = torch.tensor([float(agreed)], device=args.device)
            torch.distributed.all_reduce(flag)
            agreed = bool(flag.item())  # a signal that came during this counts after the next step
        if agreed:
            self.stopped, self.cut_short = True, not control.should_training_stop
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Give SIGTERM back what it meant; call it after a training that failed, too. A signal that came after the
        last step is sent again."""
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)
            self._earlier = None
            if self.asked and not self.stopped:
                os.kill(os.getpid(), signal.SIGTERM)

    def check(self, state) -> None:
        """Raise `Terminated` if the signal came during the training; call it after `train()`."""
        if self.stopped:
            raise Terminated(
                f"stopped by SIGTERM after step {state.global_step} of {state.max_steps}, and saved it; type the same "
                "command with --resume_from_checkpoint to go on"
            )


def cut_short(trainer) -> bool:
    """Whether SIGTERM has ended the training of a Trainer with steps left: what it has by then is no result yet."""
    callbacks = trainer.callback_handler.callbacks
    return any(isinstance(callback, TerminationCallback) and callback.cut_short for callback in callbacks)


class PhaseProgress(ProgressCallback):
    """Trainer's bar with the phase before it, and the last logged loss and the total rank behind it.

    Args:
        total_rank: gives Σ_l r_l as it is now; None: what the logs say, or nothing.
    """

    def __init__(self, phase: str, total_rank: Callable[[], int | None] = lambda: None):
        super().__init__()
        self._phase, self._total_rank = phase, total_rank
        self._loss = self._logged_rank = None

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self._phase, refresh=False)
            self._show()

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            self._show()
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._loss = logs.get("search_train_loss", logs.get("loss", self._loss))
        self._logged_rank = logs.get("search_total_rank", self._logged_rank)
        super().on_log(args, state, control, logs=logs, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        if self.prediction_bar is not None and not self.prediction_bar.desc:
            self.prediction_bar.set_description("evaluation")

    def _show(self) -> None:
        loss = {} if self._loss is None else {"loss": f"{self._loss:.4g}"}
        total = self._total_rank() or self._logged_rank
        rank = {} if total is None else {"total rank": total}
        self.training_bar.set_postfix({**loss, **rank}, refresh=False)  # the next update draws it


def show_phase(trainer: Trainer, phase: str, total_rank: Callable[[], int | None] = lambda: None) -> None:
    """Put a `PhaseProgress` where a Trainer has transformers' own bar. A notebook's bar stays, and so does none."""
    callbacks = trainer.callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is ProgressCallback:
            callbacks[place] = PhaseProgress(phase, total_rank)


class CutCallback(TrainerCallback):
    """Cuts a wide adapter to its learned ranks after a `share`, above 0 and below 1, of the training's steps."""

    def __init__(self, ranks: LearnedRanks, share: float):
        self.ranks, self.share = ranks.ranks, share

    def step(self, max_steps: int) -> int:
        """The step after which the cut is made; at least one follows it, if there is more than one."""
        return min(max(1, round(self.share * max_steps)), max(1, max_steps - 1))

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step == self.step(state.max_steps):
            cut_to_ranks(model, self.ranks)
            states = getattr(optimizer, "optimizer", optimizer).state  # under accelerate's wrapper
            for name, parameter in model.named_parameters():
                if "lora_" in name:  # the moments belong to the old components
                    states.pop(parameter, None)
