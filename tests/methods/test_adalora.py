"""AdaLoRA: its budget is really allocated, and a run that stops goes on as if it had not."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)

import run_glue
from autolora_trainer.errors import NonFiniteError, UsageError
from autolora_trainer.methods import adalora, adalora_trainer
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.faults import spoil
from tests.helpers.measures import accuracy
from tests.helpers.models import tiny_roberta
from tests.helpers.rows import rows

MODULES = 4  # query and value of two blocks


def adalora_command(place, output, **changes):
    return command(place, output, method="adalora", lora_r=2, **changes)


@pytest.fixture(scope="module")
def finished(place):
    """One whole run of 20 steps with a checkpoint at every fourth: (output_dir, results)."""
    output = place / "whole"
    argv = adalora_command(place, output, save_strategy="steps", save_steps=4)
    return output, run_glue.main(argv)


def trained(arguments, steps=12, **config):
    """A tiny RoBERTa after a training with AdaLoRA from 3 to 2 singular values: the trainer."""
    lora_config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=4, lora_dropout=0.0)
    settings = {**adalora.schedule(steps), **config}
    model = get_peft_model(tiny_roberta(), adalora.adalora_config(lora_config, 2, **settings))
    args = TrainingArguments(use_cpu=True, save_strategy="no", learning_rate=1e-2, **arguments)
    return adalora_trainer.AdaLoraTrainer(model=model, args=args, train_dataset=rows())


# ---- the budget


def test_a_run_ends_with_the_singular_values_of_its_budget(finished):
    output, results = finished
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["peft_type"] == "ADALORA" and (config["init_r"], config["target_r"]) == (3, 2)
    assert {len(kept) for kept in config["rank_pattern"].values()} == {3}
    assert sum(sum(kept) for kept in config["rank_pattern"].values()) == 2 * MODULES
    tensors = load_file(output / "adapter_model.safetensors")
    values = torch.cat([tensor.flatten() for name, tensor in tensors.items() if "lora_E" in name])
    assert len(values) == 2 * MODULES and (values != 0).all()
    assert results["adapter_params"] == sum(t.numel() for n, t in tensors.items() if "lora_" in n)
    assert results["adapter_params"] == 2 * MODULES * (16 + 16 + 1)


def test_ranks_differ_between_modules_and_the_budget_falls_on_the_way(tmp_path):
    budgets = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            budgets.append(sum(adalora_trainer.kept_ranks(model).values()))

    trainer = trained({"output_dir": tmp_path, "max_steps": 40}, steps=40)
    trainer.add_callback(Watch())
    trainer.train()
    assert budgets[:6] == [12] * 6 and budgets[-20:] == [8] * 20  # free, and fine-tuning of what is left
    assert budgets == sorted(budgets, reverse=True) and set(budgets) >= {12, 11, 10, 9, 8}
    assert trainer.allocation.calls == 40
    assert len(set(adalora_trainer.kept_ranks(trainer.model).values())) > 1


def test_singular_values_are_trained_and_there_are_none_in_lora(tmp_path):
    trainer = trained({"output_dir": tmp_path, "max_steps": 12})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert sum("lora_E" in name for name in before) == MODULES
    assert not any(before[name].any() for name in before if "lora_E" in name)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if name in before:
            assert not torch.equal(parameter, before[name]), f"Parameter {name} has not changed"
    lora = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=2))
    assert lora.peft_config["default"].peft_type == "LORA" and not any(
        "lora_E" in name for name, _ in lora.named_parameters()
    )


def test_rank_budget_is_an_average_rank():
    costs = [32] * MODULES
    for budget, rank in ((None, 4), ("lora:3", 3), ("400", 3)):
        assert adalora.target_rank(SimpleNamespace(size=budget, rank=4), costs) == rank
    with pytest.raises(ValueError, match="size 100 is 100 adapter parameters, and rank 1 in every module has"):
        adalora.target_rank(SimpleNamespace(size="100", rank=4), costs)


def test_a_training_that_never_allocates_fails_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(adalora_trainer.AllocationCallback, "on_optimizer_step", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match="ended after 12 steps without having allocated its budget"):
        trained({"output_dir": tmp_path, "max_steps": 12}).train()


def test_a_schedule_for_another_number_of_steps_fails_before_the_first(tmp_path):
    with pytest.raises(RuntimeError, match="schedule is for 20 steps, and the training has 12"):
        trained({"output_dir": tmp_path, "max_steps": 12}, steps=20).train()


# ---- the schedule


@pytest.mark.parametrize("total", [3, 4, 5, 7, 10, 100, 12345])
def test_every_schedule_leaves_a_budgeting_phase(total):
    phases = adalora.schedule(total)
    AdaLoraConfig(**phases)  # PEFT's own check
    assert total - phases["tfinal"] - phases["tinit"] >= 2 and phases["tfinal"] >= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 2},
        {"num_train_epochs": 0.3},
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 2, "per_device_train_batch_size": 7, "dataloader_drop_last": True},
        {"max_steps": 5},
    ],
)
def test_steps_are_counted_as_trainer_counts_them(tmp_path, changes):
    args = TrainingArguments(output_dir=tmp_path, use_cpu=True, **{"per_device_train_batch_size": 4, **changes})
    data = rows(45)
    trainer = FinalTrainer(model=tiny_roberta(), args=args, train_dataset=data)
    counted = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    assert adalora.optimizer_steps(args, len(data)) == counted


def test_the_shortest_run_reaches_its_budget(place, tmp_path):
    run_glue.main(adalora_command(place, tmp_path / "run", max_steps=3))
    pattern = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(sum(kept) for kept in pattern.values()) == 2 * MODULES


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"max_steps": 2}, "needs at least 3 optimizer steps to allocate its budget, got 2. Raise --num_train_epochs"),
        ({"size": 9}, "size 9 is 9 adapter parameters, and rank 1 in every module has 128"),
        ({"use_rslora": True}, "got --use_rslora. Drop it."),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "--load_best_model_at_end would bring back an adapter from before",
        ),
        ({"ranks": "ranks.json"}, "got --method adalora. Did you mean --method autolora?"),
        ({"auto_find_batch_size": True}, "--auto_find_batch_size may change it. Drop it, or add --max_steps."),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(place, tmp_path, changes, sentence):
    with pytest.raises(UsageError) as error:
        run_glue.main(adalora_command(place, tmp_path / "run", **changes))
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_all_linear_layers_of_a_model_with_two_heads(place, tmp_path, monkeypatch):
    """PEFT takes DistilBERT's first head for a layer to adapt; that it cannot shows before anything is written."""
    config = DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40)
    shutil.copytree(place / "tiny-roberta", tmp_path / "m")
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    changes = {"model_name_or_path": tmp_path / "m", "lora_target_modules": "all-linear", "max_steps": 3}
    argv = adalora_command(place, tmp_path / "run", **changes)
    with monkeypatch.context() as patch:
        original = adalora.adalora_config
        patch.setattr(
            adalora, "adalora_config", lambda *args, **phases: replace(original(*args, **phases), exclude_modules=None)
        )
        with pytest.raises(UsageError, match="adalora does not work with DistilBertFor.* modules_to_save cannot be"):
            run_glue.main(argv)
        assert not (tmp_path / "run").exists()
    run_glue.main(argv)
    pattern = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["rank_pattern"]
    assert len(pattern) == 12 and sum(sum(kept) for kept in pattern.values()) == 2 * 12


def test_parts_of_a_fused_projection_are_refused():
    method = SimpleNamespace(lora_target_modules=["c_proj", "c_attn#q"], use_rslora=False)
    training = SimpleNamespace(do_train=True, load_best_model_at_end=False, auto_find_batch_size=False)
    with pytest.raises(ValueError, match="adapts whole modules, got --lora_target_modules c_attn#q. Give c_attn."):
        adalora.AdaLora().check_request(SimpleNamespace(settings=method, training=training))


# ---- what is saved


def test_plain_peft_loads_the_adapter_to_the_same_accuracy(place, finished):
    output, results = finished
    base = AutoModelForSequenceClassification.from_pretrained(place / "tiny-roberta")
    model = PeftModel.from_pretrained(base, output)
    model.base_model.trainable_adapter_name = "default"  # PEFT 0.21 needs it for a pass with labels
    assert accuracy(place, model) == results["eval_accuracy"]
    assert adalora_trainer.kept_parameters(model) == results["adapter_params"]


def test_loaded_adapter_predicts_what_the_trained_model_does(tmp_path):
    trainer = trained({"output_dir": tmp_path, "max_steps": 12})
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    torch.manual_seed(0)  # as before `trained`
    base = tiny_roberta()
    base.load_state_dict({n: p for n, p in clean_base(trainer.model).items() if n in base.state_dict()}, strict=False)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    batch = {"input_ids": torch.tensor(rows(16)["input_ids"])}
    with torch.no_grad():
        expected, predicted = trainer.model.eval()(**batch).logits, loaded(**batch).logits
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-6)  # fewer summands, so another rounding


def clean_base(model):
    """The pre-trained weights under an adapter, by their own names."""
    return {name.replace("base_layer.", ""): p for name, p in model.get_base_model().state_dict().items()}


def test_evaluation_only_gives_the_same_score_and_loss(place, finished, capsys):
    output, results = finished
    again = run_glue.main(adalora_command(place, output, do_eval=True))
    assert again["eval_accuracy"] == results["eval_accuracy"]
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)


def forward_of_peft(trainer, inputs):
    """With the regularisation that PEFT adds; the Trainer goes round it, or it would be computed twice a step."""
    model = trainer.model.base_model
    model.trainable_adapter_name = "default"
    return type(model).forward(model, **inputs)


def test_evaluation_loss_is_without_the_regularisation(tmp_path):
    trainer = trained({"output_dir": tmp_path, "max_steps": 3}, steps=3)
    reported = trainer.evaluate(rows(16, seed=3))["eval_loss"]
    data = rows(16, seed=3)
    batch = {name: torch.tensor(data[name]) for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        logits = trainer.model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits
        with_regularisation = forward_of_peft(trainer, batch).loss.item()
    plain = torch.nn.functional.cross_entropy(logits, batch["labels"]).item()
    assert reported == pytest.approx(plain, abs=1e-6) and with_regularisation > plain + 0.05


def test_the_last_allocation_comes_though_its_step_is_skipped(tmp_path):
    trainer = trained({"output_dir": str(tmp_path), "max_steps": 12})
    config = trainer.model.peft_config["default"]
    spoil(trainer, "gradient", {config.total_step - config.tfinal})
    trainer.train()
    assert sum(adalora_trainer.kept_ranks(trainer.model).values()) == trainer.model.base_model.rankallocator.target_bgt


def test_a_training_none_of_whose_steps_is_good_says_so(tmp_path):
    """And not that PEFT's allocator has no statistics."""
    trainer = trained({"output_dir": str(tmp_path), "max_steps": 12})
    spoil(trainer, "gradient", range(12))
    with pytest.raises(NonFiniteError, match="the gradient was not finite for 10 steps in a row"):
        trainer.train()


def test_a_step_that_fp16_s_scaler_drops_is_not_scored():
    callback, scored = adalora_trainer.AllocationCallback(), []
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([float("nan")])
    model = SimpleNamespace(
        peft_config={"default": SimpleNamespace(total_step=9, tfinal=3)},
        parameters=lambda: [weight],
        base_model=SimpleNamespace(
            update_and_allocate=scored.append, rankallocator=SimpleNamespace(exp_avg_ipt={"x": 1})
        ),
    )
    for dropped in (True, False):
        callback.trainer = SimpleNamespace(accelerator=SimpleNamespace(optimizer_step_was_skipped=dropped))
        for step in (4, 5):
            callback.on_optimizer_step(None, SimpleNamespace(global_step=step), None, model=model)
    assert scored == [6, 5, 6] and callback.calls == 3


# ---- resume


def test_the_regularisation_is_pefts_and_counts_once_a_step(tmp_path):
    """Also where the model itself sees no labels (label smoothing), and where micro-batches share a count of items."""
    trainer = trained({"output_dir": str(tmp_path), "max_steps": 12})
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        by_peft = forward_of_peft(trainer, inputs).loss
        term = adalora.ORTHOGONAL_WEIGHT * adalora_trainer.orthogonal_regularization(trainer.model)
        bare = by_peft - term
        assert term > 0.01
        torch.testing.assert_close(trainer.model(**inputs).loss, bare)
        torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(inputs)), by_peft)
        trainer.label_smoother = lambda outputs, labels, num_items_in_batch=None, **kwargs: bare
        torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(inputs)), by_peft)
        trainer.model_accepts_loss_kwargs, trainer.current_gradient_accumulation_steps = True, 4
        trainer.args.average_tokens_across_devices = False
        loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=torch.tensor(4))
        torch.testing.assert_close(loss, bare + term / 4)  # which training_step does not divide
        trainer.model.eval()
        torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(inputs)), bare)


@pytest.mark.parametrize("step", [4, 8, 12, 20])
def test_resumed_run_is_bit_identical(place, finished, tmp_path, step):
    """From the free phase (no allocation yet), from budgeting, from fine-tuning, and from the very end."""
    output, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(output, copy)
    (copy / "all_results.json").unlink()
    (copy / "adapter_model.safetensors").unlink()
    for later in range(step + 4, 21, 4):
        shutil.rmtree(copy / f"checkpoint-{later}")
    argv = adalora_command(place, copy, save_strategy="steps", save_steps=4)
    results = run_glue.main([*argv, "--resume_from_checkpoint", str(copy / f"checkpoint-{step}")])
    assert results["resumed_from"] == {"phase": "retrain", "step": step}
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (output, copy))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for later in range(step + 4, 21, 4):  # with the allocator's statistics
        first, second = (
            load_file(f / f"checkpoint-{later}" / adalora_trainer.ALLOCATOR_TENSORS) for f in (output, copy)
        )
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    states = [json.loads((f / "checkpoint-20" / adalora_trainer.ALLOCATOR_STATE).read_text()) for f in (output, copy)]
    assert states[0] == states[1] and states[0]["calls"] == 20


def test_a_checkpoint_holds_statistics_only_while_the_budget_falls(finished):
    output, _ = finished
    held = [
        any(
            name.startswith("ipt.")
            for name in load_file(output / f"checkpoint-{step}" / adalora_trainer.ALLOCATOR_TENSORS)
        )
        for step in (4, 8, 12, 16)
    ]
    assert held == [True, True, False, False]
