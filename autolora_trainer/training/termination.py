"""SIGTERM, a scheduler's warning before it kills: finish the step, write a checkpoint, stop, say how to go on."""

import os
import signal
import threading

import torch
from transformers import TrainerCallback

from autolora_trainer.errors import Terminated


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
        """Call it after `train()`.

        Raises:
            Terminated: if the signal came during the training.
        """
        if self.stopped:
            raise Terminated(
                f"stopped by SIGTERM after step {state.global_step} of {state.max_steps}, and saved it; type the same "
                "command with --resume_from_checkpoint to go on"
            )


def cut_short(trainer) -> bool:
    """Whether SIGTERM has ended the training of a Trainer with steps left: what it has by then is no result yet."""
    callbacks = trainer.callback_handler.callbacks
    return any(isinstance(callback, TerminationCallback) and callback.cut_short for callback in callbacks)
