"""Do bottleneck adapters start as the identity, train, and come back from their files?"""

import json
import re

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from autolora_trainer.methods import bottleneck
from autolora_trainer.methods.base import count_parameters
from tests.helpers.models import FAMILIES, tiny_roberta


@pytest.mark.parametrize("family", FAMILIES)
def test_bottlenecks_start_as_the_identity_and_come_back_from_their_files(tmp_path, family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = {"input_ids": torch.randint(3, 60, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    before = model(**batch).logits
    bottleneck.add_bottlenecks(model, 4, task_type="SEQ_CLS")
    assert torch.equal(model(**batch).logits, before)
    blocks = len({re.search(r"\d+", name)[0] for name in model.bottleneck_config["modules"]})
    assert len(model.bottleneck_config["modules"]) == 2 * blocks == 2 * model.config.num_hidden_layers
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    trained = model(**batch).logits
    assert not torch.allclose(trained, before)
    bottleneck.save_bottleneck_adapter(model, tmp_path)
    fresh = FAMILIES[family]()
    fresh.load_state_dict(base)
    bottleneck.load_bottleneck_adapter(fresh, tmp_path)
    assert torch.equal(fresh.eval()(**batch).logits, trained)


def test_every_bottleneck_is_on_the_way_to_the_output():
    model = bottleneck.add_bottlenecks(tiny_roberta(), 4)
    batch = {"input_ids": torch.randint(3, 60, (2, 8)), "labels": torch.tensor([0, 1])}
    model(**batch).loss.backward()
    up = [p for name, p in model.named_parameters() if ".bottleneck.up." in name]
    assert len(up) == 8 and all(p.grad.abs().max() > 0 for p in up)


def test_layer_norms_can_stay_frozen_and_the_base_always_does():
    for layer_norm in (True, False):
        model = bottleneck.add_bottlenecks(tiny_roberta(), 4, layer_norm)
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert any("LayerNorm" in name for name in trainable) == layer_norm
        rest = [n for n in trainable if ".bottleneck." not in n and "LayerNorm" not in n]
        assert rest and all(name.startswith("classifier.") for name in rest)


def test_the_size_of_table_1():
    """0.9M, the parameters of "Adapter" in Tables 1 and 3, is a bottleneck of 24 in RoBERTa-base."""
    with torch.device("meta"):
        model = bottleneck.add_bottlenecks(
            tiny_roberta(hidden_size=768, num_hidden_layers=12, intermediate_size=3072), 24, layer_norm=False
        )
    assert count_parameters(model)[0] == 24 * (2 * 768 * 24 + 24 + 768) == 903_744


def test_a_model_without_known_blocks_is_refused():
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="found 0 attention outputs and 0 feed-forward outputs in T5ForConditional"):
        bottleneck.find_outputs(model)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: {**c, "format_version": 2}, "is no valid description of a bottleneck adapter"),
        (lambda c: {**c, "size": 10**9}, "is no valid description"),
        (lambda c: {**c, "modules": ["a", "a"]}, "is no valid description"),
        (lambda c: {**c, "modules": ["h.0.attn.c_proj"]}, "names 'h.0.attn.c_proj', which RobertaFor.* lacks"),
        (lambda c: {**c, "modules": ["roberta.embeddings.LayerNorm"]}, "names 'roberta.embeddings.LayerNorm', which"),
        (lambda c: {**c, "fresh_modules": ["x"]}, "names 'x', which RobertaForSequenceClassification lacks"),
        (lambda c: {**c, "fresh_modules": [1]}, "is no valid description"),
        (lambda c: {**c, "fresh_modules": "roberta"}, "is no valid description"),
        (lambda c: {**c, "size": 5}, "has .* and RobertaForSequenceClassification needs"),
        (lambda c: [], "is no valid description"),
    ],
)
def test_damaged_adapter_files_are_refused(tmp_path, change, message):
    bottleneck.save_bottleneck_adapter(bottleneck.add_bottlenecks(tiny_roberta(), 4), tmp_path)
    path = tmp_path / bottleneck.CONFIG
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        bottleneck.load_bottleneck_adapter(tiny_roberta(), tmp_path)


def test_a_model_has_room_for_one_bottleneck_adapter(tmp_path):
    model = bottleneck.add_bottlenecks(tiny_roberta(), 4)
    bottleneck.save_bottleneck_adapter(model, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for second in (
        lambda: bottleneck.add_bottlenecks(model, 8),
        lambda: bottleneck.load_bottleneck_adapter(model, tmp_path),
    ):
        with pytest.raises(ValueError, match="has a bottleneck adapter already, .* Load its base model anew"):
            second()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    bottleneck.load_bottleneck_adapter(tiny_roberta(), tmp_path)


def test_a_missing_or_truncated_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no bottleneck adapter"):
        bottleneck.load_bottleneck_adapter(tiny_roberta(), tmp_path)
    bottleneck.save_bottleneck_adapter(bottleneck.add_bottlenecks(tiny_roberta(), 4), tmp_path)
    (tmp_path / bottleneck.WEIGHTS).write_bytes(b"1234")
    with pytest.raises(ValueError, match="cannot be read"):
        bottleneck.load_bottleneck_adapter(tiny_roberta(), tmp_path)
