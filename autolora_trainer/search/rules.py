"""From a search to ranks: which components are kept, and with them one integer per module.

Two rules. `contributions`, the default: components are singular directions of the learned updates, α folded in; they
enter by what they take off the held-out loss, per parameter, until a size is reached that is given or found.
`threshold`, the paper's (§4.4): a component is kept where its selection variable reaches λ.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from autolora_trainer.heldout.prefixes import best_first, chosen_of, in_order
from autolora_trainer.lora.parts import LoraPart
from autolora_trainer.ranks.budget import fill_budget, parse_budget
from autolora_trainer.ranks.curve import Curve
from autolora_trainer.ranks.grid import split_block
from autolora_trainer.search.selection import SelectionGates

UNDECIDED = 8  # uniform rank where held-out rows have not seen the search learn


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        chosen: {module: its kept components}: places among the singular directions of its update (`contributions`), or
            among the components of the search (`threshold`); every module is there, some perhaps with none.
        contributions: {module: (k,)}, of the rule of that name; without those that no held-out gradient reached.
        curve: held-out loss against size, where the size was found.
    """

    chosen: dict[str, list[int]]
    contributions: dict[str, tuple[float, ...]] = field(default_factory=dict)
    curve: Curve | None = None

    @property
    def ranks(self) -> dict[str, int]:
        return {name: len(own) for name, own in self.chosen.items()}


def capacities(parts: dict[str, LoraPart]) -> list[int]:
    """The most that the rank of each module can be, min(k, m_l, n_l)."""
    return [min(part.rank, *part.shape) for part in parts.values()]


def by_threshold(
    gates: SelectionGates,
    threshold: float | None = None,
    size: str | int | None = None,
    min_rank: int = 1,
    unreached: Collection[str] = (),
) -> Found:
    """The rule of §4.4: the rank of a module is #{ j : α_j >= λ }; with a size, components enter by falling α until
    the next would exceed it.

    Args:
        threshold: λ. Default: 1/k for softmax, 0.5 for sigmoid, the layer's mean without constraint.
        size: in adapter parameters, a number or `lora:R`.
        min_rank: 1 gives every module its best component first; 0 lets a module go without.
        unreached: modules without any gradient, whose α stands where it began and says nothing: they get rank 0.
    Raises:
        ValueError: If a selection variable is no finite number, or the size is out of reach.
    """
    reached = [row for row, name in enumerate(gates.names) if name not in set(unreached)]
    parts = {gates.names[row]: gates.parts[gates.names[row]] for row in reached}
    selection = gates.selection.detach().cpu()[reached]  # (reached, k)
    if not torch.isfinite(selection).all():
        raise ValueError(
            "rank rule 'threshold' met scores that are not finite numbers. The search diverged; lower "
            "search_learning_rate or selection_learning_rate."
        )
    if size is None:
        level = gates.threshold().cpu()[reached] if threshold is None else threshold
        counts = (selection >= level).sum(dim=1).clamp(min=min_rank).tolist()
        ranks = [min(count, most) for count, most in zip(counts, capacities(parts))]
    else:
        costs = [part.cost for part in parts.values()]
        ranks = fill_budget(selection, costs, size, min_rank, capacities(parts))
    order = selection.argsort(dim=1, descending=True, stable=True).tolist()
    chosen = {name: sorted(own[:rank]) for name, own, rank in zip(parts, order, ranks)}
    return Found({name: chosen.get(name, []) for name in gates.names})


def check_reachable(arguments, parts: dict[str, LoraPart]) -> None:
    """Raise `ValueError` for a size that no scores of these components can fill: before a search, not after it."""
    size, least = arguments.size, arguments.least_rank
    if size in (None, "auto"):
        return
    costs, zeros = [part.cost for part in parts.values()], {n: torch.zeros(p.rank) for n, p in parts.items()}
    if arguments.rank_rule == "threshold":
        fill_budget(torch.stack([*zeros.values()]), costs, size, least, capacities(parts))
        if least == 0 and parse_budget(size, costs) < max(costs):
            raise ValueError(
                f"size {size} has no room for a component of the largest module, {max(costs):,} adapter parameters, "
                "which may be the best. Raise size."
            )
    else:
        filled(ordered(zeros, parts, least, arguments.max_lora_rank), dict(zip(parts, costs)), size, least)


def filled(
    order: list[tuple[str, int]], costs: dict[str, int], size: str | int, min_rank: int = 0
) -> list[tuple[str, int]]:
    """The components of an order that a size has room for: one after the other, passing over what no longer fits.

    Args:
        costs: {module: parameters of one component}.
        size: in adapter parameters, a number or `lora:R`.
        min_rank: 1: the first of the order are the best component of every module, and have to fit.
    Raises:
        ValueError: If all components together are smaller, or those that have to fit are larger.
    """
    most = sum(costs[name] for name, _ in order)
    left = parameters = parse_budget(size, list(costs.values()))
    if parameters > most:
        raise ValueError(
            f"size {size} asks for {parameters:,} adapter parameters, and all components of the search have {most:,}. "
            "Lower size, or raise what caps them: initial_rank, max_lora_rank."
        )
    needed = sum(costs[name] for name, _ in order[: len(costs)]) if min_rank else min(costs.values())
    if needed > parameters:
        raise ValueError(
            f"size {size} is {parameters:,} adapter parameters, and the least that min_rank {min_rank} allows is "
            f"{needed:,}. Raise size" + (" or set min_rank 0." if min_rank else ".")
        )
    found = []
    for name, j in order:
        if costs[name] <= left:
            left -= costs[name]
            found.append((name, j))
    return found


def spread(order: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The same components, the best one of every block first: what fills a size that is given, beside a fresh head.

    The head leans on the blocks before it, which learn first, and a search sees little else; a small adapter that is
    trained anew wants all blocks. A size that is found has room for every block that does something.

    Example:
        >>> spread([("layer.1.q", 0), ("layer.1.v", 0), ("layer.0.q", 0)])
        [('layer.1.q', 0), ('layer.0.q', 0), ('layer.1.v', 0)]
    """
    return best_first(order, lambda name: split_block(name)[0])


def ordered(contributions, parts: dict[str, LoraPart], min_rank: int, max_lora_rank: int | None):
    """Components in the order in which they are kept; what a module's shape has no room for is left out, and a module
    without contributions."""
    costs = {name: part.cost for name, part in parts.items()}
    most = dict(zip(parts, capacities(parts)))
    possible = {name: own[: most[name]] for name, own in contributions.items()}
    return in_order(possible, costs, min_rank, max_lora_rank)


def kept(contributions, parts: dict[str, LoraPart], components, curve: Curve | None = None) -> Found:
    """`Found`, of components of an order."""
    chosen = chosen_of(components)
    lists = {name: tuple(values.tolist()) for name, values in contributions.items()}
    return Found({name: sorted(chosen.get(name, [])) for name in parts}, lists, curve)


def undecided(contributions, parts: dict[str, LoraPart], curve: Curve, max_lora_rank: int | None) -> Found:
    """Uniform ranks, where held-out rows have not seen the search learn: the leading components of every module."""
    rank = min(UNDECIDED, max_lora_rank or UNDECIDED)
    most = dict(zip(parts, capacities(parts)))
    leading = [(name, j) for name in contributions for j in range(min(rank, most[name]))]
    return kept(contributions, parts, leading, curve)
