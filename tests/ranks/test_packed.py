"""Bases that nothing dequantizes, as GPTQ's and AWQ's: searched, told apart, and left as they are."""

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from autolora_trainer import AutoLoraTrainer, build_adapter, find_ranks
from autolora_trainer.lora.base_weight import base_weight
from autolora_trainer.ranks.adapter import PACKED, QUANTIZED, fingerprint, is_other_model
from tests.helpers.models import tiny_llama
from tests.helpers.ranks import learned
from tests.helpers.rows import rows
from tests.helpers.trainings import arguments

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
TARGETS = ["q_proj", "v_proj"]


class Packed(nn.Module):
    """A linear layer of 4 bits, eight to an int32; like GPTQModel's it tells of a weight that is no tensor."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        scales = linear.weight.detach().abs().amax(1) / 7
        values = (linear.weight.detach() / scales[:, None]).round().clamp(-8, 7).int() + 8  # (m, n)
        places = 4 * torch.arange(8)
        self.register_buffer("qweight", (values.view(self.out_features, -1, 8).long() << places).sum(-1).int())
        self.register_buffer("scales", scales)

    def forward(self, x):
        values = (self.qweight.long()[..., None] >> (4 * torch.arange(8))) & 15
        weight = (values.reshape(self.out_features, self.in_features) - 8) * self.scales[:, None]
        return nn.functional.linear(x, weight)


class Gptq(Packed):
    weight = SimpleNamespace(shape=(64, 64), device=torch.device("cpu"), dtype=torch.int32)


def packed(kind=Gptq, seed=0):
    torch.manual_seed(seed)
    model = tiny_llama(**WIDE)
    for name, module in list(model.named_modules()):
        if name.endswith(tuple(TARGETS)):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, kind(module))
    return model


@pytest.fixture(autouse=True)
def peft_adapts_it(monkeypatch):
    def dispatch(target, adapter_name, config, **kwargs):
        return LoraLinear(target, adapter_name, config, **kwargs) if isinstance(target, Packed) else None

    monkeypatch.setattr("peft.tuners.lora.model.dispatch_gptq", dispatch)


def config(**changes):
    return LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, **changes)


def texts():
    return rows(32).map(lambda row: {"labels": row["input_ids"]})


def names(model):
    return [name for name, _ in model.named_modules() if name.endswith(tuple(TARGETS))]


@pytest.mark.parametrize("kind", [Gptq, Packed])
def test_a_packed_base_is_searched_and_retrained_from_there(tmp_path, kind):
    """Its fingerprint once came after the search, and took the ranks with it."""
    search = AutoLoraTrainer(
        packed(kind), arguments(tmp_path, hypergradient="first_order", size="lora:2"), train_dataset=texts(),
        peft_config=config(),
    )  # fmt: skip
    search.train()
    ranks = search.learned_ranks
    assert ranks.total_rank > 0 and ranks.base_model_fingerprint.startswith(PACKED)
    search.start_retrain(build_adapter(packed(kind), ranks, config()))
    if kind is Packed:
        return
    assert find_ranks(packed(kind), texts(), config(), size="lora:1", search_steps=6).rank_pattern


def test_packed_bases_are_told_apart():
    model = packed()
    mark = fingerprint(model, names(model))
    assert mark == fingerprint(packed(), names(model)) == fingerprint(get_peft_model(packed(), config()), names(model))
    assert mark != fingerprint(packed(seed=1), names(model))
    known = learned(dict.fromkeys(names(model), 2))
    same, other = (
        replace(known, base_model_fingerprint=fingerprint(packed(seed=seed), names(model))) for seed in (0, 1)
    )
    assert not is_other_model(same, model) and is_other_model(other, model)
    assert not is_other_model(same, tiny_llama(**WIDE))  # of which a packed model may have been made
    assert not is_other_model(replace(known, base_model_fingerprint=QUANTIZED + "0" * 16), model)


def test_weights_that_are_not_here_have_no_fingerprint():
    with torch.device("meta"):
        model = tiny_llama(**WIDE)
    assert fingerprint(model, names(model)) is None
    assert not is_other_model(learned(dict.fromkeys(names(model), 2)), model)


def test_dora_needs_the_weight(tmp_path):
    search = AutoLoraTrainer(
        packed(), arguments(tmp_path, hypergradient="first_order", size="lora:2"), train_dataset=texts(),
        peft_config=config(),
    )  # fmt: skip
    search.train()
    plain = tiny_llama(**WIDE)
    dora = build_adapter(plain, search.learned_ranks, config(use_dora=True))
    layer = next(m for m in dora.modules() if hasattr(m, "lora_magnitude_vector"))
    layer.base_layer = Gptq(layer.base_layer)
    with pytest.raises(
        ValueError, match="nothing dequantizes that of '.*q_proj' .Gptq.. Leave use_dora out, or start"
    ):
        search.start_retrain(dora)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("used", [False, True])
def test_an_8_bit_base_on_a_cpu_is_left_as_it_is(tmp_path, used):
    """PEFT's function takes its scales away there, and the next pass fails."""
    torch.manual_seed(0)
    tiny_llama(**WIDE).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", quantization_config=settings)
    whole, ids = tiny_llama(**WIDE), torch.tensor([[5, 6, 7]])
    whole.load_state_dict(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict())
    if used:
        model(input_ids=ids)
    for name in names(model):
        near = base_weight(model.get_submodule(name)) - whole.get_submodule(name).weight
        assert near.abs().max() <= whole.get_submodule(name).weight.abs().max() / 127
    assert fingerprint(model, names(model)).startswith(QUANTIZED)
    assert torch.allclose(model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=0.05)
    search = AutoLoraTrainer(
        model, arguments(tmp_path, hypergradient="first_order", size="lora:2"), train_dataset=texts(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS),
    )  # fmt: skip
    search.train()
    assert search.learned_ranks.total_rank > 0 and search.evaluate(texts())["eval_loss"] > 0
