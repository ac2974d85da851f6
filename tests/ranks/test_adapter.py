"""Does an adapter have the ranks and the scale that were learned, saved, loaded and served?"""

import copy
import random

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from autolora_trainer.lora.parts import lora_layers, lora_parts
from autolora_trainer.ranks.adapter import build_adapter, verify_ranks
from tests.helpers.models import tiny_roberta
from tests.helpers.ranks import learned, names


def twelve_layers():
    return tiny_roberta(num_hidden_layers=12)


@pytest.mark.parametrize("scaling", ["constant", "paper"])
def test_ranks_survive_building_saving_and_loading(tmp_path, scaling):
    """24 of 24 modules, layers 1 and 11 apart, some of rank 0."""
    model = twelve_layers()
    generator = random.Random(1)
    ranks = learned({name: generator.randint(0, 8) for name in names(model)})
    adapted = build_adapter(model, ranks, LoraConfig(task_type="SEQ_CLS", lora_alpha=16), scaling)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(twelve_layers(), tmp_path)
    for built in (adapted, loaded):
        layers = lora_layers(built)
        assert {name: layer.r["default"] for name, layer in layers.items()} == {
            n: r for n, r in ranks.ranks.items() if r
        }
        for name, layer in layers.items():
            kept = sum(rank > 0 for rank in ranks.ranks.values())  # a module of rank 0 counts for nothing
            expected = 16 * kept / ranks.total_rank if scaling == "constant" else 16 / ranks.ranks[name]
            assert layer.scaling["default"] == pytest.approx(expected)


def test_constant_scaling_holds_for_rslora():
    ranks = learned({"a.query": 2, "a.value": 8}, initial_rank=8)
    config = ranks.to_lora_config(lora_alpha=16, use_rslora=True)
    for key, rank in config.rank_pattern.items():
        assert config.alpha_pattern[key] / rank**0.5 == pytest.approx(16 / 5**0.5)  # 5: the mean rank


def test_servers_that_know_one_scale_compute_the_same():
    config = learned({"a.query": 2, "a.value": 5}).to_lora_config(lora_alpha=16)
    scale = 16 / 3.5  # of plain LoRA of the same size
    assert config.lora_alpha / config.r == pytest.approx(scale) and config.r == 5
    assert all(config.alpha_pattern[key] / r == pytest.approx(scale) for key, r in config.rank_pattern.items())


def test_uniform_ranks_have_the_scale_of_plain_lora():
    for rank in (1, 2, 8):
        config = learned({"a.query": rank, "a.value": rank}).to_lora_config(lora_alpha=16)
        assert config.lora_alpha / config.r == 16 / rank


def test_a_rank_that_was_not_built_stops_the_run():
    model = get_peft_model(twelve_layers(), LoraConfig(r=4, target_modules=["query", "value"]))
    ranks = learned({name: 4 for name in names(twelve_layers())})
    verify_ranks(model, ranks)
    wrong = learned({**ranks.ranks, names(twelve_layers())[3]: 5})
    with pytest.raises(
        ValueError, match="'roberta.encoder.layer.1.attention.self.value' should have rank 5, and .* gives it 4"
    ):
        verify_ranks(model, wrong)


def test_ranks_of_another_model_are_refused():
    with pytest.raises(
        ValueError,
        match="ranks.json names 24 modules, and the model lacks 20 of them; the first is 'roberta.encoder.layer.2",
    ):
        build_adapter(tiny_roberta(), learned({name: 4 for name in names(twelve_layers())}))


def test_all_ranks_zero_are_refused():
    with pytest.raises(ValueError, match="Every module has rank 0"):
        learned({"a.query": 0}).to_lora_config()


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("other", [(3, 1), (1, 4)], ids=str)
def test_two_adapters_become_one_as_the_docs_say(tmp_path, kind, other):
    base, targets = tiny_roberta(num_hidden_layers=1), names(tiny_roberta(num_hidden_layers=1))
    torch.manual_seed(0)
    for place, own in (("a", (1, 4)), ("b", other)):
        adapted = build_adapter(copy.deepcopy(base), learned(dict(zip(targets, own))), LoraConfig(lora_alpha=16))
        for part in lora_parts(adapted).values():
            part.set_lora_B(torch.randn_like(part.lora_B))
        adapted.save_pretrained(tmp_path / place)
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "mix", combination_type=kind, svd_rank=8)
    model.save_pretrained(tmp_path / "mix", selected_adapters=["mix"])
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "mix" / "mix")
    for name, layer in lora_layers(loaded).items():
        own = lora_layers(model, "a")[name]
        expected = (own.get_delta_weight("a") + own.get_delta_weight("b")) / 2
        torch.testing.assert_close(layer.get_delta_weight("default"), expected, rtol=1e-3, atol=1e-5)
