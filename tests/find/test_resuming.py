"""A search of ranks that is interrupted goes on to the same bits, or says why it cannot."""

import dataclasses
import json
import os

import pytest
import torch
from peft import LoraConfig

from autolora_trainer.find.rank_search import RankSearch
from autolora_trainer.search.trainer import AutoLoraMixin
from tests.helpers.models import tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.state import everything, same
from tests.helpers.trainings import short_training

LORA = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=8, lora_dropout=0.1)


def search(folder, output_dir="found", **changes):
    """Of 8 steps, with checkpoints after 2, 4 and 6; dropout makes its random numbers count."""
    torch.manual_seed(0)
    model = tiny_roberta(hidden_dropout_prob=0.1)
    args = short_training(folder / "training", learning_rate=3e-2)
    output_dir, lora = changes.pop("output_dir", output_dir), changes.pop("peft_config", LORA)
    settings = {"search_steps": 8, "size": "lora:1", "output_dir": output_dir and folder / output_dir, **changes}
    return RankSearch(model, rows(60), lora, args=args, **settings)


def interrupted(folder, monkeypatch, step=5, error=KeyboardInterrupt):
    """A search that stops in the middle of a step; the model is then as it was."""
    plain = AutoLoraMixin.training_step

    def training_step(self, *given, **more):
        if self.state.global_step == step:
            raise error
        return plain(self, *given, **more)

    begun = search(folder)
    before = everything(begun.model)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(AutoLoraMixin, "training_step", training_step)
        begun.run()
    assert same(before, everything(begun.model))


def test_it_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole = search(tmp_path, "whole").run()
    interrupted(tmp_path, monkeypatch)
    assert os.listdir(tmp_path / "found") == ["search"] and "checkpoint-4" in os.listdir(tmp_path / "found/search")
    torch.manual_seed(99)
    resumed = search(tmp_path).run(resume_from_checkpoint=True)
    assert resumed.config.rank_pattern == whole.config.rank_pattern and resumed.ranks == whole.ranks
    assert resumed.start.keys() == whole.start.keys()
    assert all(torch.equal(tensor, whole.start[name]) for name, tensor in resumed.start.items())
    assert [name for name in os.listdir(tmp_path / "found/search") if "checkpoint" in name] == []


def test_it_begins_anew_where_it_had_not_got_far(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch, step=1)
    assert search(tmp_path).run(resume_from_checkpoint=True).ranks == search(tmp_path, None).run().ranks


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"seed": 1}, "was begun with seed 42, and this one has 1"),
        ({"initial_rank": 4}, "was begun with initial_rank 8, and this one has 4"),
        (
            {"peft_config": dataclasses.replace(LORA, lora_alpha=99)},
            "was begun with lora_alpha .*, and this one has 99",
        ),
        ({"output_dir": "elsewhere"}, "holds no search to go on with"),
        ({"output_dir": None}, "resume_from_checkpoint needs the output_dir"),
    ],
)
def test_another_search_is_refused(tmp_path, monkeypatch, changes, says):
    interrupted(tmp_path, monkeypatch, step=3)
    with pytest.raises(ValueError, match=says):
        search(tmp_path, **dict(changes)).run(resume_from_checkpoint=True)


def test_other_rows_are_refused(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch, step=3)
    note = tmp_path / "found/search/search.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "train_dataset": "other"}))
    with pytest.raises(ValueError, match="was begun with train_dataset other"):
        search(tmp_path).run(resume_from_checkpoint=True)


def test_a_new_search_forgets_an_earlier_one_there(tmp_path, monkeypatch):
    """Interrupted before its first checkpoint, it does not go on from that of another seed."""
    interrupted(tmp_path, monkeypatch, step=5)
    other = search(tmp_path, seed=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutoLoraMixin, "training_step", lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        other.run()
    assert [name for name in os.listdir(tmp_path / "found/search") if "checkpoint" in name] == []


def test_the_same_seed_gives_the_same_ranks(tmp_path):
    first = search(tmp_path, None).run()
    torch.manual_seed(1)
    torch.rand(7)
    assert search(tmp_path, None).run().ranks == first.ranks
    assert search(tmp_path, None, seed=3).run().ranks != first.ranks
