"""Nothing of a search is lost at its last step: it is tried before the first one, or what was learned is kept."""

import os

import pytest
import torch
from transformers import Trainer

import run_glue
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError
from autolora_trainer.search.measure import MeasurementMixin
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.models import lora, tiny_checkpoint, tiny_roberta
from tests.helpers.rows import rows, sentences, write_rows
from tests.helpers.trainings import arguments, searcher, trained_state

SIZES = [
    ({"size": "huge"}, "size must be a number of adapter parameters or lora:R, got 'huge'"),
    ({"size": "lora:9"}, "size lora:9 asks for"),
    ({"size": "5"}, "size 5 is 5 adapter parameters, and the least that min_rank 0 allows is 32"),
    ({"size": "40", "min_rank": 1}, "the least that min_rank 1 allows is 128"),
    ({"size": "lora:4", "max_lora_rank": 2}, "size lora:4 asks for"),
    ({"rank_rule": "threshold", "size": "lora:9"}, "size lora:9 asks for"),
    ({"rank_rule": "threshold", "size": "40"}, "the least that min_rank 1 allows is 128"),
    ({"rank_rule": "threshold", "max_lora_rank": 2}, "max_lora_rank caps the ranks of contributions"),
]


@pytest.mark.parametrize("settings, reason", SIZES, ids=range(len(SIZES)))
def test_a_size_out_of_reach_is_refused_before_the_search(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=reason):
        searcher(tmp_path, **settings)


class Fails(AutoLoraTrainer):
    """Trains, and has no loss in evaluation mode."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not model.training:
            raise RuntimeError("no loss here")
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_what_is_measured_at_the_end_is_tried_before_the_first_step(tmp_path):
    trainer = Fails(lora(tiny_roberta()), arguments(tmp_path), train_dataset=rows())
    with pytest.raises(RuntimeError, match="no loss here"):
        trainer.train()
    assert trainer.state.global_step == 0 and not os.path.exists(tmp_path / "selection_history.csv")


def test_the_trial_leaves_no_trace(tmp_path, monkeypatch):
    """Also of a collator that draws, as that of masked language models."""

    def noisy(features):
        batch = {name: torch.tensor([row[name] for row in features]) for name in features[0]}
        batch["input_ids"] = torch.where(torch.rand(batch["input_ids"].shape) < 0.2, 4, batch["input_ids"])
        return batch

    short = {"hypergradient": "first_order", "max_steps": 4, "size": "lora:1"}
    tried = searcher(tmp_path, **short)
    tried.data_collator = noisy
    tried.train()
    monkeypatch.setattr(MeasurementMixin, "try_measuring", lambda self: None)
    untried = searcher(tmp_path, **short)
    untried.data_collator = noisy
    untried.train()
    assert all(torch.equal(value, trained_state(untried)[name]) for name, value in trained_state(tried).items())
    assert tried.measured_passes == untried.measured_passes and tried.learned_ranks == untried.learned_ranks


def failing_once(monkeypatch):
    """The first measurement fails, as where another program takes the memory."""
    measure, calls = MeasurementMixin.contributions, []

    def contributions(self, *args, **kwargs):
        calls.append(self.state.global_step)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(MeasurementMixin, "contributions", contributions)
    return calls


def test_a_search_that_cannot_be_measured_is_kept_and_measured_again(tmp_path, monkeypatch, caplog):
    short = {"hypergradient": "first_order", "max_steps": 4, "size": "lora:1"}
    whole = searcher(tmp_path / "whole", **short)
    whole.train()
    calls = failing_once(monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"):
        searcher(tmp_path / "part", save_strategy="steps", save_steps=500, **short).train()
    assert "the search is done, and measuring it has failed" in caplog.text and "checkpoint-4" in caplog.text
    resumed = searcher(tmp_path / "part", **short)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    assert resumed.learned_ranks == whole.learned_ranks and calls == [4, 4]


def test_a_run_goes_on_after_a_search_that_could_not_be_measured(place, tmp_path, monkeypatch):
    argv = command(place, tmp_path / "o", save_strategy="steps", size="lora:1", num_train_epochs=1)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        failing_once(patch)
        run_glue.main(argv)
    steps = []
    step = AutoLoraTrainer.training_step
    monkeypatch.setattr(AutoLoraTrainer, "training_step", lambda *args: steps.append(1) or step(*args))
    results = run_glue.main([*argv, "--resume_from_checkpoint"])
    assert results["resumed_from"]["phase"] == "search" and not steps


def test_a_card_that_cannot_be_written_is_a_warning(place, tmp_path, monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise ValueError("no template")

    monkeypatch.setattr("autolora_trainer.scripts.results.write_model_card", fails)
    results = run_glue.main(command(place, tmp_path, method="lora"))
    assert results["eval_accuracy"] >= 0 and (tmp_path / "all_results.json").is_file()
    assert "README.md was not written: no template" in caplog.text


def test_a_model_that_cannot_be_saved_is_found_before_a_long_search(place, tmp_path, monkeypatch):
    def fails(self, *args, **kwargs):
        raise RuntimeError("tensors share memory")

    monkeypatch.setattr(FinalTrainer, "_save", fails)
    with pytest.raises(UsageError, match="the retrain cannot take its first step: RuntimeError: tensors share memory"):
        run_glue.main(command(place, tmp_path / "o", search_max_steps=20))
    assert not (tmp_path / "o").exists()


def test_what_find_cannot_write_is_not_searched_again(tmp_path, monkeypatch, capsys):
    tiny_checkpoint(tmp_path / "encoder")
    data = write_rows(tmp_path / "rows.jsonl", [{k: row[k] for k in ("sentence", "label")} for row in sentences(40)])
    argv = ["find", str(tmp_path / "encoder"), data, "--output_dir", str(tmp_path / "found"), "--search_steps", "8"]
    argv += ["--size", "lora:1", "--initial_rank", "4"]

    def fails(*args, **kwargs):
        raise RuntimeError("no room")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no room"):
        patch.setattr("autolora_trainer.commands.find.save_findings", fails)
        cli.main(argv)
    assert "checkpoint-8" in os.listdir(tmp_path / "found" / "search")
    steps, step = [], Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda *args: steps.append(1) or step(*args))
    cli.main([*argv, "--resume_from_checkpoint"])
    assert not steps and (tmp_path / "found" / "ranks.json").is_file()
    assert not [name for name in os.listdir(tmp_path / "found" / "search") if name.startswith("checkpoint")]
