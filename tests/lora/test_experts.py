"""What do the targets of a LoRA mean in a mixture of experts, and are its components those that compute?"""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from transformers import ViTConfig, ViTForImageClassification, XLNetConfig, XLNetForSequenceClassification

from autolora_trainer.heldout.contributions import contributions
from autolora_trainer.lora.experts import routers, share_of, stacked_weights
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.gates import gated
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.svd import in_svd_basis
from autolora_trainer.lora.targets import find_targets, target_lines, whole_layers
from autolora_trainer.search.selection import attach_gates
from tests.helpers.experts import MIXTURES, adapted_experts, ids, logits, mixture
from tests.helpers.models import tiny_gpt2, tiny_llama, tiny_roberta

ALL = LoraConfig(target_modules="all-linear", r=2)
EXPERTS = [f"model.layers.{i}.mlp.experts.{name}" for i in range(2) for name in ("gate_up_proj", "down_proj")]


def named(**settings):
    """(layers, parameters) that targets mean in Mixtral."""
    found = find_targets(mixture(), LoraConfig(**settings))
    return [name.removeprefix("model.layers.") for name in found.layers], found.parameters


# ---- targets


@pytest.mark.parametrize("kind", MIXTURES)
def test_all_linear_is_every_linear_layer_and_every_expert_and_no_router(kind):
    model = mixture(kind)
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n and "conv" not in n}
    left = ("lm_head.weight", ".gate.weight", "router.weight", "bias")
    expected = {name for name in weights if not name.endswith(left) and not name.endswith("_bias")}
    parts = lora_parts(add_lora(model, ALL))
    assert {n if n in expected else f"{n}.weight" for n in parts} == expected
    assert {part.rank for part in parts.values()} == {2} and len(expected) > 10
    assert sum(part.cost for part in parts.values()) == sum(
        weights[n].shape[:-2].numel() * sum(weights[n].shape[-2:]) for n in expected
    )


def test_what_is_said_of_them():
    said = "experts ('model.layers.0.mlp.experts.gate_up_proj' and 3 more): one rank for all experts of a parameter"
    lines = target_lines(mixture(), ALL)
    assert lines[0].startswith(said) and lines[1].startswith("routers ('model.layers.0.mlp.gate' and 1 more) are nev")
    assert len(lines) == 2 and not any(target_lines(m, ALL) for m in (tiny_roberta(), tiny_gpt2(), tiny_llama()))
    assert not target_lines(mixture(), LoraConfig(target_modules=["q_proj"]))


def test_what_peft_cannot_adapt_is_said_with_its_share():
    model = mixture("qwen3_next")
    model.config.quantization_config = SimpleNamespace()  # linear layers are packed then, and no parameters for PEFT
    found, shared = find_targets(model, ALL), [n for n, _ in model.named_parameters() if "shared_expert." in n]
    assert found.left == shared and found.parameters == list(stacked_weights(model))
    layers = [p for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n]
    share = sum(p.numel() for n, p in model.named_parameters() if n in shared) / sum(p.numel() for p in layers)
    assert share_of(model, shared) == pytest.approx(share)
    assert target_lines(model, ALL)[2].startswith(f"all-linear leaves out {shared[0]!r} and 5 more, {share:.0%} of")
    for module in model.model.layers:
        module.mlp.experts.down_proj = torch.nn.Parameter(torch.zeros(4, 16, 6, dtype=torch.uint8), False)
    assert [name for name in find_targets(model, ALL).left if "experts.down_proj" in name] == [
        f"model.layers.{i}.mlp.experts.down_proj" for i in range(2)
    ]


def test_stacked_parameters_of_other_models_are_no_experts():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
    xlnet = XLNetForSequenceClassification(XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=20))
    for model in (vit, xlnet):
        assert any(p.dim() == 3 for p in model.parameters()) and find_targets(model, ALL) is None


def test_targets_are_read_as_peft_reads_them():
    projections = [f"{i}.self_attn.{name}_proj" for i in range(2) for name in "qv"]
    assert named(target_modules=["q_proj", "w1", "w2", "w3"])[1] == EXPERTS  # names of before transformers 5
    assert named(target_modules=["q_proj", "v_proj", "gate"]) == (projections, [])  # a router
    assert named(target_modules=None, target_parameters=["experts.down_proj", "gate.weight"]) == ([], EXPERTS[1::2])
    assert named(target_modules=["q_proj", "mlp.experts.down_proj"]) == (projections[::2], EXPERTS[1::2])
    assert named(target_modules="all-linear", exclude_modules=["experts"])[1] == []
    assert named(target_modules="all-linear", exclude_modules=["experts.down_proj"])[1] == EXPERTS[::2]
    assert named(target_modules="all-linear", exclude_modules=r".*layers\.0.*")[1] == EXPERTS[2:]
    assert named(target_modules=["q_proj", "w2"], layers_to_transform=[1]) == (projections[2:3], EXPERTS[3:])
    assert named() == (projections, [])  # PEFT's default for the model
    with pytest.raises(ValueError, match="Cannot convert PEFT target.* w1 without also targeting w3"):
        named(target_modules=["w1"])
    assert whole_layers(mixture("llama4"), ALL) == "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj".split()
    assert ALL.target_modules == "all-linear" and ALL.target_parameters is None


def test_routers_beside_experts_that_are_modules():
    model = tiny_llama()
    for layer in model.model.layers:
        layer.mlp.experts, layer.mlp.gate = torch.nn.ModuleList([torch.nn.Linear(16, 16)]), torch.nn.Linear(16, 1)
    parts = lora_parts(add_lora(model, ALL))
    assert "model.layers.0.mlp.experts.0" in parts and not any(name.endswith("gate") for name in parts)
    assert routers(model) == ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]


# ---- components

ONE = {"target_parameters": ["experts.down_proj", "shared_expert.up_proj.weight"]}


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "llama4"])
def test_gates_are_in_the_weights_wherever_they_are_read(kind):
    model = adapted_experts(kind)
    with model.disable_adapter():
        base = logits(model)
    given, parts = logits(model), lora_parts(model)
    with in_svd_basis(parts):
        assert torch.allclose(logits(model), given, atol=2e-6)
    with gated(parts) as factors:
        assert torch.equal(logits(model), given)
        factors.fill(0)
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), given)
    gates = attach_gates(model, gate_scaling="plain")
    gates.logits.data.normal_(generator=torch.Generator().manual_seed(0))
    gates.refresh()
    moved = logits(model)
    assert not torch.allclose(moved, given, atol=1e-2)
    with gates.folded():
        assert torch.allclose(logits(model), moved, atol=2e-6)
        with gated(parts) as factors:  # as contributions of a search are measured
            factors.fill(0)
            assert torch.equal(logits(model), base)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).merge_and_unload()):
        assert torch.allclose(logits(other), moved, atol=2e-6)
    gates.remove()
    assert torch.equal(logits(model), given)


@pytest.mark.parametrize("settings", [{}, ONE], ids=["experts", "one matrix"])
def test_gradients_of_gates_are_those_of_differences(settings):
    model = _shared() if settings else adapted_experts("llama4")
    gates, weights = attach_gates(model.double(), constraint="none"), torch.randn(4, 10, 64).double()

    def loss():
        return (model(input_ids=ids()).logits * weights).sum()

    gates.selection = gates.selection.double().requires_grad_()
    found = torch.autograd.grad(loss(), gates.selection)[0]
    with torch.no_grad():
        for row in range(len(gates.names)):
            gates.selection[row, 0] += 1e-3
            up = loss()
            gates.selection[row, 0] -= 2e-3
            assert ((up - loss()) / 2e-3).item() == pytest.approx(found[row, 0].item(), rel=2e-3, abs=1e-3)
            gates.selection[row, 0] += 1e-3


def _shared():
    """Under a LoRA on experts, and on a linear layer's weight as a parameter."""
    model = add_lora(mixture("llama4"), LoraConfig(r=3, target_modules=[], **ONE)).eval()
    for part in lora_parts(model).values():
        part.set_lora_B(0.3 * torch.randn(part.lora_B.shape, generator=torch.Generator().manual_seed(1)))
    assert {part.experts for part in lora_parts(model).values()} == {1, 4}
    return model


def _loss(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, labels=tokens).loss.item()


def test_contributions_of_experts_add_up_to_the_gain():
    """Where every token goes to all of them: between two it jumps, and no gradient knows."""
    model, tokens = adapted_experts("qwen3_moe", model={"num_experts_per_tok": 4}, spread=0.1), ids(8)
    batches = [{"input_ids": half, "labels": half} for half in tokens.split(4)]
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    found = contributions(model, batches, points=8)
    with model.disable_adapter():
        without = _loss(model, tokens)
    gain = without - _loss(model, tokens)
    assert sum(value.sum().item() for value in found.values()) == pytest.approx(gain, rel=1e-3)
    assert {name for name in found if "experts" in name} == set(EXPERTS) and abs(gain) > 0.005
    assert all(torch.equal(before[name], parameter) for name, parameter in model.state_dict().items())
    model.get_base_model().gradient_checkpointing_enable()
    for name, value in contributions(model, batches, points=8).items():
        assert torch.allclose(value, found[name], atol=1e-7), name
