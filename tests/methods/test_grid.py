"""Is the best configuration of a grid found, within its budget, and no trial run twice?"""

import importlib.util
import json
import math
import os

import pytest

import run_glue
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.methods import grid, grid_space
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.scripts import job as jobs
from autolora_trainer.scripts.job import Job, make_trainer
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.methods import COST, PEFT_FILE, Trials, needs_optuna, prepared


def test_the_grid_is_16_pairs_and_a_budget_cuts_it():
    sizes = {"query": 10, "value": 10}
    assert len(grid_space.configurations(sizes, grid_space.LEVELS)) == grid.TRIALS == 16
    within = grid_space.configurations(sizes, grid_space.LEVELS, budget=80)
    assert all(sum(config.values()) <= 8 for config in within) and {"query": 4, "value": 4} in within


def test_a_grid_too_large_to_list_is_drawn():
    sizes = {f"projection{i}": 10 for i in range(12)}  # 4 ** 12 configurations
    drawn = grid_space.configurations(sizes, grid_space.LEVELS, budget=400, seed=1)
    assert drawn == grid_space.configurations(sizes, grid_space.LEVELS, budget=400, seed=1)
    assert dict.fromkeys(sizes, 1) in drawn and max(grid_space.parameters(config, sizes) for config in drawn) <= 400
    chosen = grid_space.some(drawn, 16, seed=1)
    assert len(chosen) == 16 and chosen != grid_space.some(drawn, 16, seed=2)


def test_groups_are_projections():
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(4) for p in "qv"]
    assert list(grid_space.groups(names)) == ["q_proj", "v_proj"] and len(grid_space.groups(names)["q_proj"]) == 4
    assert list(grid_space.groups([f"h.{i}.attn.c_attn#{p}" for i in range(2) for p in "qv"])) == [
        "c_attn#q",
        "c_attn#v",
    ]
    halves = grid_space.groups([f"h.{i}.attn.c_attn" for i in range(4)])
    assert [len(names) for names in halves.values()] == [2, 2]
    both = grid_space.groups(["encoder.0.dense", "encoder.0.mlp.dense"])
    assert list(both) == ["encoder.dense", "encoder.mlp.dense"]


@needs_optuna
@pytest.mark.parametrize("sampler", grid_space.SAMPLERS)
def test_a_grid_that_was_killed_does_not_run_a_finished_trial_again(place, tmp_path, monkeypatch, capsys, sampler):
    settings = {"method": "grid", "sampler": sampler, "grid_trials": 5, "initial_rank": 4, "max_steps": 2, "seed": 5}
    whole, first, second = Trials(), Trials(dies_after=3), Trials()
    monkeypatch.setattr(Job, "try_ranks", whole)
    run_glue.main(command(place, tmp_path / "whole", **settings))
    assert len(whole.ran) == len(set(whole.ran)) == 5
    monkeypatch.setattr(Job, "try_ranks", first)
    with pytest.raises(KeyboardInterrupt):
        run_glue.main(command(place, tmp_path / "part", **settings))
    monkeypatch.setattr(Job, "try_ranks", second)
    resumed = run_glue.main([*command(place, tmp_path / "part", **settings), "--resume_from_checkpoint"])
    assert first.ran + second.ran == whole.ran
    assert resumed["resumed_from"] == {"phase": "search", "step": 3}
    for name in ("ranks.json", PEFT_FILE):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    cost = json.loads((tmp_path / "part" / "cost.json").read_text())
    assert cost["search"]["passes"] == 50 and cost["search"]["examples"] == 200
    assert cost["total"]["passes"] == 52


@needs_optuna
def test_the_best_configuration_is_trained_on_all_rows(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Job, "try_ranks", trials := Trials())
    results = run_glue.main(command(place, tmp_path / "o", method="grid", max_steps=2))
    assert "different sizes, up to rank 8 everywhere, and so is the best" in caplog.text
    assert "Give --size, that of what it is compared with." in caplog.text
    ranks = LearnedRanks.load(tmp_path / "o" / "ranks.json")
    assert len(trials.ran) == 16 and ranks.rank_rule == "grid"
    assert [
        ranks.ranks[f"roberta.encoder.layer.{b}.attention.self.{n}"] for b in (0, 1) for n in ("query", "value")
    ] == [4, 2, 4, 2]
    assert results["adapter_params"] == 12 * COST and results["train_samples"] == 40


@needs_optuna
@pytest.mark.parametrize("sampler", grid_space.SAMPLERS)
def test_nothing_beyond_the_budget_is_tried(place, tmp_path, monkeypatch, caplog, sampler):
    monkeypatch.setattr(Job, "try_ranks", trials := Trials())
    settings = {"method": "grid", "sampler": sampler, "size": "lora:3", "initial_rank": 4, "max_steps": 1}
    results = run_glue.main(command(place, tmp_path / "o", **settings))
    assert "different sizes" not in caplog.text
    sizes = [2 * COST * sum(map(int, name.split("-"))) for name in trials.ran]
    assert max(sizes) <= 3 * 4 * COST and results["adapter_params"] in sizes
    assert len(trials.ran) == (8 if sampler == "grid" else 13)  # all that fit, as there are fewer than 16


@needs_optuna
def test_a_trial_is_trained_on_one_part_of_the_rows_and_scored_on_the_other(place, tmp_path, monkeypatch):
    seen = {}

    def spy(job, model, callbacks):
        seen["trainer"] = trainer = make_trainer(job, model, callbacks)
        evaluate = trainer.evaluate
        trainer.evaluate = lambda rows: evaluate(seen.setdefault("held_out", rows))
        return trainer

    monkeypatch.setattr(jobs, "make_trainer", spy)
    job = prepared(place, tmp_path / "o", method="grid", max_steps=2)
    ranks = dict.fromkeys(job.source.costs, 2)
    request = jobs.trial_request(job.request, str(tmp_path / "t"))
    result = jobs.train_trial(request, ranks)
    training = seen["trainer"].train_dataset
    sides = [{str(row["input_ids"]) for row in side} for side in (training, seen["held_out"])]
    assert len(training) == len(seen["held_out"]) == 20 and not sides[0] & sides[1] and result["cost"]["passes"] == 2
    both = sorted(str(row["input_ids"]) for row in [*training, *seen["held_out"]])
    assert both == sorted(str(row["input_ids"]) for row in job.rows.datasets["train"])
    assert {layer.r["default"] for layer in lora_layers(seen["trainer"].model).values()} == {2}
    assert 0 < result["loss"] < 2


@needs_optuna
def test_a_configuration_that_diverges_is_the_worst_and_ends_no_grid(place, tmp_path, monkeypatch):
    job = prepared(place, tmp_path / "o", method="grid", max_steps=20)

    def diverged(self, model, inputs, *args, **kwargs):
        return model(**inputs).loss * math.nan

    monkeypatch.setattr(FinalTrainer, "compute_loss", diverged)
    request = jobs.trial_request(job.request, str(tmp_path / "t"))
    ranks = dict.fromkeys(job.source.costs, 2)
    result = jobs.train_trial(request, ranks)
    assert result["loss"] is None and result["cost"]["passes"] == 10


@needs_optuna
def test_a_trial_is_a_process_of_its_own(place, tmp_path):
    job = prepared(place, tmp_path / "o", method="grid", max_steps=1)
    space = grid_space.Space.of(job.request.settings, job.source.costs)
    result = grid.evaluate(job, space, {"query": 1, "value": 2})
    assert result["cost"]["passes"] == 1 and 0 < result["loss"] < 2
    assert os.path.isfile(tmp_path / "o" / "grid" / "1-2" / "result.json")
    assert grid.evaluate(job, space, {"query": 1, "value": 2}) == result  # from its file


@needs_optuna
def test_the_reason_of_a_failed_trial_reaches_the_run(place, tmp_path, monkeypatch):
    def fails(job, ranks, folder):
        with open(os.path.join(folder, grid.ERROR), "w") as file:
            file.write("OutOfMemoryError: no room\n")
        return 1

    monkeypatch.setattr(Job, "try_ranks", fails)
    with pytest.raises(RuntimeError, match="The trial with query 1, value 1 failed: OutOfMemoryError: no room"):
        run_glue.main(command(place, tmp_path / "o", method="grid"))
    monkeypatch.setattr(Job, "try_ranks", lambda *args: -9)  # killed
    with pytest.raises(RuntimeError, match="failed: its process ended with status -9"):
        run_glue.main(command(place, tmp_path / "o", method="grid"))
    diverged = {"loss": math.inf, "cost": {"wall_seconds": 1, "passes": 1, "examples": 1, "peak_memory_mb": 1}}
    monkeypatch.setattr(grid, "evaluate", lambda *args: diverged)
    with pytest.raises(RuntimeError, match="all trainings diverged. Lower learning_rate"):
        run_glue.main(command(place, tmp_path / "o", method="grid", grid_trials=2))


def test_grid_without_optuna_says_what_to_install(place, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(UsageError, match=r'needs Optuna. Type pip install "\.\[grid\]"'):
        run_glue.main(command(place, tmp_path / "o", method="grid"))
