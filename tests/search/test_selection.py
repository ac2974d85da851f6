"""Is a gated model Eq. 2, on every kind of layer and under everything that a Trainer does to a model?"""

import copy
import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.lora.targets import target_lines
from autolora_trainer.search.selection import CONSTRAINTS, attach_gates, selection
from tests.helpers.models import lora, tiny_gpt2, tiny_roberta

IDS = torch.arange(3, 15).view(1, 12)


def models():
    return {
        "Linear": lora(tiny_roberta()),
        "Conv1D": lora(tiny_gpt2(), targets=("c_attn", "c_proj"), task_type="CAUSAL_LM", fan_in_fan_out=True),
    }


@pytest.fixture(params=["Linear", "Conv1D"])
def model(request):
    return models()[request.param].eval()


def randomize(gates):
    with torch.no_grad():
        gates.logits.copy_(torch.randn(gates.logits.shape))
    gates.refresh()


def test_plain_scaling_starts_as_plain_lora_and_bakes_to_what_it_computed(model):
    with torch.no_grad():
        plain = model(IDS).logits
        gates = attach_gates(model, gate_scaling="plain")
        torch.testing.assert_close(model(IDS).logits, plain, rtol=1e-5, atol=1e-6)
        randomize(gates)
        gated = model(IDS).logits
        assert not torch.allclose(gated, plain)
        gates.bake()
        torch.testing.assert_close(model(IDS).logits, gated, rtol=1e-5, atol=1e-6)


def test_uniform_logits_give_one_over_k(model):
    gates = attach_gates(model)
    assert torch.equal(gates.selection, torch.full_like(gates.selection, 1 / 4))
    assert gates.names == list(lora_layers(model))
    assert all(not name.startswith("base_model") for name in gates.names)


def test_gated_forward_equals_reweighted_lora_A(model):
    reference = copy.deepcopy(model)
    gates = attach_gates(model)
    randomize(gates)
    with torch.no_grad():
        for row, layer in enumerate(lora_layers(reference).values()):
            layer.lora_A["default"].weight.mul_(gates.selection[row][:, None])
        torch.testing.assert_close(model(IDS).logits, reference(IDS).logits, rtol=1e-5, atol=1e-6)


def test_gate_of_one_is_plain_lora_to_the_bit(model):
    plain = model(IDS).logits
    gates = attach_gates(model, "none")
    assert torch.equal(gates.selection, torch.ones_like(gates.selection))
    assert torch.equal(model(IDS).logits, plain)


def test_remove_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(IDS).logits
    gates = attach_gates(model)
    randomize(gates)
    assert not torch.equal(model(IDS).logits, plain)
    gates.remove()
    assert torch.equal(model(IDS).logits, plain)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not layer.lora_A["default"]._forward_hooks for layer in lora_layers(model).values())


def test_baked_adapter_computes_the_same_without_gates(model):
    gates = attach_gates(model)
    randomize(gates)
    gated = model(IDS).logits
    gates.bake()
    torch.testing.assert_close(model(IDS).logits, gated, rtol=1e-5, atol=1e-6)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, gated, rtol=1e-4, atol=1e-5)


def test_gates_are_no_part_of_the_model(model):
    parameters = [name for name, _ in model.named_parameters()]
    gates = attach_gates(model)
    assert [name for name, _ in model.named_parameters()] == parameters
    assert not any(parameter is gates.logits for parameter in model.parameters())
    assert gates.logits.dtype == torch.float32


def test_weight_step_asks_no_gradient_of_the_gates(model):
    gates = attach_gates(model)
    model(IDS).logits.sum().backward()
    assert gates.selection.grad is None and not gates.selection.requires_grad


def selection_gradient(model, gates, call=None):
    gates.selection.requires_grad_(True)
    logits = (model if call is None else call)(input_ids=IDS).logits
    (gradient,) = torch.autograd.grad(logits.float().pow(2).sum(), gates.selection)
    gates.selection.requires_grad_(False)
    return gradient


def test_gradient_survives_activation_checkpointing():
    model = lora(tiny_roberta()).train()
    gates = attach_gates(model)
    randomize(gates)
    plain = selection_gradient(model, gates)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(selection_gradient(model, gates), plain)


def test_autocast_computes_in_bf16_and_keeps_the_gates_in_fp32(model):
    gates = attach_gates(model)
    randomize(gates)
    plain = selection_gradient(model, gates)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = selection_gradient(model, gates)
    assert rounded.dtype == torch.float32 and gates.selection.dtype == torch.float32
    assert not torch.equal(rounded, plain)
    torch.testing.assert_close(rounded, plain, rtol=0.1, atol=0.02 * plain.abs().max().item())


def test_compiled_model_sees_new_selection():
    model = lora(tiny_roberta()).eval()
    gates = attach_gates(model)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        first = compiled(input_ids=IDS).logits
        randomize(gates)
        torch.testing.assert_close(compiled(input_ids=IDS).logits, model(input_ids=IDS).logits)
        assert not torch.allclose(first, model(input_ids=IDS).logits)
    torch.testing.assert_close(selection_gradient(model, gates, compiled), selection_gradient(model, gates))


def test_trained_head_is_not_gated():
    model = lora(tiny_roberta())
    assert not any("classifier" in name for name in attach_gates(model).names)


def test_pull_back_is_the_chain_rule_through_eq_3():
    gates = attach_gates(lora(tiny_roberta()))
    randomize(gates)
    gradient = torch.randn(gates.selection.shape)
    alpha = gates.selection
    expected = alpha * (gradient - (alpha * gradient).sum(dim=-1, keepdim=True))
    torch.testing.assert_close(gates.pull_back(gradient), expected)


@pytest.mark.parametrize(
    "constraint, expected, threshold",
    [
        ("softmax", F.softmax(torch.tensor([1.0, 0.0, -1.0]), -1), 1 / 3),
        ("sigmoid", torch.sigmoid(torch.tensor([1.0, 0.0, -1.0])), 0.5),
        ("none", torch.tensor([1.0, 0.0, -1.0]), 0.0),
    ],
)
def test_each_constraint_of_section_5_5_has_its_selection_and_its_threshold(constraint, expected, threshold):
    alpha = selection(torch.tensor([[1.0, 0.0, -1.0]]), constraint)
    torch.testing.assert_close(alpha[0], expected)
    torch.testing.assert_close(CONSTRAINTS[constraint].threshold(alpha), torch.tensor([[threshold]]))


def test_model_without_lora_is_refused():
    with pytest.raises(ValueError, match="attach_gates found no LoRA layer in RobertaForSequenceClassification"):
        attach_gates(tiny_roberta())


def test_unequal_ranks_are_refused():
    config = LoraConfig(r=4, target_modules=["query", "value"], rank_pattern={"layer.0.attention.self.query": 2})
    with pytest.raises(ValueError, match="needs the same rank k in every LoRA layer, got 2 in .* and 4"):
        attach_gates(get_peft_model(tiny_roberta(), config))


def test_unequal_scales_are_refused():
    config = LoraConfig(r=4, target_modules=["query", "value"], alpha_pattern={"layer.0.attention.self.value": 2})
    with pytest.raises(ValueError, match="the same scale in every LoRA layer, got 2 in .* and 0.5 .* alpha_pattern"):
        attach_gates(get_peft_model(tiny_roberta(), config))


def test_an_adapter_of_another_name_is_named():
    model = get_peft_model(tiny_roberta(), LoraConfig(r=4, target_modules=["query"]), adapter_name="mine")
    with pytest.raises(ValueError, match="^attach_gates found no adapter 'default', only 'mine'. Leave adapter_name"):
        attach_gates(model)
    assert attach_gates(model, adapter_name="mine").initial_rank == 4


@pytest.mark.parametrize("scheme", ["pissa", "pissa_niter_2", "olora"])
def test_an_initialization_that_alters_the_base_model_is_refused(scheme):
    config = LoraConfig(r=4, target_modules=["query"], init_lora_weights=scheme)
    with pytest.raises(ValueError, match=f"needs the base model as it is, and init_lora_weights='{scheme}' alters it"):
        attach_gates(get_peft_model(tiny_roberta(), config))
    assert attach_gates(get_peft_model(tiny_roberta(), dataclasses.replace(config, init_lora_weights="gaussian")))


def test_embedding_and_dora_are_refused():
    with pytest.raises(
        ValueError, match="gates linear layers, got an embedding at 'roberta.embeddings.word_embeddings'"
    ):
        attach_gates(get_peft_model(tiny_roberta(), LoraConfig(target_modules=["query", "word_embeddings"])))
    with pytest.raises(ValueError, match="gates plain LoRA, got DoraLinearVariant"):
        attach_gates(get_peft_model(tiny_roberta(), LoraConfig(target_modules=["query"], use_dora=True)))


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"target_modules": ["attention"]}, "got MultiheadAttention at 'attention'. Leave it out: exclude"),
        ({"target_modules": ["out_proj"]}, "got MultiheadAttention at 'attention.out_proj'. Leave it out"),
        ({"target_parameters": ["out_proj.weight"]}, "got MultiheadAttention at 'attention.out_proj.weight'. Leave"),
    ],
)
def test_layers_whose_lora_A_is_never_called_are_refused(config, sentence):
    """PEFT merges them into the weight: a hook would never run, and the ranks would be noise."""
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(16, 2), "linear": torch.nn.Linear(16, 16)})
    with pytest.raises(ValueError, match=f"^The search gates linear layers, {sentence}"):
        attach_gates(get_peft_model(model, LoraConfig(r=4, **config)))


@pytest.mark.parametrize("targets", ["all-linear", ["out_proj", "fc1"], r".*\.(out_proj|fc1)"])
def test_what_attention_of_torch_only_reads_is_left_out(targets):
    """SigLIP pools by nn.MultiheadAttention, which calls no out_proj; those of its blocks have the same name."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SiglipVisionModel(SiglipVisionConfig(**small, image_size=8, patch_size=4))
    config = LoraConfig(target_modules=targets)
    (line,) = target_lines(model, config)
    assert line.startswith(
        "'head.attention.out_proj' left out: nn.MultiheadAttention reads its weight and calls no la"
    )
    assert target_lines(model, LoraConfig(target_modules=["fc1"])) == []
    adapted = add_lora(model, config, rank=4)
    gates = attach_gates(adapted)
    assert "head.attention.out_proj" not in gates.names
    assert {"encoder.layers.0.self_attn.out_proj", "encoder.layers.0.mlp.fc1", "head.mlp.fc1"} <= set(gates.names)
    adapted(pixel_values=torch.randn(2, 3, 8, 8)).pooler_output.sum().backward()
    factors = [p.grad for n, p in adapted.named_parameters() if "lora_B" in n]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in factors)  # all that is left is read
