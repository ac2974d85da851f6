"""Does D_val stay apart from D_tr, and is every row drawn before any is drawn twice?"""

from collections import Counter

import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset

from autolora_trainer.heldout.split import EndlessBatches, split_train

DATA = Dataset.from_dict({"row": list(range(101))})


def test_splits_are_disjoint_complete_and_in_the_ratio_asked():
    train, val = split_train(DATA, 0.25, seed=3)
    assert len(val) == 25 and len(train) == 76
    assert sorted([*train["row"], *val["row"]]) == list(range(101))
    assert list(train["row"]) == sorted(train["row"])


def test_same_seed_same_split_whatever_was_drawn_before():
    first = split_train(DATA, 0.5, seed=1)
    torch.rand(10)
    again = split_train(DATA, 0.5, seed=1)
    other = split_train(DATA, 0.5, seed=2)
    assert list(first[1]["row"]) == list(again[1]["row"]) != list(other[1]["row"])


def test_any_dataset_with_a_length_can_be_split():
    train, val = split_train([10, 11, 12, 13], 0.5, seed=0)
    assert sorted([*train, *val]) == [10, 11, 12, 13]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_empty_split_is_refused(fraction):
    with pytest.raises(ValueError, match=f"val_fraction={fraction} of 101 training rows leaves .* both need examples"):
        split_train(DATA, fraction)


def draw(batches, count):
    return [[row["row"] for row in next(batches)] for _ in range(count)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(9))


@pytest.mark.parametrize("stream", [Stream(), Dataset.from_dict({"a": [1, 2]}).to_iterable_dataset()])
def test_a_stream_is_refused(stream):
    sentence = rf"a stream \({type(stream).__name__}\) cannot be. Give a dataset with a length, .* as val_dataset.$"
    with pytest.raises(ValueError, match=sentence):
        split_train(stream)


def test_every_row_once_before_any_row_twice():
    batches = EndlessBatches(DATA, 8, list, seed=0)
    rows = [row for batch in draw(batches, 26) for row in batch]
    assert Counter(rows[:101]) == Counter(range(101))
    assert rows[:101] != rows[101:202] and len(rows) == 208


def test_position_is_the_whole_state():
    batches = EndlessBatches(DATA, 8, list, seed=0)
    draw(batches, 17)
    resumed = EndlessBatches(DATA, 8, list, seed=0)
    resumed.position = batches.position
    assert draw(batches, 5) == draw(resumed, 5)


def test_processes_share_the_global_batch():
    single = draw(EndlessBatches(DATA, 8, list, seed=0), 20)
    parts = [draw(EndlessBatches(DATA, 4, list, seed=0, process_index=i, num_processes=2), 20) for i in range(2)]
    assert single == [a + b for a, b in zip(*parts)]


def test_global_generators_are_left_alone():
    state = torch.get_rng_state()
    draw(EndlessBatches(DATA, 8, list, seed=0), 20)
    assert torch.equal(state, torch.get_rng_state())


def test_a_group_stays_together():
    groups = ["a", "b", "a", "c", "c", "d", "a", "b"]
    train, val = split_train(list(range(8)), 0.5, seed=0, groups=groups)
    sides = [{groups[row] for row in side} for side in (train, val)]
    assert sorted([*train, *val]) == list(range(8)) and not sides[0] & sides[1] and all(sides)
    alone = split_train(list(range(8)), 0.5, seed=0)
    same = split_train(list(range(8)), 0.5, seed=0, groups=range(8))
    assert [list(side) for side in alone] == [list(side) for side in same]
    with pytest.raises(ValueError, match="leaves 0 for D_tr and 8 for D_val, .* Give more different inputs"):
        split_train(list(range(8)), 0.5, groups="aaaaaaaa")
