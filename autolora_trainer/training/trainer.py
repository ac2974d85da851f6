"""The standard Trainer of a final training, with a resume that trains what was left, on the same rows."""

import math
import os
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler, find_batch_size

from autolora_trainer.compat import gradients_through_4_bit
from autolora_trainer.errors import NonFiniteError
from autolora_trainer.training.finite import FiniteStepMixin
from autolora_trainer.training.finite_rows import FiniteRowsMixin
from autolora_trainer.training.passes import RandomState
from autolora_trainer.training.processes import name_layers, of_the_first
from autolora_trainer.training.shares import SharesMixin, count_targets


def optimizer_steps(arguments, rows: int) -> int:
    """How many steps a Trainer with these arguments will take on `rows` rows, before there is a Trainer."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    whole = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = whole(whole(rows / arguments.train_batch_size) / arguments.world_size)
    return math.ceil(arguments.num_train_epochs * max(1, math.ceil(batches / arguments.gradient_accumulation_steps)))


class ResumeMixin:
    """Over a Trainer: a resumed run trains what was left of it, no step more and the same rows (seen with transformers
    5.23 in both cases).

    Trainer looks at `max_steps` only after a step, so a run resumed from its last checkpoint would take one too many.
    And `group_by_length` draws an epoch's order from the global generator when the epoch begins; a resume draws it
    again, in whatever state the generator then is, so a checkpoint also holds the one in which the epoch began. Of
    several processes each has drawn its own numbers for dropout by then, and would draw another order; they begin an
    epoch with the first one's, and group as many rows as one process would.
    """

    _orders_by_length = False  # in several processes
    _epoch_began: torch.Tensor | None = None

    def train(self, *args, **kwargs):
        name_layers(self)
        with gradients_through_4_bit(self.model):
            return super().train(*args, **kwargs)

    def training_is_over(self) -> bool:
        return self.state.global_step >= self.state.max_steps

    def _run_epoch(self, *args, **kwargs):
        if self.training_is_over():
            self.control.should_training_stop = True
            return
        epoch, checkpoint = kwargs["epoch"], kwargs["resume_from_checkpoint"]
        if checkpoint is not None and epoch == kwargs["epochs_trained"]:
            began = self._epoch_file(checkpoint)
            if not kwargs["steps_trained_in_current_epoch"]:
                self._load_rng_state(checkpoint)
            elif os.path.exists(began):
                torch.set_rng_state(load_file(began)["state"])
        if self._orders_by_length:
            torch.set_rng_state(of_the_first(torch.get_rng_state()))
        self._epoch_began = torch.get_rng_state()
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        self._orders_by_length = isinstance(sampler, LengthGroupedSampler) and self.args.world_size > 1
        if self._orders_by_length:
            sampler.batch_size *= self.args.world_size
        return sampler

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        save_file({"state": self._epoch_began}, self._epoch_file(output_dir))

    def _epoch_file(self, checkpoint: str) -> str:
        process = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return os.path.join(checkpoint, f"epoch_rng_state{process}.safetensors")


class FinalTrainer(FiniteStepMixin, FiniteRowsMixin, ResumeMixin, SharesMixin, Trainer):
    """The standard Trainer, but for steps that are no numbers, a resume at its very end, and the rows, the order and
    the loss of evaluation."""

    _evaluated = None  # the rows of the loader that Trainer keeps
    _token_losses: list[torch.Tensor] = []  # (sum, number) of the targets of every batch that is evaluated

    def evaluation_loop(self, *args, **kwargs):
        """Without label smoothing: `eval_loss` then compares between runs, and with LoRA's published ones. And without
        a trace: a loader draws a number for its workers, and what dropout draws next would be another."""
        smoother, self.label_smoother = self.label_smoother, None
        state, self._token_losses = RandomState(self.args.device), []
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.label_smoother = smoother
            state.restore()
        if self._token_losses:  # Trainer's mean over batches depends on which rows are in one
            total, count = torch.stack(self._token_losses).sum(0).tolist()
            output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = total / count if count else math.nan
        check_scores(output.metrics)
        return output

    def prediction_step(self, model, inputs, *args, **kwargs):
        """With the loss of one process that has the rows of all."""
        loss, *predicted = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None:
            count = count_targets(self.model, inputs)
            if self.args.world_size > 1:
                loss, *sums = self._loss_of_all(model, inputs, loss)
            else:
                sums = [loss.double() * count if count else torch.zeros_like(loss, dtype=torch.double), count]
            if torch.is_tensor(labels := inputs.get("labels")) and labels.dim() > 1 and not labels.is_floating_point():
                self._token_losses.append(torch.stack([torch.as_tensor(own, device=loss.device) for own in sums]))
        return loss, *predicted

    @torch.no_grad()
    def _loss_of_all(self, model, inputs, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The mean over the targets of an evaluation's batch on all processes, without the rows that accelerate has
        filled up the last one with (they count in Trainer's, 5.23); the sum over them, and their number."""
        state, inputs = self.accelerator.gradient_state, self._prepare_inputs(inputs)
        ends_short = state.end_of_dataloader and state.remainder > 0
        counted = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if counted and "labels" in inputs and self.args.average_tokens_across_devices and not ends_short:
            parts = torch.stack([loss.double(), torch.full_like(loss, count_targets(self.model, inputs)).double()])
            torch.distributed.all_reduce(parts)
            return loss, parts[0] / self.args.world_size * parts[1], parts[1]  # it is a part of that mean already
        real = True
        if ends_short:
            rows = find_batch_size(inputs)
            real = min(max(state.remainder - rows * self.args.process_index, 0), rows)
            inputs = {name: _first(value, rows, real or rows) for name, value in inputs.items()}
            loss = self.compute_loss(model, dict(inputs)).detach()
        count = count_targets(self.model, inputs) if real else 0
        part = loss.double() * count if count else torch.zeros_like(loss, dtype=torch.double)
        sums = torch.stack([part, torch.full_like(part, count)])
        torch.distributed.all_reduce(sums)
        return (sums[0] / sums[1]).to(loss), *sums

    def get_eval_dataloader(self, eval_dataset=None):
        """All rows, and these: with `dataloader_drop_last` Trainer drops the last ones here too, and with
        `dataloader_persistent_workers` it takes the loader of other rows that it has kept (transformers 5.23)."""
        if eval_dataset is not self._evaluated:
            vars(self).get("_eval_dataloaders", {}).clear()
        self._evaluated = eval_dataset
        with self._argument("dataloader_drop_last", False):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._argument("dataloader_drop_last", False):
            return super().get_test_dataloader(test_dataset)

    def _get_eval_sampler(self, eval_dataset):
        """Rows in their order: with `group_by_length` Trainer evaluates and predicts them by length (transformers
        5.23), and predictions then belong to other rows."""
        with self._argument("train_sampling_strategy", "random"):
            return super()._get_eval_sampler(eval_dataset)

    @contextmanager
    def _argument(self, name: str, value):
        """Inside, an argument has another value."""
        given = getattr(self.args, name)
        setattr(self.args, name, value)
        try:
            yield
        finally:
            setattr(self.args, name, given)


def _first(value, rows: int, count: int):
    """The first `count` of a tensor's `rows`; what has not so many is left as it is."""
    return value[:count] if torch.is_tensor(value) and value.dim() and len(value) == rows else value


def check_scores(scores: dict) -> None:
    """Raise `NonFiniteError` for the first score that is NaN or infinite; None says that there is no such score."""
    for name, value in scores.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value}, which is no result. Lower --learning_rate, or look at the rows.")


TRAINABLE = "trainable.safetensors"


class WholeTensorsTrainer(FinalTrainer):
    """With checkpoints that hold every trainable tensor as it is.

    What PEFT saves is for use, not always for going on: of P-tuning's encoder it keeps the output alone.
    """

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            tensors = {name: p.detach().cpu().contiguous() for name, p in trainable(self.model).items()}
            save_file(tensors, os.path.join(output_dir, TRAINABLE))

    @torch.no_grad()
    def _restore(self, checkpoint):
        tensors = load_file(os.path.join(checkpoint, TRAINABLE))
        for name, parameter in trainable(self.model).items():
            parameter.copy_(tensors[name])

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._restore(resume_from_checkpoint)

    def _load_best_model(self):
        self._restore(self.state.best_model_checkpoint)


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of what is trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
