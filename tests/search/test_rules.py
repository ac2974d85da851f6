"""Does every rule give the ranks that follow from a search written by hand?"""

import re
from types import SimpleNamespace

import pytest
import torch

from autolora_trainer.search.handover import strongest
from autolora_trainer.search.rules import RANK_RULES, SearchState, rank_from_selection, select_ranks, spectral_cut


def state(alpha, norms=None, sensitivity=None, shape=(6, 5)):
    """Two or more modules with orthogonal components of given norms: strength and singular values are known."""
    alpha = torch.tensor(alpha)
    modules, k = alpha.shape
    norms = torch.ones(modules, k) if norms is None else torch.tensor(norms)
    a = [torch.eye(k, shape[1]) * n[:, None] for n in norms]
    b = [torch.eye(shape[0], k) for _ in norms]
    sensitivity = torch.zeros(modules, k) if sensitivity is None else torch.tensor(sensitivity)
    return SearchState(alpha, torch.full((modules, 1), 1 / k), a, b, sensitivity)


def test_threshold_counts_as_the_paper_does():
    assert rank_from_selection(torch.tensor([0.4, 0.3, 0.2, 0.1])) == 2
    assert rank_from_selection(torch.tensor([0.4, 0.3, 0.2, 0.1]), threshold=0.5) == 0
    assert select_ranks(state([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]]), "threshold") == [2, 1]


def test_softmax_selection_always_keeps_one_component():
    for _ in range(200):
        alpha = torch.softmax(3 * torch.randn(8), dim=-1)
        assert 1 <= rank_from_selection(alpha) <= 8


@pytest.mark.parametrize("bad", [torch.ones(2, 2), torch.ones(0), torch.tensor([float("nan"), 1.0])])
def test_rank_from_selection_refuses_what_is_no_selection(bad):
    with pytest.raises(ValueError, match=re.escape("selection must have shape (k,)")):
        rank_from_selection(bad)


def test_strength_compares_components_across_modules():
    norms = [[8.0, 4.0, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]
    searched = state([[0.25] * 4] * 2, norms)
    assert select_ranks(searched, "strength", min_rank=0) == [2, 0]
    assert select_ranks(searched, "strength", min_rank=1) == [2, 1]


def test_singular_sees_the_rank_of_the_update_not_the_number_of_components():
    searched = state([[0.25] * 4] * 2)
    searched.lora_A[0] = torch.ones(4, 5)  # four components, all along one row: rank one
    searched.lora_B[0] = torch.ones(6, 4)
    searched.lora_A[1] = 0.01 * searched.lora_A[1]
    assert select_ranks(searched, "singular", min_rank=0) == [1, 0]
    assert select_ranks(searched, "strength", min_rank=0) == [4, 0]


def test_sensitivity_shares_components_out_in_proportion():
    searched = state([[0.25] * 4] * 2, sensitivity=[[3.0] * 4, [1.0] * 4])
    assert select_ranks(searched, "sensitivity") == [3, 1]
    assert select_ranks(searched, "sensitivity", budget=11 * 8) == [4, 4]


def test_adaptive_counts_where_the_update_has_a_definite_rank():
    """Two groups of singular values a factor of ten apart: the upper one is the rank, whatever the energies."""
    searched = state([[0.25] * 4] * 3, [[4.0, 3.0, 0.2, 0.1], [0.1, 0.1, 0.2, 0.1], [2.0, 4.0, 3.0, 0.1]])
    searched.energy = torch.tensor([1.0, 9.0, 3.0])
    assert select_ranks(searched, "adaptive", min_rank=0) == [2, 0, 3]
    assert select_ranks(searched, "adaptive", min_rank=1) == [2, 1, 3]
    assert select_ranks(searched, "adaptive", budget=11 * 3, min_rank=0) == [1, 0, 2]  # by energy, among those
    assert select_ranks(searched, "adaptive", budget=11 * 7, min_rank=0) == [2, 2, 3]  # and only then the others


def test_singular_values_that_are_zero_by_shape_are_no_gap():
    """Two narrow modules, k = 8: the values that they cannot have are neither the lower group nor part of a mean."""
    shapes, k = [(2, 16), (16, 2), (16, 16), (16, 16)], 8
    a = [torch.eye(k, n) * torch.linspace(1.0, 0.6, k)[:, None] for _, n in shapes]
    b = [torch.eye(m, k) for m, _ in shapes]
    searched = SearchState(torch.full((4, k), 1 / k), torch.full((4, 1), 1 / k), a, b, torch.ones(4, k))
    searched.energy = torch.tensor([1.0, 1.0, 1.0, 3.0])
    assert select_ranks(searched, "adaptive") == [2, 2, 3, 8]  # half of all, by energy
    assert select_ranks(searched, "singular") == [2, 2, 3, 3]
    a[2] = torch.cat([a[2][:5], 0.05 * a[2][5:]])  # here is one
    assert select_ranks(searched, "adaptive") == [2, 2, 5, 8]


def test_modules_that_learned_nothing_are_no_gap():
    """A `lora_B` that never got a gradient is zero, and says nothing of the rank of the others."""
    searched = state([[0.25] * 4] * 3, [[1.0, 0.9, 0.8, 0.7], [1.1, 1.0, 0.75, 0.65], [0.0] * 4])
    searched.energy = torch.tensor([1.0, 3.0, 0.0])
    assert select_ranks(searched, "adaptive") == [2, 4, 1]
    searched.lora_A[0][2:] *= 0.05
    assert select_ranks(searched, "adaptive", min_rank=0) == [2, 4, 0]
    for b in searched.lora_B:
        b.zero_()
    assert select_ranks(searched, "adaptive") == [2, 4, 1]  # by energy alone


def test_adaptive_shares_out_by_energy_where_it_has_none():
    norms = [[1.0, 0.9, 0.8, 0.7], [1.1, 1.0, 0.75, 0.65]]
    searched = state([[0.25] * 4] * 2, norms)
    searched.energy = torch.tensor([1.0, 3.0])
    assert select_ranks(searched, "adaptive", min_rank=0) == [1, 3]
    assert select_ranks(searched, "adaptive", budget=11 * 6, min_rank=0) == [2, 4]
    searched.energy = None  # nothing was measured: no preference
    assert select_ranks(searched, "adaptive") == [2, 2]


def test_adaptive_prefers_nothing_where_the_update_has_learned_noise():
    searched = state([[0.25] * 4] * 2, [[9.0, 9.0, 9.0, 9.0], [0.1, 0.1, 0.1, 0.1]])
    searched.energy, searched.evidence = torch.tensor([1.0, 3.0]), (-2.5, 0.0)
    assert select_ranks(searched, "adaptive", min_rank=0) == [2, 2]
    searched.evidence = (-2.5, 3.0)  # overshot, but the held-out loss has fallen
    assert select_ranks(searched, "adaptive", min_rank=0) == [4, 0]


def test_uniform_gives_every_module_the_same_rank():
    """Whatever the search learned, and modules of unequal cost get the rank R of a budget lora:R too."""
    searched = state([[0.7, 0.1, 0.1, 0.1]] * 2, [[9.0, 9.0, 0.1, 0.1], [0.1] * 4], [[3.0] * 4, [1.0] * 4])
    searched.energy = torch.tensor([1.0, 9.0])
    assert select_ranks(searched, "uniform") == [2, 2]
    searched.lora_A[1], searched.lora_B[1] = torch.ones(4, 50), torch.ones(60, 4)
    for rank in (1, 2, 3, 4):
        assert select_ranks(searched, "uniform", f"lora:{rank}", min_rank=0) == [rank] * 2


def test_spectral_cut_is_between_two_groups_and_sees_none_in_one():
    cut, gap = spectral_cut(torch.tensor([[5.0, 4.0], [0.4, 0.5]]))
    assert 0.5 < cut < 4.0 and gap == pytest.approx(8.0)
    assert spectral_cut(torch.linspace(1.0, 2.0, 40))[1] < 1.1
    assert spectral_cut(torch.tensor([1.0, 1e-9]))[1] == pytest.approx(100.0)  # what is null is a hundredth


def test_singular_values_are_those_of_the_gated_update():
    searched = state([[0.4, 0.3, 0.2, 0.1], [0.25] * 4])
    for index in range(2):
        searched.lora_A[index], searched.lora_B[index] = torch.randn(4, 5), torch.randn(6, 4)
        update = (searched.lora_B[index] * searched.selection[index]) @ searched.lora_A[index]
        values = RANK_RULES["singular"].scores(searched)[index]
        torch.testing.assert_close(values, torch.linalg.svdvals(update)[:4], rtol=1e-5, atol=1e-6)


def test_scores_that_are_no_numbers_stop_the_rule():
    with pytest.raises(ValueError, match="rank rule 'strength' met scores that are not finite"):
        select_ranks(state([[float("nan")] * 4] * 2), "strength")


@pytest.mark.parametrize("budget", [None, "lora:3", 96])
@pytest.mark.parametrize("rule", RANK_RULES)
def test_no_module_gets_a_rank_that_its_matrix_cannot_have(rule, budget):
    """Two inputs, or two outputs, and k = 8."""
    shapes = [(2, 16), (16, 2), (16, 16)]
    torch.manual_seed(0)
    a = [torch.randn(8, n) for _, n in shapes]
    b = [torch.randn(m, 8) for m, _ in shapes]
    searched = SearchState(torch.full((3, 8), 1 / 8), torch.full((3, 1), 1 / 8), a, b, torch.ones(3, 8))
    ranks = select_ranks(searched, rule, budget)
    assert ranks[0] <= 2 and ranks[1] <= 2 and min(ranks) >= 1
    if budget == "lora:3":  # 18 + 18 + 32 each: what the narrow ones cannot hold goes to the other
        assert sum(rank * cost for rank, cost in zip(ranks, (18, 18, 32))) > 3 * 68 - 32
    gates = SimpleNamespace(names=["0", "1", "2"])
    for name, (kept_a, kept_b) in strongest(gates, searched, ranks, rule).items():
        rank, (m, n) = ranks[int(name)], shapes[int(name)]
        assert kept_a.shape == (rank, n) and kept_b.shape == (m, rank)
    with pytest.raises(ValueError, match="asks for 408 adapter parameters, and rank 8 in every module has 328"):
        select_ranks(searched, rule, "lora:6")


@pytest.mark.parametrize("k, quiet", [(128, 1e-4), (8, 0.02)])
def test_adaptive_s_half_and_its_gap_do_not_depend_on_how_small_an_energy_is(k, quiet):
    """One module hardly matters: half of all components all the same. And a gap is the singular values' alone."""
    torch.manual_seed(0)
    alpha, energy = [[1 / k] * k] * 2, torch.tensor([1.0, quiet])
    searched = state(alpha, shape=(k, k))
    searched.energy = energy
    assert sum(select_ranks(searched, "adaptive", min_rank=0)) == k
    norms = [[0.1] * k, [9.0, 9.0] + [0.1] * (k - 2)]  # two definite components, where the energy is not
    searched = state(alpha, norms, shape=(k, k))
    searched.energy = energy
    assert select_ranks(searched, "adaptive", min_rank=0) == [0, 2]
    assert select_ranks(searched, "adaptive", f"{2 * 2 * k}", min_rank=0) == [0, 2]
