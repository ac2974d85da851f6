"""Callbacks of a training: SIGTERM, and a cut on the way."""

import os
import signal
import threading

import torch
from transformers import TrainerCallback

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
