r"""Rows of a global batch shared out among processes: together they have the loss and gradient that one would have.

    L = Σ n L' / Σ n        over a step's micro-batches on all processes; n targets, L' their mean loss

Trainer's processes fill up an epoch's last batch with rows of its beginning, and average their mean losses as if each
was over as many targets (transformers 5.23, accelerate 1.15).
"""

import math
from collections.abc import Iterator, Mapping

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader

from autolora_trainer.compat import loss_scaled_for_accumulation
from autolora_trainer.lora.parts import base_model_of
from autolora_trainer.training.passes import shifts_labels

IGNORED = -100  # a label that is no target


class Idle(dict):
    """A batch that is computed and counts nothing: every process computes as many, since DDP, and trainers such as
    TRL's in every loss, gather from all of them."""

    @classmethod
    def of(cls, batch: Mapping) -> "Idle":
        """That batch, its labels no targets where they are classes or tokens."""
        own = {name: batch[name] for name in ("labels", "shift_labels") if _are_classes(batch.get(name))}
        return cls({**batch, **{name: torch.full_like(labels, IGNORED) for name, labels in own.items()}})


def _are_classes(labels) -> bool:
    return torch.is_tensor(labels) and not labels.is_floating_point() and labels.dtype != torch.bool


def count_targets(model: torch.nn.Module, inputs: Mapping) -> int:
    """How many targets the mean loss of a transformers model is taken over: tokens with a label, or rows."""
    labels = inputs.get("labels")
    if not torch.is_tensor(labels) or labels.dim() < 2 or labels.is_floating_point():
        return next((len(value) for value in inputs.values() if torch.is_tensor(value) and value.dim() > 0), 1)
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    elif shifts_labels(base_model_of(model)):
        labels = labels[..., 1:]
    return int((labels != IGNORED).sum())


class Shares(BatchSampler):
    """A process's share of every global batch; of the last one of an epoch, which may be short, as even a share as can
    be. A process that gets no row of it gets its first to compute on, and `ends_idle`.

    Example:
        >>> [list(Shares(range(9), 2, False, index, 2)) for index in range(2)]
        [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7], [8]]]
    """

    def __init__(self, sampler, batch_size: int, drop_last: bool, process_index: int, num_processes: int):
        super().__init__(sampler, batch_size * num_processes, drop_last)
        self.process_index, self.num_processes = process_index, num_processes

    def _own(self, rows: int) -> slice:
        first, last = (
            -(-rows * index // self.num_processes) for index in (self.process_index, self.process_index + 1)
        )
        return slice(first, last)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch[self._own(len(batch))] or batch[:1]

    @property
    def ends_idle(self) -> bool:
        own = self._own(len(self.sampler) % self.batch_size or self.batch_size)
        return not self.drop_last and own.start == own.stop


def share_out(loader: DataLoader) -> bool:
    """Let a loader that accelerate has prepared give out `Shares`; whether it then ends idle. Others are left alone: a
    stream, batches of a sampler's own."""
    shard = getattr(loader, "batch_sampler", None)
    if type(shard) is not BatchSamplerShard or type(shard.batch_sampler) is not BatchSampler or shard.split_batches:
        return False
    drawn = shard.batch_sampler
    own = Shares(drawn.sampler, drawn.batch_size, drawn.drop_last, shard.process_index, shard.num_processes)
    shard.batch_sampler = own
    shard.num_processes, shard.process_index, shard.batch_size = 1, 0, None  # it hands on what it is given
    return own.ends_idle


class SharesMixin:
    """Over a Trainer whose loss is its model's, or one that counts items as Trainer has it (SFTTrainer). Trainers with
    a loss of another scale (`loss_is_scaled_for_ga`: TRL's DPO, KTO, Reward) gather figures of every row in it, so all
    their processes need as many rows: they keep their batches."""

    _ends_idle = False
    _divisors: list[float] = []  # what the mean losses of the running step's micro-batches are divided by
    _next_divisor: Iterator[float] = iter(())

    def averages(self, num_items_in_batch) -> bool:
        """Whether `compute_loss` gives the mean loss of a micro-batch, or its part of that of a step."""
        if (scaled := loss_scaled_for_accumulation(self)) is not None:
            return not scaled
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return not counted and self.compute_loss_func is None

    def divided(self, batches: list) -> tuple[list, list[float]]:
        """This process's micro-batches of a step, and what the mean loss of each is divided by, so that the mean over
        processes of their sum is L. Those without a target have finite losses."""
        steps, world = len(batches), self.args.world_size
        known = loss_scaled_for_accumulation(self) is None and all(isinstance(batch, Mapping) for batch in batches)
        if not known or world == steps == 1:
            return batches, [steps] * steps
        counts = [0 if isinstance(batch, Idle) else count_targets(self.model, batch) for batch in batches]
        total = torch.tensor(sum(counts), device=self.args.device)
        if world > 1:
            torch.distributed.all_reduce(total)
        if not (total := total.item()):
            return batches, [steps] * steps
        own = [batch if count else _finite(batch) for batch, count in zip(batches, counts)]
        return own, [total / (world * count) if count else math.inf for count in counts]

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        args, shares = self.args, loss_scaled_for_accumulation(self) is None
        if args.world_size > 1 and shares and args.average_tokens_across_devices:
            self._ends_idle = share_out(loader)
        return loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(self._marked(epoch_iterator), num_batches, device)
        self._divisors = [len(batches)] * len(batches)
        if self.averages(items):
            batches, self._divisors = self.divided(batches)
        self._next_divisor = iter(self._divisors)
        return batches, items

    def _marked(self, batches: Iterator) -> Iterator:
        """Batches of an epoch, the last one `Idle` where this process has no row of it."""
        for batch in batches:
            yield Idle.of(batch) if self._ends_idle and self.accelerator.gradient_state.end_of_dataloader else batch

    def _run_epoch(self, *args, **kwargs):
        """And the training loss that is not logged yet is that of all processes: Trainer takes the first one's."""
        super()._run_epoch(*args, **kwargs)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(self._tr_loss)
            self._tr_loss /= self.args.world_size

    def training_step(self, *args, **kwargs):
        """Trainer's, which divides a mean loss by the number of micro-batches."""
        divisor = next(self._next_divisor, None)
        if divisor is not None:
            self.current_gradient_accumulation_steps = divisor
        return super().training_step(*args, **kwargs)


def _finite(batch: Mapping) -> dict:
    """A batch without a target with some, since their mean would be no number."""
    labels = batch.get("labels")
    return {**batch, "labels": labels.clamp(min=0)} if _are_classes(labels) else dict(batch)
