"""Do logs, history and ranks of a search say what it did?"""

import csv

import pytest
import torch

from autolora_trainer import RankSelectionCallback
from autolora_trainer.search.measure import shared_ranks
from tests.helpers.trainings import Watch, searcher


def test_logs_carry_the_phase(tmp_path):
    trainer = searcher(tmp_path, rank_rule="threshold")
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "search_total_rank" in entry]
    assert len(logged) == 3
    names = "train_loss val_loss total_rank selection_entropy hypergradient_norm implicit_ratio grad_norm".split()
    for entry in logged:
        assert {f"search_{name}" for name in names} <= entry.keys() and "loss" not in entry
        assert all(torch.isfinite(torch.tensor(float(value))) for value in entry.values())
    assert all("train_loss" not in entry for entry in trainer.state.log_history)


def test_history_holds_step_module_and_alpha(tmp_path):
    trainer = searcher(tmp_path)
    trainer.train()
    with open(tmp_path / "selection_history.csv", newline="") as file:
        header, *body = list(csv.reader(file))
    assert header == ["step", "module", "alpha_1", "alpha_2", "alpha_3", "alpha_4"]
    assert sorted({int(row[0]) for row in body}) == [0, 2, 4, 6, 8, 10, 12] and len(body) == 7 * 4
    assert [float(a) for a in body[-1][2:]] == pytest.approx(trainer.gates.selection[-1].tolist())


def test_two_looks_share_what_both_have_chosen():
    assert shared_ranks({"q": 3, "v": 1}, {"q": 2, "v": 6}) == 0.75
    assert shared_ranks({"q": 3}, {}) == 0 and shared_ranks({}, {"q": 1}) == 0


def test_callbacks_may_be_classes_as_in_trainer(tmp_path):
    trainer = searcher(tmp_path, callbacks=[RankSelectionCallback, Watch], max_steps=2)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(RankSelectionCallback) == 1 and Watch in kinds
    trainer.train()
    assert trainer.learned_ranks is trainer.rank_selection.learned_ranks


def test_callback_names_the_base_model(tmp_path):
    trainer = searcher(tmp_path, callbacks=[RankSelectionCallback(base_model="org/model")])
    trainer.train()
    assert trainer.learned_ranks.base_model == "org/model"
