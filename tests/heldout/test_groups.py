"""Are rows that share what a model reads on one side, whatever holds them, and is it said?"""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import TensorDataset

from autolora_trainer import AutoLoraTrainer, compress
from autolora_trainer.heldout.groups import grouped, input_links
from autolora_trainer.heldout.split import split_rows, split_train
from tests.helpers.methods import collate
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import LORA, arguments, short_training


def classes(count=32, copies=1):
    """`count` different rows, each so many times, and labels that are coins."""
    made = rows(count).remove_columns("labels").to_list() * copies
    return Dataset.from_list(
        [{**row, "labels": random.Random(i).randrange(2), "idx": i} for i, row in enumerate(made)]
    )


class Encodings(torch.utils.data.Dataset):
    """As tutorials have it; every access draws a random number."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, row):
        torch.rand(1), np.random.rand(), random.random()
        return {name: torch.tensor(value) for name, value in self.table[row].items() if name != "idx"}


def sides(search):
    return [{str(np.asarray(row["input_ids"])) for row in part} for part in
            (search.train_dataset, search.order_dataset, search.size_dataset)]  # fmt: skip


@pytest.mark.parametrize("held", [lambda table: table, list, Encodings], ids=["table", "list", "own"])
def test_copies_are_on_one_side_of_the_search(tmp_path, caplog, held):
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    data = held(classes(count=16, copies=4))
    assert len(input_links(data)) == 64 and torch.rand(1) == drawn
    search = AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), train_dataset=data, peft_config=LORA)
    parts = sides(search)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 16 and len(search.train_dataset) == 32
    assert "64 of 64 rows share an input with others" in caplog.text


def test_rows_that_differ_are_split_as_ever_and_nothing_is_said(tmp_path, caplog):
    data = classes()
    search = AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), train_dataset=data, peft_config=LORA)
    train, val = split_train(data, search.args.val_fraction, search.args.seed)
    assert search.train_dataset.to_list() == train.to_list() and search.val_dataset.to_list() == val.to_list()
    assert not [record for record in caplog.records if record.name == "autolora_trainer"]


PROMPT = [5, 6, 7]
SHARED = {
    "answers to one prompt": [
        {"input_ids": [*PROMPT, 8], "labels": [-100, -100, -100, 8]},
        {"input_ids": [*PROMPT, 9, 4], "labels": [-100, -100, -100, 9, 4]},
    ],
    "completions as TRL marks them": [
        {"input_ids": [*PROMPT, 8], "completion_mask": [0, 0, 0, 1]},
        {"input_ids": [*PROMPT, 9], "completion_mask": [0, 0, 0, 1]},
    ],
    "preferences": [
        {"prompt_ids": PROMPT, "chosen_ids": [8], "rejected_ids": [9]},
        {"prompt_ids": PROMPT, "chosen_ids": [7], "rejected_ids": [4]},
    ],
    "rewards": [
        {"chosen_input_ids": [5, 6], "rejected_input_ids": [8]},
        {"chosen_input_ids": [7], "rejected_input_ids": [5, 6]},
    ],
    "windows": [
        {"input_ids": [5, 6], "overflow_to_sample_mapping": 0},
        {"input_ids": [6, 7], "overflow_to_sample_mapping": 0},
    ],
    "packed": [
        {"input_ids": [*PROMPT, 8, 9], "seq_lengths": [3, 2]},
        {"input_ids": [4, *PROMPT], "seq_lengths": [1, 3]},
    ],
    "sources with other targets": [
        {"input_ids": PROMPT, "labels": [8, 9, 4]},
        {"input_ids": PROMPT, "labels": [4, 4, 4]},
    ],
    "answers to one question": [
        {"input_ids": PROMPT, "start_positions": 1, "end_positions": 2},
        {"input_ids": PROMPT, "start_positions": 0, "end_positions": 0},
    ],
}
APART = {
    "tags of words": [
        {"input_ids": [1, 5, 6, 2], "labels": [-100, 1, -100, -100]},
        {"input_ids": [1, 7, 6, 2], "labels": [-100, 1, -100, -100]},
    ],
    "texts that are learned whole": [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7, 6], "labels": [7, 6]}],
    "pictures": [{"pixel_values": [[0.5, 1.0]]}, {"pixel_values": [[0.5, 1.5]]}],
}


@pytest.mark.parametrize("pair", [*SHARED, *APART])
@pytest.mark.parametrize("held", [Dataset.from_list, list])
def test_what_rows_share(pair, held):
    first, second = input_links(held([*(SHARED | APART)[pair]]))
    assert bool(set(first) & set(second)) == (pair in SHARED)


def test_pairs_that_share_a_text_are_linked_in_chains_and_what_links_all_is_left_out():
    links = [("ab", "a", "b"), ("cb", "c", "b"), ("cd", "c", "d"), *((f"x{i}", f"x{i}", f"y{i}") for i in range(5))]
    assert grouped(links)[0] == [0, 0, 0, 3, 4, 5, 6, 7]
    assert grouped(links)[1] == (
        "3 of 8 rows share an input with others: such rows stay together, on one side of every split"
    )
    hub = [(f"{i // 2}", f"{i // 2}", "yes") for i in range(8)]
    groups, said = grouped(hub)
    assert groups == [0, 0, 2, 2, 4, 4, 6, 6] and said.endswith(
        "more than half of all rows, and is left out of account"
    )
    groups, said = grouped([("a",)] * 4)
    assert groups == [0, 1, 2, 3] and said.startswith(
        "all 4 training rows have the same input: what those of D_val say"
    )


def test_a_large_group_is_trained_on():
    groups = [0] * 60 + list(range(1, 41))
    for seed in range(5):
        train, val = split_rows(range(100), 0.2, seed, groups)
        assert set(range(60)) <= set(train) and len(val) == 20
    train, val = split_rows(range(10), 0.1, 0, [0] * 6 + [1] * 4)  # none fits: the smaller one
    assert val == [6, 7, 8, 9]


def test_rows_given_apart_are_compared(tmp_path, caplog):
    data = classes()
    AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), train_dataset=data.select(range(20)), peft_config=LORA,
                    val_dataset=data.select(range(16, 32)))  # fmt: skip
    assert "4 of 16 rows of val_dataset have inputs that train_dataset has too: what they say is memory" in caplog.text


def test_rows_that_judge_and_rows_that_heal_are_compared(tmp_path, caplog):
    data, args = classes(), short_training(tmp_path)
    settings = {"args": args, "data_collator": collate, "size": "lora:1"}
    compress(lora(tiny_roberta()), data, train_dataset=data.select(range(4)), heal_steps=1, **settings)
    assert "4 of 32 rows of eval_dataset have inputs that train_dataset has too" in caplog.text


def test_what_cannot_be_known_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("autolora_trainer.heldout.groups.MOST_ROWS", 31)
    data = Encodings(classes())
    AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), train_dataset=data, peft_config=LORA)
    assert "rows of Encodings are not compared: where some are equal" in caplog.text
    caplog.clear()

    class Own(AutoLoraTrainer):
        def get_train_dataloader(self):
            return super().get_train_dataloader()

    Own(tiny_roberta(), arguments(tmp_path), train_dataset=classes(), peft_config=LORA)
    assert "Own has a get_train_dataloader of its own: it has to read self.train_dataset, which is D_tr" in caplog.text


def test_rows_that_are_no_mappings_are_compared_whole():
    table = TensorDataset(torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([0, 0, 0]))
    first, second, third = input_links(table)
    assert first == third != second
