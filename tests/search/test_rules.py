"""Does every rule keep the components that follow from a search written by hand?"""

import pytest
import torch
from torch import nn

from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.ranks.curve import Curve, CurvePoint
from autolora_trainer.search.rules import by_threshold, capacities, filled, kept, ordered, spread, undecided
from autolora_trainer.search.selection import attach_gates
from tests.helpers.models import lora


class Layers(nn.Module):
    """Linear layers of given shapes (outputs, inputs), called 0, 1, …"""

    def __init__(self, *shapes):
        super().__init__()
        for index, (m, n) in enumerate(shapes):
            self.add_module(f"m{index}", nn.Linear(n, m, bias=False))


def parts_of(*shapes, k=4):
    model = lora(Layers(*shapes), k, [f"m{i}" for i in range(len(shapes))], task_type=None)
    return model, lora_parts(model)


def gates_with(alpha, *shapes):
    model, _ = parts_of(*shapes, k=len(alpha[0]))
    gates = attach_gates(model)
    gates.selection.copy_(torch.tensor(alpha))
    return gates


SQUARE = (6, 5)


def test_threshold_counts_as_the_paper_does():
    gates = gates_with([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]], SQUARE, SQUARE)
    assert by_threshold(gates).chosen == {"m0": [0, 1], "m1": [0]}
    assert by_threshold(gates, 0.5, min_rank=0).ranks == {"m0": 0, "m1": 1}
    assert by_threshold(gates, 0.5).chosen == {"m0": [0], "m1": [0]}  # min_rank 1


def test_softmax_selection_always_keeps_one_component():
    gates = gates_with([[0.125] * 8], (9, 9))
    for seed in range(100):
        torch.manual_seed(seed)
        gates.selection.copy_(torch.softmax(3 * torch.randn(1, 8), dim=-1))
        assert 1 <= by_threshold(gates, min_rank=0).ranks["m0"] <= 8


def test_threshold_with_a_size_takes_the_largest_alphas():
    gates = gates_with([[0.1, 0.2, 0.3, 0.4], [0.7, 0.15, 0.1, 0.05]], SQUARE, SQUARE)
    assert by_threshold(gates, size=33, min_rank=0).chosen == {"m0": [2, 3], "m1": [0]}
    assert by_threshold(gates, size="lora:1", min_rank=1).chosen == {"m0": [3], "m1": [0]}


def test_a_selection_that_is_no_number_stops_the_rule():
    gates = gates_with([[float("nan")] * 4] * 2, SQUARE, SQUARE)
    with pytest.raises(ValueError, match="rank rule 'threshold' met scores that are not finite"):
        by_threshold(gates)


def test_contributions_are_ordered_per_parameter_across_modules():
    _, parts = parts_of((6, 5), (20, 13))  # a component costs 11 and 33
    phi = {"m0": torch.tensor([1.0, 0.5, 0.2, -0.1]), "m1": torch.tensor([2.4, 1.8, 0.3, 0.0])}
    order = ordered(phi, parts, min_rank=0, max_lora_rank=None)
    assert order == [("m0", 0), ("m1", 0), ("m1", 1), ("m0", 1), ("m0", 2), ("m1", 2), ("m1", 3), ("m0", 3)]
    assert ordered(phi, parts, 0, 1) == [("m0", 0), ("m1", 0)]
    assert ordered(phi, parts, 1, 2)[:3] == [("m0", 0), ("m1", 0), ("m1", 1)]


def test_a_measured_order_need_not_keep_leading_components():
    _, parts = parts_of((6, 5), (6, 5))
    phi = {"m0": torch.tensor([-1.0, 0.5, 0.2, 0.1]), "m1": torch.tensor([0.4, 0.3, 0.0, 0.0])}
    order = ordered(phi, parts, 0, None)
    found = kept(phi, parts, order[:3])
    assert found.chosen == {"m0": [1], "m1": [0, 1]} and found.ranks == {"m0": 1, "m1": 2}
    assert found.contributions["m0"] == pytest.approx((-1.0, 0.5, 0.2, 0.1))


def test_no_module_gets_a_rank_that_its_matrix_cannot_have():
    _, parts = parts_of((2, 16), (16, 2), (16, 16), k=8)
    assert capacities(parts) == [2, 2, 8]
    phi = {name: torch.arange(8, 0, -1.0) for name in parts}
    found = kept(phi, parts, ordered(phi, parts, 0, None))
    assert found.ranks == {"m0": 2, "m1": 2, "m2": 8}
    gates = gates_with([[0.125] * 8] * 3, (2, 16), (16, 2), (16, 16))
    assert by_threshold(gates).ranks == {"m0": 2, "m1": 2, "m2": 8}


def test_a_size_is_filled_in_the_order():
    order, costs = [("b", 0), ("a", 0), ("b", 1), ("a", 1)], {"a": 10, "b": 30}
    within = {10: [1], 29: [1, 3], 39: [0], 40: [0, 1], 50: [0, 1, 3], 79: [0, 1, 2], 80: [0, 1, 2, 3]}
    for size, places in within.items():  # what no longer fits is passed over
        assert filled(order, costs, size) == [order[place] for place in places], size
    assert filled(order, costs, "lora:2") == order and filled(order, costs, "lora:1", min_rank=1) == order[:2]
    with pytest.raises(ValueError, match="size 90 asks for 90 adapter parameters, and all components .* have 80"):
        filled(order, costs, 90)
    with pytest.raises(ValueError, match="size 9 is 9 adapter parameters, and the least .* allows is 10. Raise size"):
        filled(order, costs, 9)
    with pytest.raises(ValueError, match="min_rank 1 allows is 40. Raise size or set min_rank 0"):
        filled(order, costs, 20, min_rank=1)


def test_beside_a_fresh_head_every_block_has_its_best_component_first():
    order = [("h.2.q", 0), ("h.2.v", 0), ("h.0.v", 1), ("h.2.q", 1), ("head", 0), ("h.0.q", 0), ("h.1.c_attn#q", 0)]
    assert spread(order) == [order[place] for place in (0, 2, 4, 6, 1, 3, 5)]
    assert filled(spread(order), {name: 10 for name, _ in order}, 50) == [order[place] for place in (0, 2, 4, 6, 1)]
    best_of_modules = [("h.1.q", 0), ("h.1.v", 0), ("h.0.q", 0)]  # min_rank 1: those stay before all others
    assert set(spread([*best_of_modules, ("h.1.q", 1)])[:3]) == set(best_of_modules)


def test_undecided_is_uniform_and_says_so():
    _, parts = parts_of((2, 16), (16, 16), (16, 16), k=8)
    phi, curve = {name: torch.zeros(8) for name in parts}, Curve((CurvePoint(0, 0, 1.0),), 0, False, 0.01)
    assert undecided(phi, parts, curve, None).ranks == {"m0": 2, "m1": 8, "m2": 8}
    found = undecided(phi, parts, curve, 4)
    assert found.chosen == {"m0": [0, 1], "m1": [0, 1, 2, 3], "m2": [0, 1, 2, 3]} and not found.curve.decided
