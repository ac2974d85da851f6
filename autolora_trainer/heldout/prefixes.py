"""How large does an adapter have to be? The held-out loss of growing prefixes of an order of its components.

Components are ordered by what they take off the loss of some held-out rows, per parameter; the loss of prefixes is
taken on other held-out rows, which did not order them. The size found is the smallest that keeps the gain.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch

from autolora_trainer.errors import NonFiniteError
from autolora_trainer.heldout.passes import target_loss, undisturbed
from autolora_trainer.lora.gates import gated
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.svd import in_svd_basis
from autolora_trainer.names import module_of
from autolora_trainer.ranks.curve import BITS_PER_PARAMETER, MOST_LOAD, Curve, CurvePoint

Component = tuple[str, int]  # (module or part, j): a singular direction of its update, by falling singular value
NOISE = 3.0  # standard errors beyond which a gain on held-out rows is no chance; the best of some ten sizes is asked
SIZES, HALVINGS = 12, 4  # sizes of a curve, at most; those that are measured first


def in_order(
    contributions: dict[str, torch.Tensor], costs: dict[str, int], min_rank: int = 0, max_rank: int | None = None
) -> list[Component]:
    """Components by falling contribution per parameter, φ_j / (m + n).

    Args:
        contributions: {module: (r,)}; see `contributions`.
        costs: {module: m + n}.
        min_rank: 1 puts the best component of every module first.
        max_rank: of any module, parts of a fused projection together; what is beyond it is left out.
    """
    value = {(name, j): phi / costs[name] for name, own in contributions.items() for j, phi in enumerate(own.tolist())}
    ranked = sorted(value, key=lambda component: (-value[component], component[1]))
    if min_rank:
        ranked = best_first(ranked, lambda name: name)
    if max_rank is None:
        return ranked
    left = {module_of(name): max_rank for name in contributions}
    kept = []
    for name, j in ranked:
        if left[module_of(name)]:
            left[module_of(name)] -= 1
            kept.append((name, j))
    return kept


def best_first(order: Sequence[Component], group: Callable[[str], str]) -> list[Component]:
    """The same components, the first of every group of modules before all others.

    Args:
        group: of a module's name.
    """
    best: dict[str, Component] = {}
    for component in order:
        best.setdefault(group(component[0]), component)
    first = set(best.values())
    return [*best.values(), *(component for component in order if component not in first)]


def chosen_of(components: Iterable[Component]) -> dict[str, list[int]]:
    """{module: its components}, of those that have any."""
    chosen: dict[str, list[int]] = {}
    for name, j in components:
        chosen.setdefault(name, []).append(j)
    return chosen


@contextmanager
def measured_prefixes(
    model: torch.nn.Module,
    batches: Sequence,
    loss: Callable = target_loss,
    *,
    adapter_name: str = "default",
    collect: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[Callable[[Iterable[Component]], torch.Tensor]]:
    """Inside, a function that gives the held-out losses of the adapter with some of its components alone.

    Args:
        model, loss: as for `contributions`; the loss should give a value for every row, or rows are batches here.
        batches: held-out batches of this process.
        collect: puts the tensors of all processes one after another.
    Yields:
        components -> (rows, 2) of sum and number of targets, in float64 on the CPU; `NonFiniteError` for a loss that
        is none.
    """
    parts = lora_parts(model, adapter_name)
    with undisturbed(model), in_svd_basis(parts), gated(parts) as factors:

        @torch.no_grad()
        def losses(components: Iterable[Component]) -> torch.Tensor:
            factors.keep(chosen_of(components))
            rows = []
            for batch in batches:
                sums, counts = (torch.as_tensor(value).cpu().double().reshape(-1) for value in loss(model, batch))
                rows.append(torch.stack([sums, counts], dim=1))
            found = torch.cat(rows) if rows else torch.zeros(0, 2, dtype=torch.double)
            found = found if collect is None else collect(found)
            found = found[found[:, 1] > 0]  # rows without a target say nothing
            if (bad := (~torch.isfinite(found[:, 0])).nonzero()).numel():
                raise NonFiniteError(
                    f"The loss of held-out row {int(bad[0]) + 1} of {len(found)}, by length, is NaN or infinite, so "
                    "nothing was chosen by it. Lower the learning rate, or look at the rows."
                )
            return found

        yield losses


def mean_loss(rows: torch.Tensor) -> float:
    """Σ sums / Σ numbers of (rows, 2)."""
    sums, counts = rows.sum(0).tolist()
    return sums / counts if counts else math.nan


def paired_error(rows: torch.Tensor, other: torch.Tensor) -> float:
    """Standard error of the difference between the mean losses of two adapters on the same rows (ratio estimator):
    rows are drawn, targets come with them."""
    counts = rows[:, 1]
    if len(rows) < 2 or not counts.sum():
        return math.inf
    difference = rows[:, 0] - other[:, 0]
    rest = difference - counts * difference.sum() / counts.sum()
    return float((rest.square().sum() * len(rows) / (len(rows) - 1)).sqrt() / counts.sum())


def find_size(
    losses: Callable[[Sequence[Component]], torch.Tensor],
    order: Sequence[Component],
    costs: dict[str, int],
    tolerance: float = 0.06,
    none: torch.Tensor | None = None,
    targets: int | None = None,
    of_whole: bool = False,
) -> Curve:
    """The smallest prefix of an order that keeps the held-out gain: its loss lies within `tolerance` times the gain of
    the best prefix, or, `of_whole`, within `tolerance` times the loss of the whole order; and with a standard error of
    the difference within twice that, so that too few rows choose no size by chance.

    About ten prefixes are measured: all of the order and its halves down to a sixteenth, on while they keep the gain
    or are better; then bisection. A curve is of what a short search has learned. What a long training has to learn
    grows with its targets: no size is found that would have to store more than 1.5 times what it can (`Curve.load`;
    with 2.4 and 4.9 times E2E's retrain lost 4 and 5 % of its gain, with 1.3 nothing, `benchmarks/README.md`).

    Args:
        losses: of some components; see `measured_prefixes`.
        order: components that may be taken, those that help; see `in_order`.
        costs: {module: parameters of one component}.
        none: (rows, 2) of no adapter, where that is not the adapter without components: with a head trained alone.
        targets: of the training rows; None where their loss is not in nats.
    """
    sizes = _Sizes(losses, order, tolerance, of_whole, {0: losses([]) if none is None else none})
    sizes.search()
    decided = sizes.best > 0 and sizes.gain > NOISE * paired_error(sizes.measured[0], sizes.measured[sizes.best])
    kept = min((n for n in sizes.measured if n and sizes.keeps(n)), default=0) if decided or of_whole else 0
    if kept and targets and not of_whole:
        kept = _roomy(kept, order, costs, sizes.gain / math.log(2) * targets)
        sizes.keeps(kept)
    top = sizes.measured[sizes.best]
    points = [_point(size, order, costs, rows, top) for size, rows in sorted(sizes.measured.items())]
    return Curve(tuple(points), kept, decided, tolerance, targets, of_whole)


@dataclass
class _Sizes:
    """Prefixes of an order, measured where they are asked for; `measured`: {size: (rows, 2)}, 0 among them."""

    losses: Callable[[Sequence[Component]], torch.Tensor]
    order: Sequence[Component]
    tolerance: float
    of_whole: bool
    measured: dict[int, torch.Tensor]

    @property
    def best(self) -> int:
        return min(self.measured, key=lambda size: mean_loss(self.measured[size]))

    @property
    def gain(self) -> float:
        return mean_loss(self.measured[0]) - mean_loss(self.measured[self.best])

    def keeps(self, size: int) -> bool:
        """Whether a prefix loses no more than it may, as far as has been measured."""
        if size not in self.measured:
            self.measured[size] = self.losses(self.order[:size])
        top = len(self.order) if self.of_whole else self.best
        rows, whole = self.measured[size], self.measured[top]
        allowed = self.tolerance * (mean_loss(whole) if self.of_whole else self.gain)
        lost = mean_loss(rows) - mean_loss(whole)
        return size == top or lost <= min(allowed, 2 * allowed - paired_error(rows, whole))

    def search(self) -> None:
        """Halves, then bisection."""
        high = len(self.order)
        for halvings in range(HALVINGS + 1):  # the shape of the curve
            self.keeps(high >> halvings)
        while high > 1 and len(self.measured) < SIZES and (self.keeps(high // 2) or self._falls(high)):
            high //= 2
        low = high // 2
        while high - low > 1 and len(self.measured) < SIZES:
            middle = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
            low, high = (low, middle) if self.keeps(middle) else (middle, high)

    def _falls(self, size: int) -> bool:
        """Whether half of a size has a smaller loss: the larger has learned noise."""
        return mean_loss(self.measured[size // 2]) < mean_loss(self.measured[size])


def _roomy(kept: int, order: Sequence[Component], costs: dict[str, int], bits: float) -> int:
    """The smallest prefix, of `kept` components at least, that stores so many bits within `MOST_LOAD`; or all."""
    parameters = list(accumulate(costs[name] for name, _ in order))
    needed = bits / (BITS_PER_PARAMETER * MOST_LOAD)
    return next((size for size in range(kept, len(order)) if parameters[size - 1] >= needed), len(order))


def _point(size: int, order, costs, rows: torch.Tensor, best: torch.Tensor) -> CurvePoint:
    parameters = sum(costs[name] for name, _ in order[:size])
    return CurvePoint(size, parameters, mean_loss(rows), paired_error(rows, best))
