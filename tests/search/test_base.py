"""Does a retrain start from what the search learned, on the base model that it was learned on?"""

import copy
import dataclasses

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2Model,
    TrainingArguments,
)

from autolora_trainer import AutoLoraTrainer, LearnedRanks, build_adapter, find_ranks
from autolora_trainer.ranks.learned import ModuleRank
from tests.helpers.models import SMALL, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import LORA, arguments, searcher

IDS = torch.arange(3, 15).view(1, 12)
SIZES = {**SMALL, "pad_token_id": 1, "intermediate_size": 32, "max_position_embeddings": 40}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "type_vocab_size": 0}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
CHECKPOINTS = {  # of a base model: maker, targets, what a classifier of it lacks
    "deberta": (lambda: DebertaV2Model(DebertaV2Config(**SIZES, **DEBERTA)), ["query_proj"], ["pooler.dense"]),
    "bert": (lambda: BertForMaskedLM(BertConfig(**SIZES)), ["query"], ["bert.pooler.dense"]),
    "bart": (
        lambda: BartModel(BartConfig(vocab_size=64, **BART, encoder_attention_heads=2, decoder_attention_heads=2,
                                     eos_token_id=2, pad_token_id=1, max_position_embeddings=40)),
        ["q_proj"], ["classification_head.dense", "classification_head.out_proj"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request, tmp_path_factory):
    """(folder, targets, modules that it lacks)."""
    make, targets, lacks = CHECKPOINTS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make().save_pretrained(folder)
    return folder, targets, lacks


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.cat([IDS, torch.full_like(IDS[:, :1], 2)], dim=1)).logits


def few(**changes):
    return {"max_steps": 4, "hypergradient": "first_order", "size": "lora:4", **changes}


def text():
    return rows().map(lambda row: {"input_ids": [*row["input_ids"][:-1], 2]})  # BART pools at its end


def full(trainer, rank=4):
    return LearnedRanks({name: ModuleRank(rank) for name in trainer.gates.names}, initial_rank=4)


# ---- what a checkpoint lacks


def test_what_a_checkpoint_lacks_is_trained_carried_over_and_saved(tmp_path, caplog, checkpoint):
    folder, targets, lacks = checkpoint
    config = LoraConfig(task_type="SEQ_CLS", target_modules=targets, lora_alpha=8)
    trainer = AutoLoraTrainer(load(folder), arguments(tmp_path, **few()), train_dataset=text(), peft_config=config)
    assert f"the checkpoint lacks {', '.join(lacks)}, drawn at random: trained and saved" in caplog.text
    trainer.train()
    model = build_adapter(load(folder), full(trainer), config)
    assert not torch.allclose(logits(model), logits(trainer.model), atol=1e-3)
    trainer.start_retrain(model)
    torch.testing.assert_close(logits(model), logits(trainer.model), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "adapter")
    for _ in range(2):
        assert torch.equal(logits(PeftModel.from_pretrained(load(folder), tmp_path / "adapter")), logits(model))


@pytest.mark.parametrize("checkpoint", ["deberta", "bart"], indirect=True)
def test_a_config_that_is_found_names_what_the_checkpoint_lacks(tmp_path, checkpoint):
    folder, targets, lacks = checkpoint
    settings = {"args": TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), "size": "lora:1"}
    for given in (targets, "all-linear"):
        given = LoraConfig(task_type="SEQ_CLS", target_modules=given)
        config = find_ranks(load(folder), text(), given, search_steps=5, rank_rule="threshold", **settings)
        assert config.modules_to_save == lacks and not set(lacks) & set(config.target_modules)


@pytest.mark.parametrize("checkpoint", ["deberta"], indirect=True)
def test_an_adapter_that_leaves_it_frozen_is_told_and_cannot_start(tmp_path, caplog, checkpoint):
    folder, targets, lacks = checkpoint
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets)
    model = get_peft_model(load(folder), config)
    trainer = AutoLoraTrainer(model, arguments(tmp_path, **few()), train_dataset=text())
    assert f"the checkpoint lacks {lacks[0]}.weight" in caplog.text and "drawn anew at every load" in caplog.text
    trainer.train()
    other = get_peft_model(load(folder), full(trainer).to_lora_config(config))
    with pytest.raises(
        ValueError, match=f"not the search's: its checkpoint lacks {lacks[0]}.*Search again with these"
    ):
        trainer.start_retrain(other)


@pytest.mark.parametrize("checkpoint", ["deberta", "bart"], indirect=True)
def test_a_head_that_nobody_trains_is_trained(tmp_path, checkpoint):
    """Without a task type PEFT leaves a new classifier as it was drawn."""
    folder, targets, lacks = checkpoint
    config = LoraConfig(target_modules=targets)
    trainer = AutoLoraTrainer(load(folder), arguments(tmp_path, **few()), train_dataset=text(), peft_config=config)
    saved = trainer.model.peft_config["default"].modules_to_save
    assert set(saved) == {*lacks, *([] if "classification_head.dense" in lacks else ["classifier"])}


def test_a_model_from_elsewhere_is_taken_as_it_is(tmp_path, caplog):
    """Built of a configuration, or a copy: nothing says what was loaded."""
    searcher(tmp_path)
    assert "the checkpoint lacks" not in caplog.text


# ---- the same base model


def small_search(folder, **changes):
    trainer = searcher(folder, **few(**changes))
    trainer.train()
    return trainer


def roberta(seed=0, **changes):
    torch.manual_seed(seed)
    return tiny_roberta(**changes)


def with_other_norm(model):
    nn.init.normal_(model.roberta.encoder.layer[1].output.LayerNorm.weight)
    return model


def with_tokens(model):
    model.resize_token_embeddings(70)
    return model


def with_other_buffer(model):
    model.roberta.embeddings.token_type_ids += 1
    return model


OTHERS = {
    "another checkpoint": (
        lambda: roberta(1),
        r"\d+ of \d+ tensors differ, the first is 'roberta.embeddings.word_emb",
    ),
    "one weight": (lambda: with_other_norm(roberta()), "1 of .* is 'roberta.encoder.layer.1.output.LayerNorm.weight'"),
    "added tokens": (lambda: with_tokens(roberta()), "1 of .* is 'roberta.embeddings.word_embeddings.weight'"),
    "a buffer": (lambda: with_other_buffer(roberta()), "1 of .* is 'roberta.embeddings.token_type_ids'"),
}


def test_a_retrain_on_another_base_is_refused_and_on_the_same_is_not(tmp_path):
    trainer = small_search(tmp_path)
    expected = logits(trainer.model)
    for make, message in OTHERS.values():
        model = build_adapter(make(), full(trainer), LORA)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=f"^The retrain's base model is not the search's: {message}"):
            trainer.start_retrain(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fine = [roberta(), roberta().bfloat16(), roberta(0, num_labels=2)]
    for base in fine:
        model = build_adapter(base, full(trainer), LORA)
        trainer.start_retrain(model)
        atol = 1e-5 if base.dtype == torch.float32 else 0.1
        torch.testing.assert_close(logits(model).float(), expected, rtol=0, atol=atol)
    trainer.gates.remove()
    own = build_adapter(trainer.model.unload(), full(trainer), LORA)  # the very same tensors
    trainer.start_retrain(own)
    torch.testing.assert_close(logits(own), expected, rtol=1e-4, atol=1e-5)


def test_added_tokens_that_are_drawn_anew_are_another_base(tmp_path):
    torch.manual_seed(0)
    base = with_tokens(tiny_roberta())
    trainer = AutoLoraTrainer(base, arguments(tmp_path, **few()), train_dataset=rows(), peft_config=LORA)
    trainer.train()
    torch.manual_seed(0)
    again = tiny_roberta()
    torch.manual_seed(7)
    again.resize_token_embeddings(70)
    with pytest.raises(ValueError, match="the first is 'roberta.embeddings.word_embeddings.weight'. Load the same"):
        trainer.start_retrain(build_adapter(again, full(trainer), LORA))


def test_a_search_that_was_merged_may_still_hand_over(tmp_path):
    trainer = small_search(tmp_path)
    expected = logits(trainer.model)
    trainer.model.merge_adapter()
    model = build_adapter(roberta(), full(trainer), LORA)
    trainer.start_retrain(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


# ---- all that was trained


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_carried_over_whatever_ranks_their_modules_have(tmp_path, bias):
    config = dataclasses.replace(LORA, bias=bias, lora_dropout=0.0)
    torch.manual_seed(0)
    trainer = AutoLoraTrainer(roberta(), arguments(tmp_path, **few()), train_dataset=rows(), peft_config=config)
    trainer.train()
    ranks = full(trainer)
    model = build_adapter(roberta(), ranks, config)
    trainer.start_retrain(model)
    torch.testing.assert_close(logits(model), logits(trainer.model), rtol=1e-4, atol=1e-5)
    first, *rest = ranks.ranks
    fewer = LearnedRanks({first: ModuleRank(0), **{name: ModuleRank(4) for name in rest}}, initial_rank=4)
    model = build_adapter(roberta(), fewer, config)
    if bias == "all":  # its bias is trained, with another name in PEFT
        trainer.start_retrain(model)
        own = trainer.model.get_base_model().get_submodule(first).base_layer.bias
        assert torch.equal(model.get_base_model().get_submodule(first).bias, own)
    else:
        with pytest.raises(ValueError, match=r"The search trained '.*bias', and this adapter does not. Give build_"):
            trainer.start_retrain(model)


def test_a_head_that_the_retrain_would_drop_is_refused(tmp_path):
    config = dataclasses.replace(LORA, modules_to_save=["LayerNorm"])
    trainer = AutoLoraTrainer(roberta(), arguments(tmp_path, **few()), train_dataset=rows(), peft_config=config)
    trainer.train()
    with pytest.raises(ValueError, match="The search trained '.*LayerNorm.*', and this adapter does not"):
        trainer.start_retrain(build_adapter(roberta(), full(trainer), LORA))


def test_what_is_trained_and_lies_in_no_file_is_named(tmp_path, caplog):
    def search(**more):
        caplog.clear()
        base = roberta()
        model = get_peft_model(base, dataclasses.replace(LORA, r=4, **more))
        if not more:
            base.roberta.encoder.layer[0].output.LayerNorm.requires_grad_(True)
        AutoLoraTrainer(model, arguments(tmp_path), train_dataset=rows())
        return "tensors are trained that no adapter's file holds" in caplog.text

    assert search() and "2 tensors" in caplog.text and "layer.0.output.LayerNorm.weight'" in caplog.text
    for more in ({"bias": "all"}, {"trainable_token_indices": [1, 2]}, {"modules_to_save": ["LayerNorm"]}):
        assert not search(**more), caplog.text


class Normed(nn.Module):
    """BatchNorm's means move without a gradient, and no adapter holds them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x, labels=None):
        out = self.last(torch.relu(self.norm(self.first(x))))
        return {"loss": None if labels is None else nn.functional.cross_entropy(out, labels), "logits": out}


@torch.no_grad()
def outputs(model):
    return model.eval()(torch.eye(4))["logits"]


def test_buffers_that_a_search_moves_are_named_and_carried_over(tmp_path, caplog):
    x = torch.randn(64, 4)
    data = [{"x": row, "labels": label} for row, label in zip(x, (x[:, 0] > 0).long())]
    config = LoraConfig(target_modules=["first", "last"], lora_alpha=8)
    trainer = AutoLoraTrainer(
        Normed(), arguments(tmp_path, **few(size="lora:1")), train_dataset=data, peft_config=config
    )
    trainer.train()
    assert "3 buffers have moved in training (first: 'norm.running_mean'), and no adapter holds them" in caplog.text
    model = build_adapter(Normed(), full(trainer), config)
    trainer.start_retrain(model)
    torch.testing.assert_close(outputs(model), outputs(trainer.model))
