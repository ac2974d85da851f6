"""A cut adapter: the same at full size, its kept components alone at a smaller one, and loaded by plain PEFT."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from autolora_trainer.lora.cut import cut, cuttable_parts, leading, singular_values
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_layers
from tests.helpers.models import tiny_gpt2, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def adapter(make=tiny_llama, name="default", base_dtype=None, **settings):
    """A model with an adapter whose updates are not zero."""
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 12, **settings}
    model = get_peft_model(make(), LoraConfig(task_type="CAUSAL_LM", **settings), adapter_name=name).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model if base_dtype is None else model.to(base_dtype)


def loaded(config, tensors, folder, make=tiny_llama):
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    torch.manual_seed(0)
    return PeftModel.from_pretrained(make(), folder).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


ODD = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.self_attn.v_proj": 3}},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_rslora": True},
    "all linear": {"target_modules": "all-linear"},
    "one block": {"layers_to_transform": [1]},
    "another name": {"name": "mine"},
    "rank above the width": {"r": 40},
}


@pytest.mark.parametrize("settings", ODD.values(), ids=ODD)
def test_at_full_size_it_computes_the_same(tmp_path, settings):
    name = settings.get("name", "default")
    model = adapter(**settings)
    before, given = {n: p.clone() for n, p in model.state_dict().items()}, logits(model)
    values = singular_values(cuttable_parts(model, name))
    config, tensors = cut(model, {module: list(range(len(own))) for module, own in values.items()}, name)
    assert all((before[n] == p).all() for n, p in model.state_dict().items())
    small = loaded(config, tensors, tmp_path)
    assert torch.allclose(logits(small), given, rtol=1e-4, atol=1e-5)
    assert all(layer.scaling["default"] == 1 for layer in lora_layers(small).values())
    assert all(isinstance(alpha, int) for key, alpha in config.alpha_pattern.items() if "embed" not in key)


def test_in_bfloat16_it_stays_so(tmp_path):
    model = adapter(base_dtype=torch.bfloat16)
    config, tensors = cut(model, {name: [0, 1, 2, 3] for name in cuttable_parts(model)})
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert torch.allclose(logits(loaded(config, tensors, tmp_path)), logits(model), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("own", [[0], [1, 3], []])
def test_the_components_that_were_chosen_are_those_that_stay(tmp_path, own):
    model = adapter()
    name = "model.layers.1.self_attn.v_proj"
    config, tensors = cut(model, {name: own, "model.layers.0.self_attn.q_proj": [2]})
    small = loaded(config, tensors, tmp_path)
    part = cuttable_parts(model)[name]
    u, s, vh = torch.linalg.svd((part.lora_B @ part.lora_A).double() * part.scaling)
    wanted = (u[:, own] * s[own]) @ vh[own]
    layers = lora_layers(small)
    assert set(layers) == {"model.layers.0.self_attn.q_proj", *([name] if own else [])}
    if own:
        assert torch.allclose(layers[name].get_delta_weight("default").double(), wanted, atol=1e-5)
        assert layers[name].lora_A["default"].weight.norm(dim=1).tolist() == pytest.approx([3**-0.5] * len(own))


def test_parts_of_a_fused_projection(tmp_path):
    torch.manual_seed(0)
    model = add_lora(tiny_gpt2(), LoraConfig(task_type="CAUSAL_LM", r=3)).eval()
    for name, part in cuttable_parts(model).items():
        part.set_lora_B(torch.randn_like(part.lora_B) * 0.3)
    assert any("#q" in name for name in cuttable_parts(model))
    config, tensors = cut(model, {name: [0, 1, 2] for name in cuttable_parts(model)})
    torch.manual_seed(0)
    assert torch.allclose(logits(loaded(config, tensors, tmp_path, tiny_gpt2)), logits(model), rtol=1e-4, atol=1e-5)


def test_leading_components_by_rank_and_by_energy():
    values = {"q": torch.tensor([3.0, 1.0, 0.0]), "v": torch.tensor([1.0, 1.0]), "zero": torch.zeros(2)}
    assert leading(values, 2) == {"q": [0, 1], "v": [0, 1], "zero": [0, 1]}
    assert leading(values, 0.9) == {"q": [0], "v": [0, 1], "zero": []}
    assert leading(values, 1.0) == {"q": [0, 1], "v": [0, 1], "zero": []}


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"use_dora": True}, "is DoRA, whose magnitudes belong to its whole update"),
        ({"bias": "lora_only"}, "trains biases, which belong to no component"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' has altered the base model"),
    ],
)
def test_what_is_not_a_product_alone_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        cut(adapter(**settings), {})


def test_adapters_of_other_kinds_names_and_states_are_refused():
    with pytest.raises(ValueError, match=r"'other' is not there \(adapters: 'default'\)"):
        cut(adapter(), {}, "other")
    with pytest.raises(ValueError, match="is of type IA3, and only LoRA is cut"):
        cut(get_peft_model(tiny_llama(), IA3Config(task_type="CAUSAL_LM")), {})
    with pytest.raises(ValueError, match="No component is left"):
        cut(adapter(), {})
    merged = adapter()
    merged.merge_adapter()
    with pytest.raises(ValueError, match="is merged into the base model"):
        cut(merged, {})
