"""Numbers that are not numbers: a step with a loss or a gradient that is NaN or infinite is never applied."""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from autolora_trainer.errors import NonFiniteError
from autolora_trainer.lora.sharded import local, whole
from autolora_trainer.values import check_choice, setting

NON_FINITE_CHOICES = ("skip", "stop")
STEPS_IN_A_ROW = 10  # dropped before the run stops: by then it is no accident
logger = logging.getLogger("autolora_trainer")


def check_weights(model: torch.nn.Module, place: str, given: Iterable[torch.nn.Parameter] = ()) -> None:
    """Raise `NonFiniteError` if a saved model, or an adapter on the parameters `given`, holds NaN or infinity: the
    attention of PyTorch 2.13 on a CPU swallows some of it, and the score would be a number."""
    known = {id(parameter) for parameter in given}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known and parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise NonFiniteError(f"{name} in {place} holds NaN or infinity. Train it again, or give another.")


class FiniteStepMixin:
    """Over a Trainer: looks at loss and gradient once per optimizer step, before the step is taken.

    `args.non_finite` decides: `skip` (the default) drops the step, so that no weight and no moment moves, and warns,
    until `STEPS_IN_A_ROW` of them, or of the selection steps, follow each other, or there was no other; `stop` raises.
    Checkpoints and models with such numbers in them are never written, so the last good ones stay. Under fp16 the loss
    scaler drops steps for their gradients by itself, as ever, and losses alone are looked at here.

    Raises:
        NonFiniteError: from `train` and `save_model`.
    """

    _dropped = 0  # weight steps, in all
    _dropped_in_a_row = 0
    _unusable_in_a_row = 0  # of the selection steps
    _window_loss = 0.0  # of the micro-batches of the running step
    _last_loss: torch.Tensor | float = math.nan  # of the last micro-batch that had a finite one
    _usable_selection_step: bool | None = None  # whether the hypergradient of the running step, if any, is finite

    def training_step(self, *args, **kwargs):
        """The loss, for means of it; where it is none, that of the micro-batch before, or 0 if there was none."""
        loss = super().training_step(*args, **kwargs)
        self._window_loss = self._window_loss + loss
        self._last_loss = torch.where(torch.isfinite(loss), loss, self._last_loss)
        return torch.nan_to_num(self._last_loss, nan=0.0)

    def _get_grad_norm(self, model, grad_norm=None):
        """Trainer asks for the norm once all gradients are there and clipped, right before the optimizer's step."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.is_deepspeed_enabled:
            scaled = self.accelerator.scaler is not None
            found = 0.0 if scaled else whole(norm)  # FSDP2's is in shards
            self._judge_step(model, torch.as_tensor(found, device=self.args.device))
        self._window_loss, self._usable_selection_step = 0.0, None
        return norm

    def _judge_step(self, model, norm: torch.Tensor) -> None:
        selection = torch.full_like(norm, self._usable_selection_step is not False, dtype=torch.bool)
        finite = torch.stack([torch.isfinite(self._window_loss), torch.isfinite(norm), selection])
        if self.args.world_size > 1:  # all processes must take the step, or all drop it
            finite = finite.float()
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        *weights, selection = flags = finite.tolist()  # the one wait for the device in a step
        self._dropped_in_a_row = 0 if all(weights) else self._dropped_in_a_row + 1
        if self._usable_selection_step is not None:
            self._unusable_in_a_row = 0 if selection else self._unusable_in_a_row + 1
        if all(flags):
            return
        what = ("the loss", "the gradient", "the hypergradient")[flags.index(0)]
        if getattr(self.args, "non_finite", "skip") == "stop":
            raise self._error(f"{what} is not finite", "Lower --learning_rate, or add --non_finite skip")
        if not all(weights):
            self._dropped += 1
            if self.accelerator.scaler is None:  # which drops the step by itself, and wants to see why
                model.zero_grad(set_to_none=True)  # an optimizer leaves a weight without a gradient as it is
        where = f"step {self.state.global_step + 1}: {what} is not finite"
        logger.warning(f"{where}; its selection step is skipped" if all(weights) else f"{where}; the step is skipped")
        if self._dropped_in_a_row == STEPS_IN_A_ROW:
            first = self.state.global_step + 2 - STEPS_IN_A_ROW
            what = f"{what} was not finite for {STEPS_IN_A_ROW} steps in a row, the first of them step {first}"
            raise self._error(what, "Lower --learning_rate, or look at the rows of these steps")
        if self._dropped == self.state.global_step + 1 >= self.state.max_steps:
            raise self._error(f"{what} was not finite, in this step and all before", "Look at the model and the rows")
        if self._unusable_in_a_row == STEPS_IN_A_ROW:
            what = f"the hypergradient was not finite for {STEPS_IN_A_ROW} selection steps in a row"
            raise self._error(what, "Lower --selection_learning_rate, or look at the rows of D_val")

    def log(self, logs, *args, **kwargs):
        """Without what is no number, such as the norm of a dropped step's gradient: JSON has no word for it, and
        trackers draw it as if it were one."""
        numbers = {name: v for name, v in logs.items() if not isinstance(v, float) or math.isfinite(v)}
        if not math.isfinite(self._last_loss):  # and the mean over no loss at all would be 0
            for name in ("loss", "train_loss", "search_train_loss"):
                numbers.pop(name, None)
        super().log(numbers, *args, **kwargs)
        logs.update(numbers)  # Trainer adds the epoch

    def _save_checkpoint(self, *args, **kwargs):
        self.check_finite()
        return super()._save_checkpoint(*args, **kwargs)

    def save_model(self, *args, **kwargs):
        self.check_finite()
        return super().save_model(*args, **kwargs)

    def check_finite(self) -> None:
        """Raise `NonFiniteError` if something that was trained holds NaN or infinity: no file is worth that."""
        for name, tensor in self.trained_tensors():
            if not torch.isfinite(local(tensor)).all():
                raise self._error(f"{name} holds NaN or infinity", "Lower --learning_rate")

    def trained_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of everything that a checkpoint of this training has to keep."""
        return ((name, p.detach()) for name, p in self.model.named_parameters() if p.requires_grad)

    def _error(self, what: str, remedy: str) -> NonFiniteError:
        return NonFiniteError(
            f"step {self.state.global_step + 1} of {self.state.max_steps}: {what}. Nothing of it was saved, and "
            f"earlier checkpoints are as they were. {remedy}."
        )


@dataclass
class NonFiniteArguments:
    """What `finite.FiniteStepMixin` reads, of every training."""

    non_finite: str = setting("skip", "A step whose loss or gradient is NaN or infinite: skip it, or stop.")

    def check_non_finite(self):
        """Raise `ValueError` for another word than those two."""
        check_choice("non_finite", self.non_finite, NON_FINITE_CHOICES)
