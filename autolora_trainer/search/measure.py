"""Contributions and sizes measured on a Trainer: its own loss, its held-out rows, α folded into the update."""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from autolora_trainer.heldout.contributions import contributions
from autolora_trainer.heldout.passes import undisturbed
from autolora_trainer.heldout.prefixes import NOISE, SIZES, find_size, mean_loss, measured_prefixes, paired_error
from autolora_trainer.heldout.trainer import HeldOutMixin
from autolora_trainer.lora.gates import gated
from autolora_trainer.lora.heads import set_values, trained_beside_lora
from autolora_trainer.lora.sharded import gradients, is_sharded, whole
from autolora_trainer.ranks.budget import parse_budget
from autolora_trainer.search.checks import check_batch
from autolora_trainer.search.rules import Found, by_threshold, filled, kept, ordered, spread, undecided
from autolora_trainer.training.passes import RandomState
from autolora_trainer.training.progress import phase, ticking
from autolora_trainer.training.shares import Idle, count_targets

ORDER_BATCHES, SIZE_BATCHES, LOOK_BATCHES = 16, 8, 3  # of held-out rows, as large as a weight step's
ENOUGH_TARGETS = 256  # of rows that judge the size; where a row has one target, as many rows
PASSES = {"first_order": 1, "finite_difference": 3, "exact": 3}  # of a selection step, about
SAME = 0.8  # what two looks share, and the order has settled


@dataclass(frozen=True)
class Look:
    """A quick look at a running search.

    Attributes:
        ranks: of the best quarter of all components.
        has_learned: the whole adapter takes at least a hundredth off the held-out loss, and more than chance.
    """

    ranks: dict[str, int]
    has_learned: bool


def shared_ranks(ranks: dict[str, int], earlier: dict[str, int]) -> float:
    """The share of the components that two choices have in common, counted by module:  Σ_l min(r_l, r'_l) / Σ_l r_l.

    Example:
        >>> shared_ranks({"q": 2, "v": 2}, {"q": 1, "v": 3})
        0.75
    """
    total = sum(ranks.values())
    return sum(min(rank, earlier.get(name, 0)) for name, rank in ranks.items()) / total if total else 0.0


class MeasurementMixin(HeldOutMixin):
    """Over a Trainer with `gates`, and with D_val as `order_dataset` and `size_dataset`.

    Attributes:
        measured_passes: forward-backward passes of a batch that measuring took, on this process; a forward alone is a
            third of one.
    """

    measured_passes = 0.0

    def find(self) -> Found:
        """What the search has found by now, by `args.rank_rule`."""
        args, parts = self.args, self.gates.parts
        if args.rank_rule == "threshold":
            return by_threshold(self.gates, args.threshold, args.size, args.least_rank, self.reach.left_out)
        found = self.contributions()
        order = ordered(found, parts, args.least_rank, args.max_lora_rank)
        costs = {name: parts[name].cost for name in found}
        if not args.finds_size:
            size = args.size
            if len(found) < len(parts):  # the modules that are left out may have been most of it
                size = min(parse_budget(size, list(costs.values())), sum(costs[name] for name, _ in order))
            order = spread(order) if self.fresh_heads else order
            return kept(found, parts, filled(order, costs, size, args.least_rank))
        curve = self._curve([(name, j) for name, j in order if found[name][j] > 0], costs)
        if not curve.decided:
            return undecided(found, parts, curve, args.max_lora_rank)
        return kept(found, parts, order[: max(curve.kept, len(found) * args.least_rank)], curve)

    def unmeasured(self, found: Found) -> list[str]:
        """Modules that are left out, as no held-out gradient has come to them."""
        if self.args.rank_rule == "threshold":
            return self.reach.left_out
        return [name for name in self.gates.names if name not in found.contributions]

    def expected_passes(self, steps: int) -> tuple[float, float]:
        """(forward-backward passes of a weight step with its share of a selection step, those of a search of so many
        steps with all that it measures, at most), on this process."""
        args, world = self.args, self.args.world_size
        selection = PASSES[args.hypergradient] / args.hypergradient_interval
        of_step = args.gradient_accumulation_steps * (1 + selection)
        if args.rank_rule == "threshold":
            return of_step, of_step * steps
        order, size, look = (
            math.ceil(self._sample_size(count) / (args.per_device_train_batch_size * world))
            for count in (ORDER_BATCHES, SIZE_BATCHES, LOOK_BATCHES)
        )
        looks = (steps - 1) // args.search_look_steps if args.search_look_steps else 0
        measured = 1 + 2 * order + looks * look * 5 / 3 + args.finds_size * SIZES * size / 3
        heads = args.finds_size * bool(self.fresh_heads) * steps * args.gradient_accumulation_steps / 3
        return of_step, of_step * steps + measured + heads

    def contributions(self, points: int = 2, batches: int = ORDER_BATCHES) -> dict[str, torch.Tensor]:
        """See `heldout.contributions.contributions`; on rows that do not judge the size."""
        batches = self._held_out_batches(self.order_dataset, batches)
        with phase(self, "contributions", len(batches)) as tick:
            return self._contributions(points, batches, tick)

    def _contributions(self, points: int, batches: list, tick=None) -> dict[str, torch.Tensor]:
        self.measured_passes += points * len(batches)
        own = {"points": points, "reduce": self._add_up, "allow_unused": True}
        with self.gates.folded(), self._plain_loss():
            return contributions(self.model, ticking(batches, tick), self._held_out_loss, **own)

    def _check_reach(self) -> None:
        """See `search/reach.py`; after the passes of a selection step."""
        self.reach.judge(self._add_up)
        if self.state.global_step == 0 and self.args.rank_rule == "contributions":
            self.measured_passes += 1
            with self.gates.folded(), self._plain_loss():
                batches = self._held_out_batches(self.order_dataset, 1)[:1]
                self.reach.try_measuring(self.model, batches, self._held_out_loss, self._add_up)

    def try_measuring(self) -> None:
        """One batch of held-out rows through what the end of a search measures, and no trace of it: what cannot work
        fails before the first step."""
        if self.args.rank_rule == "threshold":
            return
        args, now, passes = self.args, RandomState(self.args.device), self.measured_passes
        rows, collate = self._as_the_model_takes(self.order_dataset)
        check_batch(self, collate([rows[0]]))
        batches = self._drawn_batches(self.order_dataset, args.per_device_train_batch_size * args.world_size)
        if self.is_fsdp_enabled:  # it notes in its first pass what is trained, and in the next ones nothing is
            with torch.no_grad():
                self._held_out_loss(self.model, batches[0])
        with self.gates.folded(), self._plain_loss(), self._measured(batches) as losses:
            losses([])
        self.measured_passes = passes
        now.restore()

    def look(self) -> Look:
        """On few rows and one point of the path."""
        batches, parts = self._held_out_batches(self.order_dataset, LOOK_BATCHES), self.gates.parts
        found = self._contributions(1, batches)
        order = ordered(found, parts, 0, None)
        with self.gates.folded(), self._plain_loss(), self._measured(batches) as losses:
            without, whole = losses([]), losses(order)
        gain = mean_loss(without) - mean_loss(whole)
        has_learned = gain > max(NOISE * paired_error(without, whole), 0.01 * mean_loss(without))
        return Look(kept(found, parts, order[: max(1, len(order) // 4)]).ranks, has_learned)

    def _curve(self, order, costs: dict[str, int]):
        """The size found on `size_dataset`; see `find_size`."""
        batches = self._held_out_batches(self.size_dataset, SIZE_BATCHES, ENOUGH_TARGETS)
        with self.gates.folded(), self._plain_loss():
            none = self._no_adapter(batches)
            with phase(self, "curve", SIZES) as tick, self._measured(batches, tick) as losses:
                return find_size(losses, order, costs, self.args.tolerance, none, self._targets(batches))

    def _targets(self, batches) -> int | None:
        """Targets of all rows that the retrain will see, by those of a held-out sample; None where there is no length,
        or labels are neither classes nor tokens."""
        labels, parts = batches[0].get("labels"), (self.train_dataset, self.order_dataset, self.size_dataset)
        if not torch.is_tensor(labels) or labels.is_floating_point() or not all(hasattr(p, "__len__") for p in parts):
            return None
        own = [batch for batch in batches if not isinstance(batch, Idle)]
        counted = torch.tensor([sum(count_targets(self.model, b) for b in own), sum(len(b["labels"]) for b in own)])
        self._add_up([counted])  # or the processes would disagree about the size
        targets, rows = counted.tolist()
        return round(targets / rows * sum(map(len, parts)))

    @contextmanager
    def _measured(self, batches, tick=None):
        """`measured_prefixes`, with its passes counted."""
        with measured_prefixes(self.model, batches, self._held_out_loss, collect=self._collect) as losses:

            def counted(components):
                self.measured_passes += len(batches) / 3
                found = losses(components)
                if tick is not None:
                    tick(loss=mean_loss(found))
                return found

            yield counted

    def _no_adapter(self, batches) -> torch.Tensor | None:
        """The held-out losses of the base model with a head that is trained alone, for as many steps as the search's:
        that of the search has come to rely on the adapter. None: there is no head."""
        if not self.fresh_heads:
            return None
        heads = trained_beside_lora(self.model)
        trained = {name: parameter.detach().clone() for name, parameter in heads.items()}
        try:
            set_values(heads, self.fresh_heads)
            self._train_heads(self.state.global_step)
            with self._measured(batches) as losses:
                return losses([])
        finally:
            set_values(heads, trained)

    def _train_heads(self, steps: int) -> None:
        """Train the heads alone, under an adapter that is switched off."""
        args, heads = self.args, list(trained_beside_lora(self.model).values())
        rows = self.train_dataset if hasattr(self.train_dataset, "__len__") else self.order_dataset
        batches, micro_batches = self._endless_batches(rows), args.gradient_accumulation_steps
        half = any(parameter.dtype != torch.float32 for parameter in heads)  # whose 1e-8 is 0, but not fused
        optimizer = torch.optim.AdamW(heads, lr=args.learning_rate, weight_decay=0.0, fused=half or None)
        self.measured_passes += steps * micro_batches / 3
        with undisturbed(self.model), gated(self.gates.parts) as factors, torch.enable_grad():
            factors.fill(0)
            for parameter in heads:
                parameter.requires_grad_(True)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - step / steps)
                for parameter in heads:
                    parameter.grad = torch.zeros_like(parameter)
                for inputs, divisor in zip(*self.divided([next(batches) for _ in range(micro_batches)])):
                    loss, _ = self._mean_loss(self._prepare_inputs(inputs))
                    if not loss.requires_grad:  # it reads no head, as that of a mean over tokens does not
                        continue
                    for parameter, gradient in zip(heads, gradients(loss, heads)):
                        if gradient is not None:
                            parameter.grad += gradient / divisor
                self._reduce([parameter.grad for parameter in heads if not is_sharded(parameter)])
                if all(whole(parameter.grad).isfinite().all() for parameter in heads):
                    optimizer.step()
            optimizer.zero_grad()
