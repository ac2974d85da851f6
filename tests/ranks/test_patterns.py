"""Have uniform, random and linear ranks the size that is asked for?"""

import pytest

from autolora_trainer.ranks import budget
from autolora_trainer.ranks.budget import random_ranks, uniform_ranks
from tests.helpers.methods import COST

MODULES = {f"layer.{block}.{name}": COST for block in range(12) for name in ("query", "value")}


@pytest.mark.parametrize("total", [24, 25, 47, 96, 97, 192])
def test_patterns_have_the_asked_size(total):
    size = total * COST
    patterns = {
        "uniform": uniform_ranks(MODULES, size),
        "random": random_ranks(MODULES, size, capacity=8, min_rank=1, seed=0),
        "linear": budget.linear_ranks(MODULES, size),
    }
    assert {name: sum(ranks.values()) for name, ranks in patterns.items()} == dict.fromkeys(patterns, total)
    assert all(min(ranks.values()) >= 1 for ranks in patterns.values())
    by_block = [[patterns["linear"][f"layer.{b}.{name}"] for b in range(12)] for name in ("query", "value")]
    assert all(ranks == sorted(ranks) for ranks in by_block)


def test_linear_ranks_go_from_half_to_one_and_a_half_times_the_mean():
    ranks = budget.linear_ranks(MODULES, 24 * 8 * COST)
    assert [ranks[f"layer.{block}.query"] for block in (0, 11)] == [4, 12]
    assert budget.linear_ranks({"0.q": 10, "1.q": 30}, 70) == {"0.q": 1, "1.q": 2}  # unequal shapes: within the size
    assert budget.linear_ranks({"0.q": 10, "1.q": 10, "2.q": 10}, 20, min_rank=0) == {"0.q": 0, "1.q": 1, "2.q": 1}


def test_uniform_ranks_spread_what_is_left():
    assert uniform_ranks(dict.fromkeys("abcd", 10), 160) == dict.fromkeys("abcd", 4)
    assert sum(uniform_ranks(dict.fromkeys("abcdefg", 10), 390).values()) == 39
    assert uniform_ranks({"a": 10, "b": 30}, 70) in ({"a": 4, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1})
