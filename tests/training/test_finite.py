"""NaN and infinity in loss, gradient, hypergradient, weights and α: nothing of such a step is applied or written."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.utils.data import SequentialSampler

import run_glue
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.errors import NonFiniteError, run_guarded
from autolora_trainer.training.finite import STEPS_IN_A_ROW, check_weights
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.faults import spoil
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import searcher, short_training, trained_state

BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


class _Sequential(FinalTrainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def retrainer(folder, data=None, **changes):
    torch.manual_seed(0)
    arguments = short_training(folder, max_steps=4, lr_scheduler_type="constant", **changes)
    return _Sequential(lora(tiny_roberta()), arguments, train_dataset=rows(32) if data is None else data)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_step_is_one_that_never_was(tmp_path, caplog, what, value):
    """Batches 1, 2 (spoilt), 3, 4 end in the same bits as batches 1, 3, 4: weights and moments."""
    data = rows(32)
    spoilt = retrainer(tmp_path, data)
    spoil(spoilt, what, {2}, value)
    spoilt.train()
    assert f"step 2: the {what} is not finite; the step is skipped" in caplog.text
    clean = retrainer(tmp_path, data.select([*range(8), *range(16, 32)]))
    clean.args.max_steps = 3
    clean.train()
    for (name, p), q in zip(spoilt.model.named_parameters(), clean.model.parameters()):
        assert torch.equal(p, q), name
        assert torch.isfinite(p).all()


@pytest.mark.parametrize("what", ["loss", "gradient", "hypergradient"])
def test_stop_names_the_step_and_keeps_what_was_saved(tmp_path, what):
    trainer = searcher(tmp_path, non_finite="stop", save_strategy="steps", save_steps=1)
    spoil(trainer, what, {5})
    with pytest.raises(NonFiniteError, match=f"^step 5 of 12: the {what} is not finite. .*--non_finite skip.$"):
        trainer.train()
    assert trainer.learned_ranks is None
    assert max(n for n in os.listdir(tmp_path) if n.startswith("checkpoint")) == "checkpoint-4"
    whole = searcher(tmp_path / "whole")
    whole.train()
    again = searcher(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.learned_ranks == whole.learned_ranks


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_hypergradient_costs_its_selection_step_alone(tmp_path, caplog, value):
    """α and its moments stand still at that step; the weights go on."""
    seen = []
    trainer = searcher(tmp_path, max_steps=8)
    spoil(trainer, "hypergradient", {5}, value)
    select = trainer._step_selection

    def watch(result):
        select(result)
        moments = trainer.selection_optimizer.state[trainer.gates.logits]
        state = (trainer.gates.logits, moments["exp_avg"], moments["exp_avg_sq"])
        weight = next(p for n, p in trainer.model.named_parameters() if "lora_A" in n)
        seen.append(([tensor.detach().clone() for tensor in state], weight.detach().clone()))

    trainer._step_selection = watch
    trainer.train()
    assert "step 5: the hypergradient is not finite; its selection step is skipped" in caplog.text
    states, weights = zip(*seen)  # of the selection steps 1, 3, 5 (spoilt), 7
    assert all(torch.equal(a, b) for a, b in zip(states[1], states[2]))
    assert not any(torch.equal(a, b) for a, b in zip(states[2], states[3]))
    assert not torch.equal(weights[2], weights[3])
    assert all(torch.isfinite(value).all() for value in trained_state(trainer).values())


def test_bad_steps_without_end_stop_the_run(tmp_path, caplog):
    trainer = searcher(tmp_path, max_steps=STEPS_IN_A_ROW + 5)
    start = trained_state(trainer)
    spoil(trainer, "gradient", range(1, 100))
    with pytest.raises(NonFiniteError, match=f"gradient was not finite for {STEPS_IN_A_ROW} steps in a row"):
        trainer.train()
    for name, value in trained_state(trainer).items():
        if name != "logits":
            assert torch.equal(value, start[name]), name


def test_bad_selection_steps_without_end_stop_the_search(tmp_path, caplog):
    """With good weight steps between them."""
    trainer = searcher(tmp_path, max_steps=4 * STEPS_IN_A_ROW)
    spoil(trainer, "hypergradient", {*range(1, 18), *range(21, 100)})  # the selection step at 19 is good
    sentence = f"^step 39 of 40: the hypergradient was not finite for {STEPS_IN_A_ROW} selection steps in a row"
    with pytest.raises(NonFiniteError, match=sentence):
        trainer.train()
    assert trainer._dropped_in_a_row == 0


def test_a_bad_hypergradient_ends_a_row_of_dropped_steps(tmp_path):
    """Its weight step is a good one."""
    trainer = searcher(tmp_path, max_steps=STEPS_IN_A_ROW + 4)
    spoil(trainer, "gradient", set(range(1, 100)) - {5})
    spoil(trainer, "hypergradient", {5})
    trainer.train()
    assert trainer.state.global_step == STEPS_IN_A_ROW + 4
    assert trainer._dropped_in_a_row == STEPS_IN_A_ROW - 1


def test_a_training_in_which_no_step_is_good_has_no_result(tmp_path, caplog):
    trainer = retrainer(tmp_path)
    spoil(trainer, "loss", range(1, 100))
    with pytest.raises(NonFiniteError, match="^step 4 of 4: the loss was not finite, in this step and all before"):
        trainer.train()


def test_logs_and_means_hold_numbers_alone(tmp_path, caplog):
    """The loss of a step that has none counts as that of the one before; the norm of its gradient is left out."""
    trainer = retrainer(tmp_path, logging_steps=1, logging_nan_inf_filter=False)
    spoil(trainer, "loss", {1, 3})
    loss = trainer.train().training_loss
    logs = [{k: v for k, v in log.items() if k in ("loss", "grad_norm")} for log in trainer.state.log_history[:-1]]
    assert [sorted(log) for log in logs] == [[], ["grad_norm", "loss"], ["loss"], ["grad_norm", "loss"]]
    assert logs[2]["loss"] == logs[1]["loss"] and math.isfinite(loss)
    trainer.save_state()
    assert "NaN" not in (tmp_path / "trainer_state.json").read_text()


def test_under_a_loss_scaler_losses_alone_are_judged(tmp_path, monkeypatch, caplog):
    """It drops steps for their gradients by itself, and wants to see them."""
    trainer = retrainer(tmp_path)
    monkeypatch.setattr(trainer.accelerator, "scaler", object())
    trainer.state.max_steps = 100
    for name, loss, dropped in (("gradient", 1.0, 0), ("loss", math.nan, 1)):
        for parameter in trainer.model.parameters():
            parameter.grad = torch.full_like(parameter, math.inf)
        trainer._window_loss = torch.tensor(loss)
        trainer._get_grad_norm(trainer.model)
        assert trainer._dropped == dropped, name
        assert all(p.grad is not None for p in trainer.model.parameters())


@pytest.mark.parametrize("kind", ["weight", "selection"])
def test_no_checkpoint_and_no_ranks_hold_such_a_number(tmp_path, kind):
    trainer = searcher(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    original = trainer._save_checkpoint

    def save(*args):
        if trainer.state.global_step == 4:
            target = next(p for p in trainer.model.parameters() if p.requires_grad)
            (target.data if kind == "weight" else trainer.gates.selection).view(-1)[0] = float("inf")
        original(*args)

    trainer._save_checkpoint = save
    with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
        trainer.train()
    assert [n for n in os.listdir(tmp_path) if n.startswith("checkpoint")] == ["checkpoint-2"]
    assert trainer.learned_ranks is None


def test_what_was_saved_with_such_a_number_is_not_evaluated(tmp_path):
    """Of query alone: attention without a mask would make a number of it."""
    base, adapter = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    model = torch.nn.ModuleDict({"base": base, "adapter": adapter})
    with torch.no_grad():
        base.weight[0, 0] = torch.nan
    check_weights(model, "o", base.parameters())
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            adapter.bias[1] = value
        with pytest.raises(NonFiniteError, match="^adapter.bias in o holds NaN or infinity. Train it again"):
            check_weights(model, "o", base.parameters())


def test_nan_selection_ends_without_ranks(tmp_path):
    trainer = searcher(tmp_path, max_steps=4)
    original = trainer.rank_selection.on_train_end

    def on_train_end(*args, **kwargs):
        trainer.gates.selection[0, 0] = float("nan")
        return original(*args, **kwargs)

    trainer.rank_selection.on_train_end = on_train_end
    with pytest.raises(NonFiniteError, match="the selection holds NaN or infinity"):
        trainer.train()
    assert trainer.learned_ranks is None


@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_script_stops_in_one_line_with_status_1(place, tmp_path, monkeypatch, capsys, phase):
    cls = AutoLoraTrainer if phase == "search" else FinalTrainer
    original = cls.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if type(self) is cls and self.state.global_step == 2 else loss

    monkeypatch.setattr(cls, "compute_loss", compute_loss)
    argv = command(place, tmp_path / "o", non_finite="stop", save_strategy="steps", save_steps=1)
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("run_glue.py: error: NonFiniteError: step 3 of ") and "the loss is not finite" in line
    assert os.path.exists(tmp_path / "o" / "ranks.json") == (phase == "retrain")
    assert not os.path.exists(tmp_path / "o" / "all_results.json")
    monkeypatch.undo()
    results = run_glue.main([*argv, "--resume_from_checkpoint"])
    assert results["resumed_from"] == {"phase": phase, "step": 2}


def test_a_norm_in_shards_is_judged_as_a_whole(tmp_path, monkeypatch):
    """FSDP2 gives a DTensor, which takes no part in a plain all_reduce."""
    trainer = retrainer(tmp_path)
    whole = SimpleNamespace(full_tensor=lambda: torch.tensor(2.0))
    judged = []
    monkeypatch.setattr(transformers.Trainer, "_get_grad_norm", lambda *args, **kwargs: whole)
    monkeypatch.setattr(type(trainer), "_judge_step", lambda self, model, norm: judged.append(norm))
    assert trainer._get_grad_norm(trainer.model) is whole and judged == [torch.tensor(2.0)]
