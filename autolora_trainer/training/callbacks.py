"""Callbacks of a training: SIGTERM and Ctrl-C, and a cut on the way."""

import os
import signal
import threading

import torch
from transformers import TrainerCallback

from autolora_trainer.errors import Interrupted, Terminated
from autolora_trainer.lora.parts import factors_of
from autolora_trainer.lora.svd import cut_to_ranks
from autolora_trainer.ranks.learned import LearnedRanks

STOPS = {signal.SIGTERM: (Terminated, "stopped by SIGTERM"), signal.SIGINT: (Interrupted, "interrupted")}
HEARD = b"\nCtrl-C: this step ends and is saved first; once more ends at once.\n"


class TerminationCallback(TrainerCallback):
    """Turns SIGTERM or Ctrl-C during a training into a checkpoint after the running step and an early end; a second
    Ctrl-C ends at once.

    Several processes agree on it after every step, so that all of them stop at the same one, whichever got the signal.
    Outside a training, and where signals cannot be caught (another thread), they mean what they meant before.
    """

    def __init__(self):
        self.asked = 0  # the signal that came
        self.stopped = 0  # the one that ended it after a step, the last perhaps, with a checkpoint
        self.cut_short = False  # with steps left
        self._earlier = {}
        self._process, self._speaks = os.getpid(), False

    def on_train_begin(self, args, state, control, **kwargs):
        if self._earlier or threading.current_thread() is not threading.main_thread():  # or begun a second time
            return
        self._process, self._speaks = os.getpid(), state is not None and state.is_world_process_zero
        for number in STOPS:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):  # in the background Ctrl-C is for others
                self._earlier[number] = signal.signal(number, self._ask)

    def _ask(self, number, frame):
        if os.getpid() != self._process:  # a loader's worker, forked in between: it works until it is let go
            return
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
        if number == signal.SIGINT and self._speaks:
            os.write(2, HEARD)  # a handler may have come into the middle of a print

    def on_step_end(self, args, state, control, **kwargs):
        agreed = self.asked
        if args.world_size > 1:
            flag = torch.tensor([float(agreed)], device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            agreed = int(flag.item())  # a signal that came during this counts after the next step
        if agreed:
            self.stopped, self.cut_short = agreed, not control.should_training_stop
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        """Give the signals back what they meant; call it after a training that failed, too. One that came after the
        last step is sent again."""
        earlier, self._earlier = self._earlier, {}
        for number, meant in earlier.items():
            signal.signal(number, meant)
        if earlier and self.asked and not self.stopped:
            os.kill(os.getpid(), self.asked)

    def check(self, state) -> None:
        """Raise `Terminated` if a signal came during the training; call it after `train()`."""
        if self.stopped:
            kind, what = STOPS[self.stopped]
            raise kind(
                f"{what} after step {state.global_step} of {state.max_steps}, and saved it; type the same "
                "command with --resume_from_checkpoint to go on"
            )


def cut_short(trainer) -> bool:
    """Whether a signal has ended the training of a Trainer with steps left: what it has by then is no result yet."""
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
            for parameter in factors_of(model):  # the moments belong to the old components
                states.pop(parameter, None)
