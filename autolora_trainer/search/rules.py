"""§4.4: the rank rules, from what the search learned to one integer per module.

A rank rule gives every component of every module a score, and the level that a score has to reach. Without a budget a
module's rank is the number of its scores at or above the level; with one, components enter in the order of their
scores until the next would exceed it, which is monotone in the budget.

The default rule, `adaptive`, asks three questions in turn. Do the held-out rows want the learned update at all? If
they want it smaller and their loss does not fall, it has learned noise, there is nothing to prefer, and ranks are
uniform. Does the update have a definite rank? If its singular values fall into two groups with a gap between them,
the upper group is counted. If not, as on every real task seen, rank is only a matter of how to share a budget, and it
is shared in proportion to the held-out gradient of the modules, which agrees between seeds. What that was measured to
be worth, and where it only shows the architecture, is in `benchmarks/README.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from autolora_trainer.ranks.budget import apportioned, fill_budget
from autolora_trainer.search.evidence import EVIDENCE
from autolora_trainer.search.selection import SelectionGates


@dataclass
class SearchState:
    """What a rank rule may read; M modules, k components each.

    Attributes:
        selection: α, (M, k).
        threshold: λ, (M, 1).
        lora_A, lora_B: the factors, M tensors (k, n_l) and (m_l, k).
        sensitivity: running mean of |∂L_val/∂β|, (M, k).
        energy: root mean square of ‖∂L_val/∂W_l‖_F, (M,); see `GradientProbe`.
        evidence: (gain, trend) on the held-out rows; see `AutoLoraMixin.held_out_evidence`.
    """

    selection: torch.Tensor
    threshold: torch.Tensor
    lora_A: list[torch.Tensor]
    lora_B: list[torch.Tensor]
    sensitivity: torch.Tensor
    energy: torch.Tensor | None = None
    evidence: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, gates: SelectionGates, sensitivity: torch.Tensor, threshold: float | None = None, **measured):
        """That of a search as it is now; `measured`: energy, evidence."""
        level = gates.threshold() if threshold is None else torch.full_like(gates.selection[:, :1], threshold)
        return cls(
            selection=gates.selection.detach().cpu(),
            threshold=level.cpu(),
            lora_A=[part.lora_A.detach().float().cpu() for part in gates.parts.values()],
            lora_B=[part.lora_B.detach().float().cpu() for part in gates.parts.values()],
            sensitivity=sensitivity.cpu(),
            **measured,
        )

    def strength(self) -> torch.Tensor:
        """The Frobenius norm of every gated rank-1 component, α_j ‖A_j‖ ‖B_j‖, shape (M, k)."""
        norms_A = torch.stack([a.norm(dim=1) for a in self.lora_A])
        norms_B = torch.stack([b.norm(dim=0) for b in self.lora_B])
        return self.selection.abs() * norms_A * norms_B

    def capacities(self) -> list[int]:
        """The most that the rank of each module can be, min(k, m_l, n_l)."""
        return [min(*a.shape, b.shape[0]) for a, b in zip(self.lora_A, self.lora_B)]

    def possible(self) -> torch.Tensor:
        """Which singular values, falling, are not zero by the shape of their module alone, (M, k)."""
        return torch.arange(self.selection.shape[1]) < torch.tensor(self.capacities())[:, None]


@dataclass(frozen=True)
class RankRule:
    scores: Callable[[SearchState], torch.Tensor]  # (M, k), larger is better
    level: Callable[[torch.Tensor, SearchState], torch.Tensor]  # what a score must reach, broadcastable to (M, k)


def _singular_values(state: SearchState) -> torch.Tensor:
    """Singular values of B diag(α) A, (M, k), falling. Their squares are the eigenvalues of
    D^(1/2) U^T (diag(α) B^T B diag(α)) U D^(1/2) with A A^T = U D U^T: k x k matrices, all modules at once, in double.
    """
    gram_A = torch.stack([a.double() @ a.double().T for a in state.lora_A])
    gated = [(b * alpha).double() for b, alpha in zip(state.lora_B, state.selection)]
    gram_B = torch.stack([b.T @ b for b in gated])
    if not (torch.isfinite(gram_A).all() and torch.isfinite(gram_B).all()):
        return torch.full_like(state.selection, float("nan"))
    values, vectors = torch.linalg.eigh(gram_A)
    root = vectors * values.clamp_min(0).sqrt()[:, None, :]  # U D^(1/2)
    squares = torch.linalg.eigvalsh(root.transpose(1, 2) @ gram_B @ root)
    return squares.flip(-1).clamp_min(0).sqrt().to(state.selection.dtype)


def _uniform(state: SearchState) -> torch.Tensor:
    """Scores that prefer no module."""
    return apportioned(torch.ones(len(state.selection)), state.selection.shape[1])


def _half(scores: torch.Tensor, state: SearchState) -> torch.Tensor:
    """The level that half of all components reach."""
    return scores.flatten().sort(descending=True).values[scores.numel() // 2 - 1 if scores.numel() > 1 else 0]


GAP = 2.0  # neighbours on both sides of the cut differ by this factor; real tasks: at most 1.2, planted: at least 3
NULL = 0.01  # singular values below this share of the largest count as this share of it


def spectral_cut(values: torch.Tensor) -> tuple[float, float]:
    """Otsu's cut (1979) of the logarithms of positive values: the split into two classes with the greatest variance
    between them.

    Args:
        values: any shape, at least two, not negative; those below `NULL` times the largest are raised to it.
    Returns:
        (cut, gap): a value between the two classes, and the ratio of the smallest above to the largest below it.
    Example:
        >>> cut, gap = spectral_cut(torch.tensor([4.0, 3.0, 0.1, 0.2]))
        >>> 0.2 < cut < 3.0, round(gap, 1)
        (True, 15.0)
    """
    logs = values.flatten().clamp_min(NULL * values.max().clamp_min(1e-30)).log().double().sort().values
    sizes = torch.arange(1, len(logs), dtype=torch.double)
    sums = logs.cumsum(0)
    below = sums[:-1] / sizes
    above = (sums[-1] - sums[:-1]) / (len(logs) - sizes)
    index = int((sizes * (len(logs) - sizes) * (below - above).square()).argmax())
    return float(((below + above)[index] / 2).exp()), float((logs[index + 1] - logs[index]).exp())


def _adaptive(state: SearchState) -> torch.Tensor:
    """Scores of the rule `adaptive`; see the head of this file. Components that a definite rank leaves out score below
    zero, in the same order, so that a budget reaches them last."""
    gain, trend = state.evidence
    if gain < -EVIDENCE and trend < EVIDENCE:
        return _uniform(state)
    measured = state.energy is not None and (state.energy > 0).any()
    shares = (state.energy / state.energy.max()).clamp_min(1e-3) if measured else torch.ones(len(state.selection))
    scores = apportioned(shares, state.selection.shape[1])
    singular = _singular_values(state)
    if not torch.isfinite(singular).all():
        return singular  # which stops `select_ranks`
    learned = singular[state.possible() & singular.any(dim=1, keepdim=True)]  # no gradient, no update: no rank to see
    if len(learned) < 2:
        return scores
    cut, gap = spectral_cut(learned)
    return torch.where(singular >= cut, scores, -1 / scores) if gap >= GAP else scores


def _adaptive_level(scores: torch.Tensor, state: SearchState) -> torch.Tensor:
    """All components of a definite rank; without one, half of all."""
    definite = scores > 0
    return scores[definite].min() if not definite.all() else _half(scores, state)


RANK_RULES = {
    # #{ j : σ_j(B diag(α) A) >= Otsu's cut } where the σ leave a gap, else a half shared out by ‖∂L_val/∂W‖
    "adaptive": RankRule(_adaptive, _adaptive_level),
    # #{ j : α_j >= λ_l }   (§4.4)
    "threshold": RankRule(lambda state: state.selection, lambda scores, state: state.threshold),
    # #{ j : α_j ‖A_j‖ ‖B_j‖ >= mean over all modules }
    "strength": RankRule(SearchState.strength, lambda scores, state: scores.mean()),
    # #{ j : σ_j(B diag(α) A) >= mean over all modules }
    "singular": RankRule(_singular_values, lambda scores, state: scores[state.possible()].mean()),
    # half of all components, shared out by mean |∂L_val/∂β| (Sainte-Laguë)
    "sensitivity": RankRule(lambda state: apportioned(state.sensitivity.sum(dim=1), state.selection.shape[1]), _half),
    # half of all, the same number everywhere. A control: what a search's passes and warm start are worth without ranks
    "uniform": RankRule(_uniform, _half),
}


def rank_from_selection(selection: torch.Tensor, threshold: float | None = None) -> int:
    r"""Count the selection variables of one layer that reach the threshold (§4.4):  k*_l = |{ j : α_l^j >= λ }|.

    Args:
        selection: α_l, shape (k_l,), the output of `gates.selection` (Eq. 3).
        threshold: λ. `None` means 1/k_l, the paper's choice; as α_l sums to one, the rank is then at least 1.
    Raises:
        ValueError: If `selection` is not one-dimensional, is empty or holds a NaN.
    Example:
        >>> rank_from_selection(torch.tensor([0.4, 0.3, 0.2, 0.1]))
        2
    """
    if selection.dim() != 1 or selection.numel() == 0 or selection.isnan().any():
        raise ValueError(
            f"selection must have shape (k,), k >= 1, and no NaN. Got {tuple(selection.shape)}: {selection}."
        )
    level = torch.as_tensor(1 / len(selection) if threshold is None else threshold, dtype=selection.dtype)
    return int((selection >= level).sum())


def select_ranks(
    state: SearchState, rule: str = "adaptive", budget: str | int | None = None, min_rank: int = 1
) -> list[int]:
    """One rank per module by `rule` (see `RANK_RULES`), within `budget` if there is one.

    Args:
        budget: adapter parameters to spend, an integer or `lora:R` (as many as uniform LoRA of rank R has). Components
            enter in the order of their scores; the result is the largest such prefix, so what stays unspent is less
            than the next component costs.
        min_rank: 1 gives every module its best component first; 0 lets a module go without.
    Returns:
        M integers between `min_rank` and min(k, m_l, n_l).
    Raises:
        ValueError: If a score is not a finite number, or the budget is below `min_rank` everywhere or beyond capacity.
    Example:
        >>> a, b = torch.eye(2), torch.eye(2)
        >>> state = SearchState(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5]]), [a], [b], torch.zeros(1, 2))
        >>> select_ranks(state, "threshold")
        [1]
    """
    scores = RANK_RULES[rule].scores(state)
    if not torch.isfinite(scores).all():
        raise ValueError(
            f"rank rule {rule!r} met scores that are not finite numbers. The search diverged; lower "
            "search_learning_rate or selection_learning_rate."
        )
    if budget is None:
        ranks = (scores >= RANK_RULES[rule].level(scores, state)).sum(dim=1).clamp(min=min_rank)
        return [min(rank, most) for rank, most in zip(ranks.tolist(), state.capacities())]
    costs = [a.shape[1] + b.shape[0] for a, b in zip(state.lora_A, state.lora_B)]
    return fill_budget(scores, costs, budget, min_rank, state.capacities())
