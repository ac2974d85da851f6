"""Adapters of others, read from their folder's config and header alone."""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from autolora_trainer.lora.parts import lora_layers, lora_parts
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.ranks.learned import LearnedRanks
from tests.helpers.experts import mixture
from tests.helpers.models import tiny_llama, tiny_roberta


def saved(tmp_path, model, config, **save):
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path, **save)
    return adapted


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4},
        {"r": 4, "use_rslora": True, "lora_alpha": 6},
        {"r": 2, "use_dora": True},
        {"r": 4, "rank_pattern": {"q_proj": 2, "^model.layers.1.self_attn.v_proj": 7}, "alpha_pattern": {"v_proj": 3}},
        {"r": 3, "target_modules": ["q_proj", "embed_tokens"]},
        {"r": 2, "modules_to_save": ["lm_head"]},
    ],
)
def test_ranks_scales_and_sizes_are_those_of_the_adapter(tmp_path, settings):
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 16, **settings}
    adapted = saved(tmp_path, tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **settings))
    found = AdapterFile.from_pretrained(tmp_path)
    layers = {
        name: module for name, module in adapted.get_base_model().named_modules() if isinstance(module, LoraLayer)
    }
    assert found.ranks == {name: layer.r["default"] for name, layer in layers.items()}
    assert found.scales == pytest.approx({name: layer.scaling["default"] for name, layer in layers.items()})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    factors = [t for name, t in tensors.items() if any(f"lora_{kind}" in name for kind in ("A", "B", "embedding"))]
    assert found.parameters == sum(t.numel() for t in factors)
    assert found.other_parameters == sum(t.numel() for t in tensors.values()) - found.parameters
    assert found.megabytes == pytest.approx(sum(t.nbytes for t in tensors.values()) / 1e6)
    assert LearnedRanks.from_pretrained(tmp_path).ranks == found.ranks


def test_names_of_other_adapters_and_dtypes(tmp_path):
    adapted = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=3), adapter_name="other")
    adapted.to(torch.bfloat16).save_pretrained(tmp_path)
    found = AdapterFile.from_pretrained(tmp_path / "other")
    assert set(found.ranks) == set(lora_layers(adapted, "other")) and set(found.ranks.values()) == {3}
    assert found.dtypes == ("BF16",) and found.other_parameters > 0  # the head


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},  # which PEFT turns into bare names, at two ranks
        {"target_parameters": ["experts.gate_up_proj"]},
        {"target_parameters": ["experts.gate_up_proj", "1.mlp.experts.down_proj"], "rank_pattern": {"down_proj": 3}},
        {"target_parameters": ["gate_up_proj", "down_proj"], "rank_pattern": {"0.mlp.experts.down_proj": 1}},
    ],
)
def test_experts_share_a_tensor_and_have_the_rank_of_the_config(tmp_path, kind, settings):
    """Whatever wrapper of a module they are of."""
    model = get_peft_model(mixture(kind), LoraConfig(r=2, lora_alpha=8, **{"target_modules": ["q_proj"], **settings}))
    model.save_pretrained(tmp_path)
    found, parts = AdapterFile.from_pretrained(tmp_path), lora_parts(model)
    assert found.ranks == {name: part.rank for name, part in parts.items()}
    assert found.scales == {name: part.scaling for name, part in parts.items()}
    assert found.experts == {name: part.experts for name, part in parts.items() if part.experts}
    assert found.parameters == sum(part.cost * part.rank for part in parts.values())


def test_unlike_ranks_tell_which_wrapper_is_of_which_parameter(tmp_path):
    """Of a model that has them in another order; PEFT sorts rank_pattern by name."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"experts.down_proj": 3}}
    config["target_parameters"] = ["experts.down_proj", "experts.up_proj"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    inner, outer = (f"base_model.model.h.experts{name}.lora_A.weight" for name in (".base_layer", ""))
    save_file({inner: torch.zeros(12, 5), outer: torch.zeros(8, 5)}, tmp_path / "adapter_model.safetensors")
    found = AdapterFile.from_pretrained(tmp_path)
    assert found.names == {"h.experts": "h.experts.up_proj", "h.experts.base_layer": "h.experts.down_proj"}
    assert found.ranks == {"h.experts.up_proj": 2, "h.experts.down_proj": 3} and set(found.experts.values()) == {4}


def test_parameters_that_a_config_does_not_tell_keep_the_name_of_their_module(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": ["mlp.up", "mlp.gate"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.h.mlp.lora_A.weight": torch.zeros(8, 5)}, tmp_path / "adapter_model.safetensors")
    assert AdapterFile.from_pretrained(tmp_path).ranks == {"h.mlp": 8}


def test_what_is_no_lora_adapter_is_refused(tmp_path):
    saved(tmp_path / "ia3", tiny_roberta(), IA3Config(task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="is an adapter of type 'IA3', and only LoRA has ranks"):
        LearnedRanks.from_pretrained(tmp_path / "ia3")
    saved(tmp_path / "lora", tiny_roberta(), LoraConfig(task_type="SEQ_CLS"))
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.write_bytes(b"not a header")
    with pytest.raises(ValueError, match="is no safetensors file"):
        AdapterFile.from_pretrained(tmp_path / "lora")
    weights.unlink()
    with pytest.raises(ValueError, match="it holds no weights"):
        AdapterFile.from_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="its weights are a pickle, which can run code"):
        AdapterFile.from_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="holds no adapter_config.json"):
        AdapterFile.from_pretrained(tmp_path)
