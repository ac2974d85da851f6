"""Does EVA give ranks and first directions as PEFT's own, by the variance of the inputs?"""

import json
import shutil

import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.eva import initialize_lora_eva_weights
from transformers import GPT2ForSequenceClassification

import run_glue
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.methods import eva
from autolora_trainer.methods.base import count_parameters
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from tests.helpers.commands import command
from tests.helpers.methods import COST, collate, prepared
from tests.helpers.models import tiny_gpt2, tiny_roberta
from tests.helpers.rows import rows


def anisotropic():
    """A RoBERTa whose second block sees inputs along one direction, and whose first sees all directions."""
    torch.manual_seed(0)
    model = tiny_roberta().eval()
    norm = model.roberta.encoder.layer[0].output.LayerNorm
    norm.weight.data = torch.full((16,), 0.05)
    norm.weight.data[3] = 5.0
    return model


def calibration():
    return rows(64, length=10)


def settings(**changes):
    return LoraConfig(**{"task_type": "SEQ_CLS", "target_modules": ["query", "value"], **changes})


def test_eva_gives_more_ranks_where_inputs_have_more_directions():
    start = {f"roberta.encoder.layer.{b}.attention.self.{name}": 2 for b in range(2) for name in ("query", "value")}
    model = anisotropic()
    components, seen = eva.eva_components(model, calibration(), collate, settings, start, batch_size=8)
    ranks = {name: len(rows) for name, rows in components.items()}
    assert sum(ranks.values()) == 8 and max(ranks.values()) <= eva.RHO * 2
    first, second = (sum(rank for name, rank in ranks.items() if f"layer.{b}." in name) for b in range(2))
    assert first > second  # uniform ranks would be equal
    assert 0 < seen["forward_passes"] < 100 and seen["examples"] == 8 * seen["forward_passes"]
    value = components["roberta.encoder.layer.1.attention.self.value"]
    inputs = model.roberta(
        **{k: v for k, v in collate(calibration()).items() if k != "labels"}, output_hidden_states=True
    )
    centred = inputs.hidden_states[1].flatten(0, 1).detach()
    direction = torch.linalg.svd(centred - centred.mean(0))[2][0]
    assert abs(float(torch.dot(value[0], direction))) > 0.99


def test_eva_is_pefts():
    """The ranks and the first lora_A that PEFT's own `initialize_lora_eva_weights` gives."""
    start = {f"roberta.encoder.layer.{b}.attention.self.{name}": 2 for b in range(2) for name in ("query", "value")}
    components, _ = eva.eva_components(anisotropic(), calibration(), collate, settings, start, batch_size=8, seed=3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3)).tolist()
    batches = [collate([calibration()[i] for i in order[first : first + 8]]) for first in range(0, 64, 8)]
    batches = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    config = settings(r=2, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0))
    model = get_peft_model(anisotropic(), config)
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    for name, layer in lora_layers(model).items():
        assert layer.r["default"] == len(components[name])
        torch.testing.assert_close(layer.lora_A["default"].weight.detach(), components[name], atol=1e-4, rtol=1e-3)


def test_eva_run_starts_from_its_components_and_saves_plain_lora(place, tmp_path):
    job = prepared(place, tmp_path / "o", method="eva", size="lora:2")
    with job.folder.claim({}):
        built = job.request.method.prepare(job)()
    assert built.ranks.rank_rule == "eva" and built.ranks.total_rank == 8 and set(built.phases) == {"calibration"}
    for layer in lora_layers(built.model).values():
        a = layer.lora_A["default"].weight.detach()
        torch.testing.assert_close(a @ a.T, torch.eye(len(a)), atol=1e-4, rtol=0)  # directions, not random numbers
        assert not layer.lora_B["default"].weight.any()
    results = run_glue.main(command(place, tmp_path / "p", method="eva", size="lora:2"))
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["init_lora_weights"] is True and config["eva_config"] is None
    cost = json.loads((tmp_path / "p" / "cost.json").read_text())
    assert cost["calibration"]["forward_passes"] > 0 and cost["calibration"]["passes"] == 0
    assert results["adapter_params"] == 8 * COST


def test_eva_works_on_whole_fused_projections():
    model = tiny_gpt2()
    probe = add_lora(tiny_gpt2(), LoraConfig(task_type="CAUSAL_LM", r=1))
    costs = eva.layer_costs(lora_layers(probe))
    assert costs == {f"transformer.h.{b}.attn.c_attn": 16 + 48 for b in range(2)}
    data = [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"],
             "labels": [-100] * 5 + row["input_ids"][5:]} for row in rows(32)]  # fmt: skip
    components, _ = eva.eva_components(
        model,
        data,
        collate,
        lambda **changes: LoraConfig(task_type="CAUSAL_LM", **changes),
        dict.fromkeys(costs, 2),
        batch_size=8,
    )
    ranks = {name: ModuleRank(len(rows)) for name, rows in components.items()}
    assert sum(module.rank for module in ranks.values()) == 4
    adapted = build_adapter(tiny_gpt2(), LearnedRanks(ranks), LoraConfig(task_type="CAUSAL_LM"))
    assert count_parameters(adapted) == (4 * (16 + 48), 0)


def gpt2_classifier(place, folder):
    """A checkpoint of a tiny GPT-2 for sequences, with the tokenizer of the other one."""
    shutil.copytree(place / "tiny-roberta", folder)
    config = tiny_gpt2().config
    config.num_labels, config.pad_token_id = 2, 1
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_eva_needs_a_component_of_every_whole_module(place, tmp_path):
    """A component of a fused projection's query takes 16 + 16 parameters, one of the whole 16 + 48."""
    settings = {"method": "eva", "lora_target_modules": "c_attn#q", "model_name_or_path": tmp_path / "gpt2"}
    gpt2_classifier(place, tmp_path / "gpt2")
    with pytest.raises(UsageError, match="a size of 64 adapter .* none: rank 1 .* has 128. Raise .* lora:2.$"):
        run_glue.main(command(place, tmp_path / "o", size="lora:1", **settings))
    assert not (tmp_path / "o").exists()
    results = run_glue.main(command(place, tmp_path / "o", size="lora:2", max_steps=1, **settings))
    assert results["adapter_params"] == 128
