"""Held-out rows on a Trainer: its collator, its loss, its processes; no step is ever taken here."""

import math
from contextlib import contextmanager, nullcontext

import torch

from autolora_trainer.compat import has_fused_head
from autolora_trainer.heldout.passes import last_outputs, ordered_batches, target_loss
from autolora_trainer.heldout.split import EndlessBatches
from autolora_trainer.lora.parts import base_model_of
from autolora_trainer.training.own_loss import takes, wants_count
from autolora_trainer.training.passes import unrecorded
from autolora_trainer.training.shares import Idle, count_targets

LEAST_ROWS, MOST_ROWS = 32, 128  # of a sample


class HeldOutMixin:
    """Over `transformers.Trainer` or a subclass of it."""

    def _held_out_batches(self, rows, count: int, targets: int = 0) -> list:
        """A sample of held-out rows, as many as `count` weight steps have within bounds, or as it takes for so many
        `targets`: this process's share, in batches of the training's size."""
        return self._drawn_batches(rows, self._sample_size(count), targets)

    def _sample_size(self, count: int) -> int:
        """Rows of `count` weight steps, within bounds."""
        args = self.args
        at_once = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return min(max(count * at_once, LEAST_ROWS), MOST_ROWS)

    def _batches(self, rows, collate) -> list:
        """This process's share of some rows, in batches of the training's size."""
        args = self.args
        batches = ordered_batches(
            rows, args.per_device_train_batch_size, collate, args.process_index, args.world_size
        )  # fmt: skip
        return [
            type(batch)(self._prepare_inputs(batch)) if isinstance(batch, Idle) else self._prepare_inputs(batch)
            for batch in batches
        ]

    def _drawn_batches(self, rows, most: int, targets: int = 0) -> list:
        """`most` rows at most, or as many as it takes for so many `targets`, drawn by the seed, as `_batches`."""
        rows, collate = self._as_the_model_takes(rows)
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.args.seed)).tolist()
        if targets:
            first = [rows[index] for index in drawn[:most]]
            in_row = max(1, count_targets(self.model, collate(first)) / len(first))
            most = max(most, math.ceil(targets / in_row))
        return self._batches([rows[index] for index in sorted(drawn[:most])], collate)

    def _endless_batches(self, rows) -> EndlessBatches:
        args = self.args
        rows, collate = self._as_the_model_takes(rows)
        size = args.per_device_train_batch_size
        return EndlessBatches(rows, size, collate, args.seed, args.process_index, args.world_size)

    def _as_the_model_takes(self, rows):
        """(rows, collator) without the columns that the model does not take."""
        if hasattr(rows, "column_names"):
            return self._remove_unused_columns(rows, "held-out"), self.data_collator
        return rows, self._get_collator_with_removed_columns(self.data_collator, "held-out")

    def _held_out_loss(self, model, inputs):
        """See `target_loss`."""
        found = target_loss(model, inputs, self._mean_loss)
        return tuple(0 * value for value in found) if isinstance(inputs, Idle) else found

    def _mean_loss(self, inputs):
        """(mean loss, outputs) by Trainer's own `compute_loss`, which leaves no records. Outputs where no gradient is
        asked for: what the loss was computed of, where that is no logits, which would take a pass more, and memory."""
        asked = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        wanted, fused = not torch.is_grad_enabled(), has_fused_head(base_model_of(self.model))
        asks = wanted and not fused and takes(self.compute_loss, "return_outputs")
        more = {"return_outputs": True} if asks else {}
        seen = last_outputs(self.model) if wanted and fused else nullcontext({})
        with self.compute_loss_context_manager(), unrecorded(self), self._alone(), seen as outputs:
            if wants_count(self):
                more["num_items_in_batch"] = self._get_num_items_in_batch([inputs], self.args.device)
            found = self.compute_loss(self.model, dict(inputs), **more)
        for parameter, asks in asked:  # DPO and its like switch to a reference adapter and back, which turns it on
            if parameter.requires_grad != asks:
                parameter.requires_grad_(asks)
        return found if isinstance(found, tuple) else (found, outputs)  # some give none when asked

    @contextmanager
    def _alone(self):
        """Inside, a count of items is that of this process, whose mean it makes."""
        average, self.args.average_tokens_across_devices = self.args.average_tokens_across_devices, False
        try:
            yield
        finally:
            self.args.average_tokens_across_devices = average

    @contextmanager
    def _plain_loss(self):
        """Inside, without label smoothing, as in evaluation."""
        smoother, self.label_smoother = self.label_smoother, None
        try:
            yield
        finally:
            self.label_smoother = smoother

    def _add_up(self, tensors: list[torch.Tensor]) -> None:
        """Sums over processes, in place."""
        if self.args.world_size > 1:
            for tensor in tensors:
                moved = tensor.to(self.args.device)
                torch.distributed.all_reduce(moved)
                tensor.copy_(moved)

    def _collect(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, one after another."""
        if self.args.world_size == 1:
            return rows
        found = [None] * self.args.world_size
        torch.distributed.all_gather_object(found, rows)
        return torch.cat(found)
