"""An adapter on a quantized base is made smaller there: the base stays as it is, and so does what is computed."""

import importlib.util

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from autolora_trainer.find.rank_search import find_ranks
from autolora_trainer.heldout.contributions import contributions
from autolora_trainer.shrink.compressing import compress
from tests.helpers.models import tiny_llama
from tests.helpers.trainings import short_training

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
ROWS = [{"input_ids": [5, 6, 7, 8 + i % 3, 9], "labels": [5, 6, 7, 8 + i % 3, 9]} for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("quantized")
    tiny_llama(**WIDE).save_pretrained(place)
    return place


def base(folder):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", quantization_config=settings)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.tensor([ROWS[0]["input_ids"]])).logits


def state(model):
    """Every value, those beside quantized weights too, and every mode; values beside them are made anew each time."""
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return values, {name: (type(m), m.training, sorted(vars(m))) for name, m in model.named_modules()}


def same(one, other):
    assert one[1] == other[1] and one[0].keys() == other[0].keys()
    return all(torch.equal(value, other[0][name]) for name, value in one[0].items())


def test_gradients_pass_where_bitsandbytes_has_repacked(folder):
    """Evaluated before, its weights are for a kernel without gradient on some CPUs."""
    found = []
    for evaluated in (False, True):
        model = get_peft_model(base(folder), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.constant_(parameter, 0.1)
        before = logits(model) if evaluated else None
        batch = {name: torch.tensor([ROWS[0][name]]) for name in ROWS[0]}
        found.append(contributions(model, [batch]))
        assert not evaluated or torch.equal(logits(model), before)
    for name, values in found[0].items():
        assert values.abs().max() > 0 and torch.allclose(values, found[1][name], rtol=0.05, atol=1e-4)


def test_an_adapter_on_a_4_bit_base(folder, tmp_path):
    model = get_peft_model(
        base(folder), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before, whole = state(model), compress(model, rank=4)
    args = short_training(tmp_path / "args", per_device_train_batch_size=4)
    small = compress(model, ROWS, args=args, tolerance=0.2, output_dir=tmp_path / "small")
    assert same(before, state(model)) and 0 < small.file.parameters <= small.given["parameters"]
    assert small.ranks.base_model_fingerprint.startswith("quantized-")
    assert torch.allclose(logits(whole.load(base(folder))), logits(model), rtol=1e-4, atol=1e-5)
    loaded = PeftModel.from_pretrained(base(folder), tmp_path / "small")
    assert torch.allclose(logits(loaded), logits(small.load(base(folder))))


def test_ranks_for_a_4_bit_base(folder, tmp_path):
    model = base(folder)
    before = state(model)
    args = short_training(tmp_path, learning_rate=1e-2, per_device_train_batch_size=4)
    config = find_ranks(model, ROWS, args=args, size="lora:1", search_steps=6, initial_rank=4)
    assert same(before, state(model)) and config.rank_pattern
