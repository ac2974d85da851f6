"""Is a budget met within one component, and an impossible one refused?"""

import random

import pytest
import torch

from autolora_trainer.ranks.budget import fill_budget, parse_budget


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
