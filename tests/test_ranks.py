"""Exact ranks from hand-written searches; ranks through JSON, `rank_pattern`, save and load."""

import json
import random
import re
import typing
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from autolora_trainer.fused import lora_layers
from autolora_trainer.gates import attach_gates
from autolora_trainer.ranks import LearnedRanks, ModuleRank, fingerprint, verify_ranks
from autolora_trainer.retrain import build_adapter, kept_components, load_kept_components
from autolora_trainer.rules import (
    RANK_RULES,
    SearchState,
    best_factors,
    fill_budget,
    keep_components,
    parse_budget,
    rank_from_selection,
    select_ranks,
    spectral_cut,
)
from tests.tiny import lora, tiny_roberta


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


def test_budget_is_met_within_one_component_and_monotone():
    """500 random scores and budgets, modules of unequal cost."""
    generator = random.Random(0)
    for _ in range(500):
        modules = generator.randint(1, 6)
        costs = [generator.choice([10, 10, 25, 40]) for _ in range(modules)]
        scores = torch.rand(modules, 4, generator=torch.Generator().manual_seed(generator.randint(0, 10**6)))
        min_rank = generator.randint(0, 1)
        least, most = (sum(costs) if min_rank else max(costs)), 4 * sum(costs)
        budget = generator.randint(least, most)
        ranks = fill_budget(scores, costs, budget, min_rank)
        spent = sum(r * c for r, c in zip(ranks, costs))
        assert all(min_rank <= r <= 4 for r in ranks)
        assert spent <= budget < spent + max(costs) or spent == most
        larger = fill_budget(scores, costs, min(most, budget + 17), min_rank)
        assert all(a <= b for a, b in zip(ranks, larger))
        if len(set(costs)) == 1 and budget % costs[0] == 0:
            assert spent == budget


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
    for name, (kept_a, kept_b) in keep_components(gates, searched, ranks, rule).items():
        rank, (m, n) = ranks[int(name)], shapes[int(name)]
        assert kept_a.shape == (rank, n) and kept_b.shape == (m, rank)
    with pytest.raises(ValueError, match="asks for 408 adapter parameters, and rank 8 in every module has 328"):
        select_ranks(searched, rule, "lora:6")


def test_a_best_approximation_of_a_rank_that_cannot_be_has_zeros():
    a, b = torch.randn(8, 16), torch.randn(2, 8)
    new_a, new_b = best_factors(b, a, 4)
    assert new_a.shape == (4, 16) and new_b.shape == (2, 4)
    torch.testing.assert_close(new_b @ new_a, b @ a)
    assert not new_a[2:].any() and not new_b[:, 2:].any()


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


def test_lora_r_budget_is_that_of_uniform_lora():
    assert parse_budget("lora:4", [10, 20]) == 120 and parse_budget("77", [10, 20]) == 77
    assert sum(fill_budget(torch.rand(6, 8), [11] * 6, "lora:3")) == 18


@pytest.mark.parametrize(
    "budget, message",
    [
        ("lora:9", "asks for 270 adapter parameters, and rank 8 in every module has 240"),
        ("12", "is 12 adapter parameters, and the least that min_rank 1 allows is 30"),
        ("many", "must be a number of adapter parameters or lora:R, got 'many'"),
        ("-4", "must be a number"),
        ("0", "must be a number"),
    ],
)
def test_impossible_budget_is_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        fill_budget(torch.rand(2, 8), [10, 20], budget)


# ---- the file


def learned(ranks, initial_rank=8):
    return LearnedRanks(
        {name: ModuleRank(r, (0.5, 0.5)) for name, r in ranks.items()},
        "org/base",
        "abc",
        initial_rank,
        "softmax",
        "strength",
    )


def test_readers_say_what_they_give():
    for read in (LearnedRanks.load, LearnedRanks.from_pretrained):
        assert typing.get_type_hints(read)["return"] is LearnedRanks


def test_json_round_trip_is_exact(tmp_path):
    ranks = learned({"a.0.query": 3, "a.0.value": 0})
    ranks.save(tmp_path / "ranks.json")
    document = json.loads((tmp_path / "ranks.json").read_text())
    assert LearnedRanks.load(tmp_path / "ranks.json") == ranks
    assert document["format_version"] == 1 and document["total_rank"] == 3
    assert document["modules"]["a.0.query"] == {"rank": 3, "selection": [0.5, 0.5]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not a ranks.json"),
        ("[]", "format_version must be 1, got 'list'"),
        ('{"format_version": 2}', "format_version must be 1, got 2"),
        ('{"format_version": 1, "modules": {}}', "at least one module name"),
        ('{"format_version": 1, "modules": {"../x": {"rank": 1}}}', "'../x' is not a module name"),
        ('{"format_version": 1, "modules": {"(a+)+": {"rank": 1}}}', "is not a module name"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1.5}}}', "must be an integer from 0 to 4096, got 1.5"),
        ('{"format_version": 1, "modules": {"q": {"rank": true}}}', "must be an integer"),
        ('{"format_version": 1, "modules": {"q": {"rank": 99999999}}}', "must be an integer from 0 to 4096"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1, "selection": [NaN]}}}', "NaN, which is no number"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1, "selection": [1e999]}}}', "must hold finite numbers"),
        ('{"format_version": 1, "modules": {"q": {"rank": 1}}, "initial_rank": 0}', "initial_rank must be an integer"),
        ("[" * 100_000, "is not a ranks.json"),
    ],
)
def test_malformed_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "ranks.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        LearnedRanks.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


# ---- the adapter


def twelve_layers():
    return tiny_roberta(num_hidden_layers=12)


def names(model, targets=("query", "value")):
    return [name for name, _ in model.named_modules() if name.endswith(targets)]


@pytest.mark.parametrize("scaling", ["constant", "paper"])
def test_ranks_survive_building_saving_and_loading(tmp_path, scaling):
    """24 of 24 modules, layers 1 and 11 apart, some of rank 0."""
    model = twelve_layers()
    generator = random.Random(1)
    ranks = learned({name: generator.randint(0, 8) for name in names(model)})
    adapted = build_adapter(model, ranks, LoraConfig(task_type="SEQ_CLS", lora_alpha=16), scaling)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(twelve_layers(), tmp_path)
    for built in (adapted, loaded):
        layers = lora_layers(built)
        assert {name: layer.r["default"] for name, layer in layers.items()} == {
            n: r for n, r in ranks.ranks.items() if r
        }
        for name, layer in layers.items():
            expected = 16 * 24 / ranks.total_rank if scaling == "constant" else 16 / ranks.ranks[name]
            assert layer.scaling["default"] == pytest.approx(expected)


def test_constant_scaling_holds_for_rslora():
    ranks = learned({"a.query": 2, "a.value": 8}, initial_rank=8)
    config = ranks.to_lora_config(lora_alpha=16, use_rslora=True)
    for key, rank in config.rank_pattern.items():
        assert config.alpha_pattern[key] / rank**0.5 == pytest.approx(16 / 5**0.5)  # 5: the mean rank


def test_servers_that_know_one_scale_compute_the_same():
    config = learned({"a.query": 2, "a.value": 5}).to_lora_config(lora_alpha=16)
    scale = 16 / 3.5  # of plain LoRA of the same size
    assert config.lora_alpha / config.r == pytest.approx(scale) and config.r == 5
    assert all(config.alpha_pattern[key] / r == pytest.approx(scale) for key, r in config.rank_pattern.items())


def test_uniform_ranks_have_the_scale_of_plain_lora():
    for rank in (1, 2, 8):
        config = learned({"a.query": rank, "a.value": rank}).to_lora_config(lora_alpha=16)
        assert config.lora_alpha / config.r == 16 / rank


def test_a_rank_that_was_not_built_stops_the_run():
    model = get_peft_model(twelve_layers(), LoraConfig(r=4, target_modules=["query", "value"]))
    ranks = learned({name: 4 for name in names(twelve_layers())})
    verify_ranks(model, ranks)
    wrong = learned({**ranks.ranks, names(twelve_layers())[3]: 5})
    with pytest.raises(
        ValueError, match="'roberta.encoder.layer.1.attention.self.value' should have rank 5, and .* gives it 4"
    ):
        verify_ranks(model, wrong)


def test_ranks_of_another_model_are_refused():
    with pytest.raises(
        ValueError,
        match="ranks.json names 24 modules, and the model lacks 20 of them; the first is 'roberta.encoder.layer.2",
    ):
        build_adapter(tiny_roberta(), learned({name: 4 for name in names(twelve_layers())}))


def test_all_ranks_zero_are_refused():
    with pytest.raises(ValueError, match="Every module has rank 0"):
        learned({"a.query": 0}).to_lora_config()


def test_fingerprint_tells_checkpoints_apart_and_ignores_precision():
    model = tiny_roberta()
    mark = fingerprint(model, names(model))
    assert mark == fingerprint(lora(model, 4), names(tiny_roberta()))
    assert fingerprint(tiny_roberta(), names(model)) != mark


@pytest.mark.parametrize("rule", list(RANK_RULES))
@pytest.mark.parametrize("scaling", ["constant", "paper"])
def test_kept_components_start_the_retrain_where_the_search_ended(tmp_path, rule, scaling):
    """With every component kept, the retrain's first output is the search's last."""
    base = tiny_roberta()
    searched = lora(base, rank=4).eval()
    gates = attach_gates(searched)
    with torch.no_grad():
        gates.logits.copy_(torch.randn(gates.logits.shape))
    gates.refresh()
    ids = torch.arange(3, 15).view(1, 12)
    expected = searched(ids).logits
    found = SearchState.of(gates, torch.zeros_like(gates.selection))
    save_file(kept_components(gates, found, [4] * len(gates.names), rule, searched), tmp_path / "kept.safetensors")
    gates.remove()
    fresh = build_adapter(
        searched.unload(),
        learned(dict.fromkeys(gates.names, 4), 4),
        LoraConfig(task_type="SEQ_CLS", lora_alpha=16),
        scaling,
    )
    load_kept_components(tmp_path / "kept.safetensors", fresh)
    torch.testing.assert_close(fresh.eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_kept_components_are_the_chosen_ones():
    gates = attach_gates(lora(tiny_roberta(), rank=4))
    found = SearchState.of(gates, torch.zeros_like(gates.selection))
    ranks = [2, 0, 1, 4]
    kept = keep_components(gates, found, ranks, "strength")
    assert list(kept) == [name for name, rank in zip(gates.names, ranks) if rank]
    row = 0
    best = found.strength()[row].argsort(descending=True)[:2].sort().values
    a, b = kept[gates.names[row]]
    torch.testing.assert_close(a, found.lora_A[row][best])
    torch.testing.assert_close(b, found.lora_B[row][:, best] * found.selection[row][best])
