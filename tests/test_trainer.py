"""Does the search find what was planted, move what it should, and go on exactly where it stopped?"""

import copy
import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.trainer
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BertConfig,
    BertLMHeadModel,
    CLIPConfig,
    ConvNextConfig,
    ConvNextForImageClassification,
    CTRLConfig,
    CTRLLMHeadModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Siglip2Config,
    Swinv2Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    ViTConfig,
)

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks, RankSelectionCallback
from autolora_trainer.callbacks import settled
from autolora_trainer.checkpoints import CheckpointManifest, fault, newest_checkpoint, sealed
from autolora_trainer.errors import Terminated
from autolora_trainer.fused import lora_parts
from autolora_trainer.methods.adalora import AdaLoraTrainer
from autolora_trainer.ranks import ModuleRank
from autolora_trainer.retrain import build_adapter
from autolora_trainer.termination import TerminationCallback
from autolora_trainer.trainer_utils import (
    HOOKS,
    RetrainTrainer,
    _reads_item_count,
    check_hooks,
    fix_loss_scale,
    full_precision,
)
from tests.tiny import rows, short_training, tiny_gpt2, tiny_roberta

LORA = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=0.1)


def arguments(folder, **changes):
    settings = dict(
        output_dir=str(folder),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        initial_rank=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=4,
        hypergradient_interval=2,
        hypergradient="finite_difference",
        search_patience=0,
        lr_scheduler_type="constant",
    )
    return AutoLoraTrainingArguments(**{**settings, **changes})


def searcher(folder, dropout=0.1, data=None, callbacks=None, **changes):
    torch.manual_seed(0)
    model = tiny_roberta(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=dropout)
    return AutoLoraTrainer(
        model, arguments(folder, **changes), train_dataset=data or rows(), peft_config=config, callbacks=callbacks
    )


def trained_state(trainer):
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return {**weights, "logits": trainer.gates.logits.detach().clone()}


# ---- what a search does


class Planted(nn.Module):
    """Four frozen layers side by side, whose teacher differs from them by updates of rank 0, 1, 2 and 6."""

    ranks = (0, 1, 2, 6)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in self.ranks)

    def forward(self, x, labels=None):
        output = torch.stack([layer(x[:, i]) for i, layer in enumerate(self.layers)], dim=1)  # (batch, 4, 12)
        return {"loss": ((output - labels) ** 2).mean(), "logits": output}


def planted_data(model, count=512):
    x = torch.randn(count, 4, 12)
    updates = [torch.randn(12, r) @ torch.randn(r, 12) / max(1, r) ** 0.5 / 3 for r in model.ranks]
    with torch.no_grad():
        y = torch.stack(
            [x[:, i] @ (layer.weight + u).T for i, (layer, u) in enumerate(zip(model.layers, updates))], dim=1
        )
    return Dataset.from_dict({"x": x.tolist(), "labels": y.tolist()}).with_format("torch")


@pytest.mark.parametrize("hypergradient", ["finite_difference", "first_order", "exact"])
def test_search_finds_planted_ranks(tmp_path, hypergradient):
    model = Planted()
    data = planted_data(model)
    args = arguments(
        tmp_path,
        max_steps=500,
        initial_rank=8,
        per_device_train_batch_size=32,
        hypergradient=hypergradient,
        rank_rule="singular",
        min_rank=0,
        hypergradient_interval=1 if hypergradient == "finite_difference" else 4,
        selection_learning_rate=0.05,
        learning_rate=2e-2,
    )
    trainer = AutoLoraTrainer(
        model, args, train_dataset=data, peft_config=LoraConfig(target_modules=r"layers\.\d", lora_alpha=8)
    )
    trainer.train()
    assert list(trainer.learned_ranks.ranks.values()) == list(Planted.ranks)


def test_every_lora_and_selection_parameter_moves_and_the_base_does_not(tmp_path):
    trainer = searcher(tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == parameter.requires_grad, f"{name} changed: {changed}"
    assert (trainer.gates.logits != 0).all()


def test_learned_ranks_follow_from_the_final_selection(tmp_path):
    trainer = searcher(tmp_path, rank_rule="threshold")
    trainer.train()
    ranks = trainer.learned_ranks
    assert isinstance(ranks, LearnedRanks) and ranks.threshold == 1 / 4 and ranks.initial_rank == 4
    for (name, module), alpha in zip(ranks.modules.items(), trainer.gates.selection):
        assert module.selection == tuple(alpha.tolist())
        assert module.rank == int((alpha >= 1 / 4).sum())
        assert name.startswith("roberta.encoder.layer.")


@pytest.mark.parametrize("rank", [4, 2])
def test_retrain_starts_where_the_search_ended(tmp_path, rank):
    """Of full rank it computes what the search did; of less, its update is the best approximation of that rank."""
    trainer = searcher(tmp_path)
    trainer.train()
    ids = torch.arange(3, 15).view(1, 12)
    expected = trainer.model.eval()(ids).logits
    updates = {
        name: part.scaling * (part.lora_B * trainer.gates.scale * alpha) @ part.lora_A
        for (name, part), alpha in zip(trainer.gates.parts.items(), trainer.gates.selection)
    }
    torch.manual_seed(0)
    ranks = LearnedRanks({name: ModuleRank(rank) for name in updates}, initial_rank=4)
    adapted = build_adapter(tiny_roberta(), ranks, LORA).eval()
    assert not torch.allclose(adapted(ids).logits, expected, atol=1e-3)
    trainer.start_retrain(adapted)
    if rank == 4:
        torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-5)
    for name, part in lora_parts(adapted).items():
        u, s, vh = torch.linalg.svd(updates[name].detach())
        best = u[:, :rank] * s[:rank] @ vh[:rank]
        torch.testing.assert_close((part.scaling * part.lora_B @ part.lora_A).detach(), best, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(part.lora_A.detach().norm(dim=1), torch.full((rank,), 3**-0.5))  # as LoRA begins
    with pytest.raises(
        ValueError, match=r"The search kept nothing for 'A\.roberta.*key', the retrain needs \(4, 16\)"
    ):
        trainer.start_retrain(
            get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["key"]))
        )


@pytest.mark.parametrize("kind", [tiny_roberta, tiny_gpt2])
def test_a_retrain_with_dora_starts_where_the_search_ended(tmp_path, kind):
    torch.manual_seed(0)
    base, tokens = kind(), rows()
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16)
    if kind is tiny_gpt2:
        config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16)
        tokens = [{**row, "labels": row["input_ids"]} for row in tokens]
    settings = arguments(tmp_path, hypergradient="first_order")
    trainer = AutoLoraTrainer(copy.deepcopy(base), settings, train_dataset=tokens, peft_config=config)
    trainer.train()
    ranks = LearnedRanks({name: ModuleRank(4) for name in trainer.gates.names}, initial_rank=4)
    adapted = build_adapter(base, ranks, dataclasses.replace(config, use_dora=True))
    trainer.start_retrain(adapted)
    ids = torch.arange(3, 15).view(1, 12)
    torch.testing.assert_close(adapted.eval()(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_retrain_that_cannot_start_where_the_search_ended_is_refused(tmp_path):
    trainer = searcher(tmp_path, max_steps=2)
    trainer.train()
    ranks = LearnedRanks({name: ModuleRank(4) for name in trainer.gates.names}, initial_rank=4)
    other = build_adapter(tiny_roberta(), ranks, LoraConfig(task_type="SEQ_CLS", alora_invocation_tokens=[1, 2]))
    with pytest.raises(ValueError, match="as plain LoRA or DoRA, got ALoraLinearVariant at .* Leave start_retrain"):
        trainer.start_retrain(other)
    other = build_adapter(tiny_roberta(), ranks, dataclasses.replace(LORA, init_lora_weights="pissa"))
    with pytest.raises(ValueError, match="on the same base model, and init_lora_weights='pissa' alters it. Leave st"):
        trainer.start_retrain(other)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], lora_bias=True)
    trainer = AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), train_dataset=rows(), peft_config=config)
    with pytest.raises(ValueError, match="trained a bias of lora_B at .* Search without lora_bias, or leave start_"):
        trainer.start_retrain(build_adapter(tiny_roberta(), ranks, LORA))


@pytest.mark.parametrize("gate_scaling", ["plain", "paper"])
def test_a_saved_model_is_the_one_that_was_searched(tmp_path, gate_scaling):
    trainer = searcher(tmp_path, gate_scaling=gate_scaling)
    trainer.train()
    before = trained_state(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    assert all(torch.equal(value, before[name]) for name, value in trained_state(trainer).items())
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(tiny_roberta(), tmp_path / "saved").eval()
    ids = torch.arange(3, 15).view(1, 12)
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_saving", [True, False])
def test_a_pushed_model_is_the_one_that_was_searched(tmp_path, monkeypatch, by_saving):
    pushed = {}

    def upload_folder(folder_path, **kwargs):
        pushed.update(load_file(os.path.join(folder_path, "adapter_model.safetensors")))

    hub = SimpleNamespace(
        create_repo=lambda name, **kwargs: SimpleNamespace(repo_id=f"me/{name}"), upload_folder=upload_folder
    )
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda *args, **kwargs: hub)
    trainer = searcher(tmp_path / "model", push_to_hub=by_saving, hub_strategy="end")
    monkeypatch.setattr(trainer, "create_model_card", lambda **kwargs: None)
    trainer.train()
    before = trained_state(trainer)
    with trainer.gates.folded():
        folded = get_peft_model_state_dict(trainer.model)
        folded = {name: value.clone() for name, value in folded.items()}
    trainer.save_model() if by_saving else trainer.push_to_hub()
    assert pushed.keys() == folded.keys() and all(torch.equal(pushed[name], folded[name]) for name in folded)
    assert all(torch.equal(value, before[name]) for name, value in trained_state(trainer).items())
    assert not all(torch.equal(pushed[n], v) for n, v in get_peft_model_state_dict(trainer.model).items())


def test_gates_are_applied_once(tmp_path):
    trainer = searcher(tmp_path)
    with pytest.raises(ValueError, match="has the gates of an earlier search. Call gates.remove"):
        AutoLoraTrainer(trainer.model, arguments(tmp_path), train_dataset=rows())
    trainer.gates.remove()
    with pytest.raises(ValueError, match="The adapter has rank 4"):
        AutoLoraTrainer(trainer.model, arguments(tmp_path, initial_rank=8), train_dataset=rows())
    again = AutoLoraTrainer(trainer.model, arguments(tmp_path), train_dataset=rows())
    again.train()
    ranks = LearnedRanks({name: ModuleRank(4) for name in again.gates.names}, initial_rank=4)
    again.gates.bake()
    with pytest.raises(ValueError, match="Call start_retrain before it"):
        again.start_retrain(build_adapter(tiny_roberta(), ranks, LORA))


def test_rows_in_a_list_may_have_columns_that_the_model_does_not_take(tmp_path):
    data = [{**row, "idx": i, "sentence": "as a Trainer drops them"} for i, row in enumerate(rows())]
    searcher(tmp_path, data=data, max_steps=4).train()


def test_eval_dataset_takes_no_part_and_the_splits_are_disjoint(tmp_path):
    data = rows(41)
    trainer = searcher(tmp_path, data=data, val_fraction=0.25)
    assert len(trainer.train_dataset) == 31 and len(trainer.val_dataset) == 10
    own = AutoLoraTrainer(
        tiny_roberta(),
        arguments(tmp_path, initial_rank=8),
        train_dataset=data,
        val_dataset=rows(7, seed=9),
        peft_config=LORA,
    )
    assert len(own.train_dataset) == 41 and len(own.val_dataset) == 7


def test_logs_carry_the_phase(tmp_path):
    trainer = searcher(tmp_path)
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


def test_interval_sets_how_often_a_selection_step_is_taken(tmp_path):
    for interval, steps in ((1, 12), (5, 3)):
        trainer = searcher(tmp_path, hypergradient_interval=interval)
        trainer.train()
        assert trainer._selection_steps == steps and trainer.selection_passes == 3 * steps


def test_search_stops_when_the_ranks_have_settled(tmp_path):
    trainer = searcher(
        tmp_path, max_steps=400, search_patience=4, rank_rule="threshold", threshold=0.0
    )  # all ranks are k at once
    trainer.train()
    assert trainer.state.global_step == 9  # selection steps at 1, 3, 5, 7, 9: the last differs from none of the four


def test_a_second_training_of_a_settled_search_searches_again(tmp_path):
    trainer = searcher(tmp_path, max_steps=400, search_patience=4, rank_rule="threshold", threshold=0.0)
    for steps in (5, 10):
        trainer.train()
        assert trainer.state.global_step == 9 and trainer._selection_steps == steps and trainer.learned_ranks


def test_a_stream_with_rows_held_out_can_be_searched(tmp_path):
    data, held_out = rows().train_test_split(0.5, seed=0).values()
    args = arguments(tmp_path, max_steps=4)
    trainer = AutoLoraTrainer(
        tiny_roberta(), args, train_dataset=data.to_iterable_dataset(), val_dataset=held_out, peft_config=LORA
    )
    trainer.train()
    assert trainer.learned_ranks


def test_settled_allows_a_twentieth_of_the_total_rank_to_flicker():
    assert settled([[10, 10], [10, 10], [10, 11]])
    assert not settled([[9, 11], [10, 10]])
    assert not settled([[8, 12], [10, 10], [10, 10]])  # moved within the window, not since its end
    assert not settled([[4, 4], [4, 5]])


def test_held_out_evidence_tells_signal_from_noise(tmp_path):
    """Held-out loss falls on a task; noise is wanted smaller: the same rows with random labels."""
    data = rows(256)
    shuffled = torch.randint(0, 2, (256,), generator=torch.Generator().manual_seed(5)).tolist()
    evidence = {}
    for name, chosen in {
        "signal": data,
        "noise": data.remove_columns("labels").add_column("labels", shuffled),
    }.items():
        trainer = searcher(
            tmp_path, dropout=0.0, data=chosen, max_steps=60, hypergradient="first_order", hypergradient_interval=1
        )
        trainer.train()
        evidence[name] = trainer.held_out_evidence()
        assert (trainer.probe.energy > 0).all() and trainer.probe.count == 60
    (_, falls), (gain, trend) = evidence["signal"], evidence["noise"]
    assert falls > 3 and gain < 0 and trend < 2


@pytest.mark.parametrize(
    "setting",
    ["inner_lr", "virtual_step", "finite_difference_radius", "constraint", "selection_learning_rate", "seed"],
)
def test_every_setting_has_an_effect(tmp_path, setting):
    value = {
        "inner_lr": 0.3,
        "virtual_step": "sgd",
        "finite_difference_radius": 1.0,
        "constraint": "sigmoid",
        "selection_learning_rate": 0.1,
        "seed": 3,
    }[setting]
    plain, changed = searcher(tmp_path), searcher(tmp_path, **{setting: value})
    plain.train()
    changed.train()
    assert not torch.equal(plain.gates.logits, changed.gates.logits)


def test_a_search_in_which_alpha_never_moved_stops(tmp_path):
    trainer = searcher(tmp_path, max_steps=1, hypergradient="first_order")  # lora_B is zero at the only selection step
    with pytest.raises(RuntimeError, match="ended after 1 steps and no selection variable ever moved"):
        trainer.train()
    assert trainer.learned_ranks is None


def test_a_search_stopped_before_alpha_moved_goes_on_after_a_resume(tmp_path):
    """SIGTERM in the first steps: a checkpoint, and no complaint of what it has not learned."""
    termination, method = TerminationCallback(), {"hypergradient": "first_order"}  # at step 1 lora_B is zero
    termination.asked = True
    stopped = searcher(tmp_path, save_strategy="steps", save_steps=100, callbacks=[termination], **method)
    stopped.train()
    assert stopped.learned_ranks is None and stopped.state.global_step == 1
    with pytest.raises(Terminated, match="stopped by SIGTERM after step 1 of 12, and saved it"):
        termination.check(stopped.state)
    resumed = searcher(tmp_path, **method)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    whole = searcher(tmp_path / "whole", **method)
    whole.train()
    assert resumed.learned_ranks == whole.learned_ranks


# ---- the weight step is Trainer's own


class _Watch(TrainerCallback):
    """Gradients that the optimizer is about to use."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])


def test_selection_step_leaves_the_weight_gradient_as_trainer_computed_it(tmp_path):
    """Same data, dropout 0: the gradients of a search with frozen selection are those of a Trainer on the gated
    model."""
    watches = []
    for interval in (1, 1000):
        watch = _Watch()
        trainer = searcher(
            tmp_path,
            dropout=0.0,
            callbacks=[watch],
            hypergradient_interval=interval,
            max_steps=1,
            gradient_accumulation_steps=2,
        )
        trainer.train()
        watches.append(watch.gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*watches))


@pytest.mark.parametrize("max_grad_norm", [1.0, 1e-3])
def test_accumulation_equals_one_large_batch(tmp_path, max_grad_norm):
    states = []
    for batch, accumulation in ((16, 1), (4, 4)):
        trainer = searcher(
            tmp_path,
            dropout=0.0,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=8,
            optim="adamw_torch",
            max_grad_norm=max_grad_norm,
            hypergradient_interval=1,
            adam_epsilon=1e-4,
        )
        trainer.train()
        states.append(trained_state(trainer))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=2e-6, msg=lambda text: f"{name}: {text}")
    assert (states[0]["logits"] != 0).all()


def test_activation_checkpointing_changes_nothing(tmp_path):
    states = []
    for on in (False, True):
        trainer = searcher(tmp_path, max_steps=6, activation_checkpointing=on)
        trainer.train()
        states.append(trained_state(trainer))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", ["search", "plain"])
def test_loss_is_the_mean_over_the_window(tmp_path, kind, accumulation):
    """Uncorrected, transformers 5.23 reports and differentiates `accumulation` times the loss of a classification
    head."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4))
    settings = dict(
        max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation, logging_steps=1
    )
    if kind == "search":
        trainer = AutoLoraTrainer(model, arguments(tmp_path, **settings), train_dataset=rows())
    else:
        args = TrainingArguments(
            str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", **settings
        )
        trainer = fix_loss_scale(Trainer(model, args, train_dataset=rows()))
    trainer.train()
    first = trainer.state.log_history[0]
    assert 0.5 < first.get("loss", first.get("search_train_loss")) < 0.9  # ln 2


@pytest.mark.parametrize(
    "kind, labels", [("CLIP", 2), ("Siglip2", 2), ("Beit", 2), ("ConvNext", 1), ("Swinv2", 2), ("ViT", 2), ("ViT", 1)]
)
def test_loss_of_an_image_classifier_is_the_mean_over_the_window(tmp_path, kind, labels):
    """The head of ViT divides by the count that Trainer passes, though not for regression; those of the others never,
    though their `forward` has `**kwargs`."""
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=labels)
    config = {
        "CLIP": lambda: CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 16}, num_labels=labels),
        "Siglip2": lambda: Siglip2Config(vision_config={**vision, "num_patches": 4, "patch_size": 16}),
        "Beit": lambda: BeitConfig(image_size=32, **vision),
        "ConvNext": lambda: ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_labels=labels),
        "Swinv2": lambda: Swinv2Config(
            image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=labels
        ),
        "ViT": lambda: ViTConfig(image_size=32, **vision),
    }[kind]()
    torch.manual_seed(0)
    config.num_labels = labels
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    targets = torch.randint(0, 2, (8,)) if labels > 1 else torch.randn(8, 1)
    shapes = {"pixel_values": (3, 32, 32)} if kind != "Siglip2" else {"pixel_values": (4, 3 * 16 * 16)}
    data = [
        {**{name: torch.randn(shape) for name, shape in shapes.items()}, "labels": target.squeeze()}
        for target in targets
    ]
    if kind == "Siglip2":
        for row in data:
            row |= {"pixel_attention_mask": torch.ones(4, dtype=torch.long), "spatial_shapes": torch.tensor([2, 2])}
    logged = []
    for size, accumulation in ((8, 1), (2, 4)):
        settings = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, learning_rate=0.0)
        args = short_training(tmp_path, max_steps=1, logging_steps=1, **settings)
        trainer = fix_loss_scale(Trainer(model, args, train_dataset=data))
        trainer.train()
        logged.append(trainer.state.log_history[0]["loss"])
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)


def test_who_reads_the_count_of_items():
    readers = [GPT2LMHeadModel, OpenAIGPTLMHeadModel, CTRLLMHeadModel, BertLMHeadModel, LlamaForCausalLM]
    others = [T5ForConditionalGeneration, ConvNextForImageClassification, BeitForSemanticSegmentation]
    for kind in readers + others:
        assert _reads_item_count(kind.__new__(kind)) == (kind in readers), kind.__name__


@pytest.mark.parametrize(
    "model",
    [
        tiny_gpt2,
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=40)),
        lambda: CTRLLMHeadModel(CTRLConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, dff=32)),
        lambda: BertLMHeadModel(
            BertConfig(
                vocab_size=64,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                is_decoder=True,
            )
        ),
    ],
    ids=["gpt2", "openai-gpt", "ctrl", "bert"],
)
def test_loss_of_a_language_model_counts_every_target(tmp_path, model):
    model = model()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    ids = torch.randint(0, 60, (2, 10))
    trainer = fix_loss_scale(Trainer(model, args))
    batch = {"input_ids": ids, "labels": ids}
    items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(model.eval(), batch, num_items_in_batch=items)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))


def test_differences_are_taken_in_full_precision(tmp_path):
    trainer = searcher(tmp_path, dropout=0.0, bf16=True)
    trainer.train()
    batch = {"input_ids": torch.randint(3, 60, (4, 10)), "labels": torch.zeros(4, dtype=torch.long)}
    rounded, exact = trainer.model(**batch).loss, None
    with full_precision(trainer.model):
        exact = trainer.model(**batch).loss
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)(**batch).loss
    assert torch.equal(exact, plain) and not torch.equal(rounded, exact)


# ---- resume


@pytest.mark.parametrize("stop_at", [3, 8, 9, 12])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_search_ends_in_the_same_bits(tmp_path, stop_at, accumulation):
    """Dropout, shuffling, accumulation, in the middle of an epoch and at its end, and before a selection step or
    not."""
    settings = dict(
        gradient_accumulation_steps=accumulation,
        max_steps=12,
        save_strategy="steps",
        save_steps=1,
        search_patience=100,
    )
    whole = searcher(tmp_path / "whole", **settings)
    whole.train()
    part = searcher(tmp_path / "part", callbacks=[_StopAt(stop_at)], **settings)
    part.train()
    torch.rand(7)  # another process has drawn other numbers
    resumed = searcher(tmp_path / "part", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop_at}"))
    for name, value in trained_state(whole).items():
        assert torch.equal(trained_state(resumed)[name], value), name
    assert resumed.learned_ranks == whole.learned_ranks
    assert torch.equal(resumed.sensitivity, whole.sensitivity)
    assert torch.equal(resumed.probe.energy, whole.probe.energy)
    assert resumed.held_out_evidence() == whole.held_out_evidence()
    history = [(tmp_path / name / "selection_history.csv").read_text() for name in ("whole", "part")]
    assert history[0] == history[1]


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
        return control


def test_search_that_had_settled_stays_settled_after_a_resume(tmp_path):
    settings = dict(
        max_steps=400, search_patience=4, rank_rule="threshold", threshold=0.0, save_strategy="steps", save_steps=1
    )
    whole = searcher(tmp_path, **settings)
    whole.train()
    resumed = searcher(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert resumed.state.global_step == whole.state.global_step == 9
    assert torch.equal(resumed.gates.logits, whole.gates.logits)


def test_checkpoint_of_other_modules_is_refused(tmp_path):
    trainer = searcher(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-4")
    path = os.path.join(checkpoint, "selection.json")
    state = json.loads(open(path).read())
    with open(path, "w") as file:
        json.dump({**state, "names": state["names"][:-1]}, file)
    with pytest.raises(ValueError, match="The checkpoint searched 3 modules, the model has 4 others"):
        searcher(tmp_path).train(resume_from_checkpoint=checkpoint)


def test_only_whole_checkpoints_are_used(tmp_path):
    trainer = searcher(tmp_path, save_strategy="steps", save_steps=4, callbacks=[CheckpointManifest()])
    trainer.train()
    assert newest_checkpoint(str(tmp_path)) == (str(tmp_path / "checkpoint-12"), [])
    newest = tmp_path / "checkpoint-12"
    names = json.loads((newest / "manifest.json").read_text())["files"]
    assert {
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "selection.safetensors",
        "trainer_state.json",
    } <= names.keys()
    for name in [*names, "manifest.json"]:
        saved = (newest / name).read_bytes()
        for damaged in (saved[: len(saved) // 2], saved[:-1] + bytes([saved[-1] ^ 1]), None):
            (newest / name).unlink()
            if damaged is not None:
                (newest / name).write_bytes(damaged)
            reason = fault(str(newest))
            if damaged is None or name != "manifest.json" or len(damaged) < len(saved):
                assert reason and name in reason
                assert newest_checkpoint(str(tmp_path)) == (str(tmp_path / "checkpoint-8"), [f"{newest} {reason}"])
            (newest / name).write_bytes(saved)
    shutil.rmtree(newest)
    assert newest_checkpoint(str(tmp_path))[0] == str(tmp_path / "checkpoint-8")


def test_files_in_folders_of_a_checkpoint_are_checked_too(tmp_path):
    """The weights of a second adapter; a manifest from before, which does not name them, still holds."""
    folder = tmp_path / "checkpoint-4"
    (folder / "second").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    save_file({"a": torch.zeros(3)}, folder / "second" / "adapter_model.safetensors")
    state = TrainerState(global_step=4, is_world_process_zero=True)
    CheckpointManifest().on_save(short_training(tmp_path), state, None)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["files"]) == ["second/adapter_model.safetensors", "trainer_state.json"]
    assert fault(str(folder)) is None
    save_file({"a": torch.ones(3)}, folder / "second" / "adapter_model.safetensors")
    assert fault(str(folder)) == "has a damaged second/adapter_model.safetensors"
    del manifest["files"]["second/adapter_model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    assert fault(str(folder)) is None
    (folder / "second" / "adapter_model.bin").write_bytes(b"no tensors")
    assert fault(str(folder)) == "has a second/adapter_model.bin that is no data of a checkpoint"


def test_a_transformers_without_a_hook_is_refused(monkeypatch):
    assert "transformers==5.23.0\n" in (Path(__file__).parents[1] / "constraints.txt").read_text()
    monkeypatch.setattr(transformers, "__version__", "9.1")
    check_hooks()
    for name in HOOKS:
        stub = type("Trainer", (), {hook: None for hook in HOOKS if hook != name})
        with pytest.raises(ImportError, match=rf"^transformers 9.1 is installed, whose Trainer has no {name}; .*==5"):
            check_hooks(stub)


def test_every_hook_that_is_overridden_is_checked():
    kinds = {kind for trainer in (AutoLoraTrainer, RetrainTrainer, AdaLoraTrainer) for kind in trainer.__mro__}
    own = [kind for kind in kinds if kind.__module__.startswith("autolora_trainer")]
    overridden = {name for kind in own for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
    assert overridden & set(dir(Trainer)) <= set(HOOKS)


# ---- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"val_fraction": 1.0},
            r"val_fraction must be between 0 and 1 \(both splits need examples\), got 1.0. The paper uses 0.5",
        ),
        ({"initial_rank": 0}, "initial_rank must be at least 2, got 0"),
        ({"initial_rank": 1}, "with softmax a single component has α = 1, whatever is learned"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, "needs use_reentrant=False"),
        ({"optim": "adafactor"}, "virtual_step adamw reads the state of PyTorch's AdamW, got optim adafactor"),
        ({"save_only_model": True, "save_strategy": "steps"}, "save_only_model leaves out what a search needs"),
        ({"push_to_hub": True}, 'hub_strategy every_save pushes checkpoints .* Set hub_strategy="end"'),
        ({"constraint": "relu"}, "constraint must be one of softmax, sigmoid, none, got 'relu'"),
        ({"hypergradient": "magic"}, "hypergradient must be one of finite_difference, first_order, exact"),
        ({"virtual_step": "lion"}, "virtual_step must be one of sgd, adamw"),
        ({"rank_rule": "best"}, "rank_rule must be one of"),
        ({"hypergradient_interval": 0}, "hypergradient_interval must be at least 1"),
        ({"selection_learning_rate": 0.0}, "selection_learning_rate must be a positive number"),
        ({"inner_lr": -1.0}, "inner_lr must be zero or a positive number"),
        ({"threshold": 0.2}, "threshold belongs to rank_rule 'threshold', got rank_rule 'adaptive'"),
        ({"min_rank": 2}, "min_rank must be 0 or 1"),
        ({"search_patience": -1}, "search_patience must be 0"),
        ({"fp16": True}, "fp16"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 500},
            "not for the search",
        ),
    ],
)
def test_argument_out_of_range_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_wrong_construction_is_refused(tmp_path):
    with pytest.raises(ValueError, match="args must be AutoLoraTrainingArguments, got TrainingArguments"):
        AutoLoraTrainer(
            tiny_roberta(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=rows(), peft_config=LORA
        )
    with pytest.raises(ValueError, match="needs a LoRA adapter, got a plain RobertaForSequenceClassification"):
        AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), train_dataset=rows())
    with pytest.raises(ValueError, match="needs train_dataset, got none"):
        AutoLoraTrainer(tiny_roberta(), arguments(tmp_path), peft_config=LORA)
    with pytest.raises(ValueError, match="The adapter has rank 2, and the search asks for initial_rank=4"):
        model = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
        AutoLoraTrainer(model, arguments(tmp_path), train_dataset=rows())


@pytest.mark.parametrize("base", [tiny_roberta, tiny_gpt2])
@pytest.mark.parametrize("name, what", [("rank_pattern", "rank k"), ("alpha_pattern", "scale")])
def test_patterns_before_a_search_are_refused(tmp_path, base, name, what):
    config = LoraConfig(**{name: {"layer.0": 2}}, target_modules=["query"] if base is tiny_roberta else None)
    with pytest.raises(ValueError, match=f"the same {what} in every LoRA layer, got a {name} in peft_config. Drop"):
        AutoLoraTrainer(base(), arguments(tmp_path), train_dataset=rows(), peft_config=config)


def test_callbacks_may_be_classes_as_in_trainer(tmp_path):
    trainer = searcher(tmp_path, callbacks=[RankSelectionCallback, _Watch], max_steps=2)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(RankSelectionCallback) == 1 and _Watch in kinds
    trainer.train()
    assert trainer.learned_ranks is trainer.rank_selection.learned_ranks


def test_callback_names_the_base_model(tmp_path):
    trainer = searcher(tmp_path, callbacks=[RankSelectionCallback(base_model="org/model")])
    trainer.train()
    assert trainer.learned_ranks.base_model == "org/model"


@pytest.mark.parametrize("method, passes_in_fp32", [("first_order", 0), ("finite_difference", 2 * 3)])
def test_only_differences_leave_the_training_s_precision(tmp_path, method, passes_in_fp32):
    trainer = searcher(tmp_path, dropout=0.0, bf16=True, max_steps=3, hypergradient=method)
    seen = []  # in the base model, within the forward that accelerate has wrapped
    trainer.model.get_base_model().register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer.train()
    assert seen.count(False) == passes_in_fp32 and seen.count(True) >= 3
