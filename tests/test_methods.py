"""The methods of `--method`: does each train what it should, meet its size, come back to its score, and resume?"""

import importlib.util
import json
import math
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    RobertaForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import run_glue
from autolora_trainer.checks import check_model, check_request, find_resume, is_output
from autolora_trainer.errors import UsageError
from autolora_trainer.fused import adapt, lora_layers
from autolora_trainer.methods import CHECKS, METHODS, adapter, eva, grid, linear, peft, svd
from autolora_trainer.methods.random import random_ranks
from autolora_trainer.methods.uniform import uniform_ranks
from autolora_trainer.pipeline import Run, count_parameters, make_trainer
from autolora_trainer.ranks import LearnedRanks, ModuleRank
from autolora_trainer.retrain import build_adapter
from autolora_trainer.script_arguments import parse_arguments
from autolora_trainer.trainer_utils import RetrainTrainer
from tests.test_scripts import accuracy, command, interrupt
from tests.tiny import rows, tiny_gpt2, tiny_roberta

HEAD = 16 * 17 + 16 * 2 + 2  # of the tiny RoBERTa: dense and out_proj
NORMS = 2 * 16 * 5
COST = 16 + 16  # one component of query or value; there are four modules


def prepared(place, output, **changes) -> Run:
    """A run that has been checked, before its method builds."""
    run = Run(*parse_arguments(command(place, output, **changes)), run_glue.GlueApplication())
    check_request(run)
    run.resume = find_resume(run)
    run.application.load_data(run)
    check_model(run)
    CHECKS.get(run.method.method, lambda run: None)(run)
    os.makedirs(output, exist_ok=True)
    return run


def tiny_llama(kind=LlamaForCausalLM, **changes):
    config = dict(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    return kind(LlamaConfig(**{**config, **changes}))


# ---- what tells the methods apart: what they train, how much of it, and what they leave

# (arguments, what is trained besides the head, adapter parameters, the file that is left)
QUERY_VALUE = r"attention\.self\.(query|value)\.lora_[AB]\.default\.weight"
PEFT_FILE = "adapter_model.safetensors"
IDENTITIES = {
    "full": ({}, r"roberta\..*(weight|bias)", 6176, "model.safetensors"),
    "adapter": (
        {"adapter_size": 8},
        r"output\.dense\.bottleneck\.(down|up)\.(weight|bias)|LayerNorm\.(weight|bias)",
        4 * (2 * 16 * 8 + 8 + 16) + NORMS,
        "bottleneck_adapter.safetensors",
    ),
    "lora": ({"lora_r": 2}, QUERY_VALUE, 4 * 2 * COST, PEFT_FILE),
    "eva": ({"rank_budget": "lora:2"}, QUERY_VALUE, 4 * 2 * COST, PEFT_FILE),
    "linear": ({"rank_budget": "lora:2"}, QUERY_VALUE, 4 * 2 * COST, PEFT_FILE),
    "svd": ({"rank_budget": "lora:1"}, QUERY_VALUE, 4 * COST, PEFT_FILE),
    "ia3": ({}, r"(key|value|output\.dense)\.ia3_l\.default", 2 * (16 + 16 + 16 + 32), PEFT_FILE),
    "prefix_tuning": ({}, r"prompt_encoder\.default\.embedding\.weight", 20 * 2 * 2 * 16, PEFT_FILE),
    "prompt_tuning": ({}, r"prompt_encoder\.default\.embedding\.weight", 20 * 16, PEFT_FILE),
    "p_tuning": (
        {},
        r"prompt_encoder\.default\.(embedding|mlp_head\.\d)\.(weight|bias)",
        20 * 16 + 3 * 272,
        PEFT_FILE,
    ),
    "peft": (
        {"peft_type": "vera", "peft_kwargs": '{"r": 8}'},
        r"(query|value)\.vera_lambda_[bd]\.default",
        4 * (16 + 8),
        PEFT_FILE,
    ),
}


@pytest.mark.parametrize("method", IDENTITIES)
def test_a_method_trains_its_own_parameters_and_the_head(place, tmp_path, method):
    arguments, pattern, _, _ = IDENTITIES[method]
    run = prepared(place, tmp_path / "o", method=method, max_steps=3, **arguments)
    model = METHODS[method](run).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    make_trainer(run, model, []).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    head = {name for name in changed if re.search(r"classifier\.(modules_to_save\.default\.)?(dense|out_proj)", name)}
    assert len(head) == 4
    assert [name for name in changed - head if not re.search(f"({pattern})$", name)] == []
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    unmoved = {name for name in trainable - changed if "key.bias" not in name}  # softmax ignores it
    assert unmoved == set(), "these parameters have not changed"


@pytest.mark.parametrize("method", IDENTITIES)
def test_a_method_counts_its_parameters_and_comes_back_to_its_score(place, tmp_path, method):
    arguments, _, parameters, file = IDENTITIES[method]
    output = tmp_path / "o"
    results = run_glue.main(command(place, output, method=method, **arguments))
    assert (results["adapter_params"], results["head_params"]) == (parameters, HEAD)
    assert results["method"] == method and (output / file).is_file()
    weights = {name for _, _, _, name in IDENTITIES.values()}
    assert [name for name in weights - {file} if (output / name).exists()] == []
    again = run_glue.main(command(place, output) + ["--do_eval"])
    assert again["eval_loss"] == results["eval_loss"] and again["eval_accuracy"] == results["eval_accuracy"]


def test_full_is_an_ordinary_checkpoint(place, tmp_path):
    results = run_glue.main(command(place, tmp_path / "o", method="full"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o")
    assert accuracy(place, model) == results["eval_accuracy"]
    assert set(load_file(tmp_path / "o" / "model.safetensors")) == set(model.state_dict())
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_cards_of_methods_without_peft_do_not_name_it(place, tmp_path):
    for method, library, call in (
        ("full", "transformers", "AutoModelForSequenceClassification.from_pretrained(name)"),
        ("adapter", "autolora_trainer", "model = load_bottleneck_adapter(model, adapter)"),
    ):
        run_glue.main(command(place, tmp_path / method, method=method, max_steps=1))
        card = ModelCard.load(tmp_path / method / "README.md")
        assert card.data.library_name == library and "peft" not in str(card).lower() and call in str(card)


def test_switching_the_method_leaves_nothing_of_the_old_one(place, tmp_path):
    run_glue.main(command(place, tmp_path / "o", method="full", max_steps=1))
    run_glue.main([*command(place, tmp_path / "o", method="adapter", max_steps=1), "--overwrite"])
    assert not (tmp_path / "o" / "model.safetensors").exists() and not (tmp_path / "o" / "config.json").exists()
    assert is_output("model-00001-of-00002.safetensors") and is_output("grid") and not is_output("model-x.safetensors")


def test_parameters_of_every_kind_of_model():
    assert count_parameters(adapt(tiny_gpt2(), LoraConfig(task_type="CAUSAL_LM", r=3))) == (2 * 2 * 3 * COST, 0)
    dora = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=2, use_dora=True))
    assert count_parameters(dora) == (4 * (2 * COST + 16), HEAD)
    assert count_parameters(adapter.add_bottlenecks(tiny_gpt2(), 4, layer_norm=False)) == (4 * (2 * 16 * 4 + 20), 0)
    for kind in (GPT2ForSequenceClassification, LlamaForSequenceClassification):
        model = tiny_llama(kind) if kind is LlamaForSequenceClassification else kind(tiny_gpt2().config)
        assert count_parameters(model) == (sum(p.numel() for p in model.parameters()) - 32, 32)


# ---- an interrupted run goes on as if it had not been


@pytest.mark.parametrize(
    "method, file",
    [
        ("full", "model.safetensors"),
        ("adapter", "bottleneck_adapter.safetensors"),
        ("p_tuning", PEFT_FILE),  # of which PEFT keeps only the output of an encoder
        ("eva", PEFT_FILE),
        ("svd", PEFT_FILE),
    ],
)
def test_resume_is_exact(place, tmp_path, monkeypatch, method, file):
    settings = {"method": method, "save_strategy": "steps", "save_steps": 4}
    if method in ("eva", "svd"):
        settings["rank_budget"] = "lora:1"
    whole = run_glue.main(command(place, tmp_path / "whole", **settings))
    trainer = {"adapter": adapter.BottleneckTrainer, "p_tuning": peft.PeftTypeTrainer}.get(method, RetrainTrainer)
    with monkeypatch.context() as patch:
        interrupt(patch, trainer, 10)
        with pytest.raises(KeyboardInterrupt):
            run_glue.main(command(place, tmp_path / "part", **settings))
    if method == "eva":
        monkeypatch.setattr(eva, "calibrate", None)  # it is not repeated
    resumed = run_glue.main([*command(place, tmp_path / "part", **settings), "--resume_from_checkpoint"])
    assert resumed["resumed_from"] == {"phase": "retrain", "step": 8}
    assert resumed["eval_loss"] == whole["eval_loss"]
    assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("method", ["full", "adapter", "p_tuning"])
def test_the_best_checkpoint_comes_back(place, tmp_path, method):
    settings = {"method": method, "save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    run_glue.main(command(place, tmp_path / "o", metric_for_best_model="loss", **settings))
    state = json.loads((tmp_path / "o" / "trainer_state.json").read_text())
    best = min(entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry and entry["epoch"] > 0)
    results = json.loads((tmp_path / "o" / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(best, rel=1e-6)


# ---- bottleneck adapters

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FEW = {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
OWN_TOKENS = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
NARROW = {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 40}
FAMILIES = {
    "roberta": tiny_roberta,
    "roberta tokens": lambda: RobertaForTokenClassification(tiny_roberta().config),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=32)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**FEW)),
    "modernbert": lambda: ModernBertForSequenceClassification(
        ModernBertConfig(**SMALL, **OWN_TOKENS, intermediate_size=32)
    ),
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, **NARROW)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=32)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bottlenecks_start_as_the_identity_and_come_back_from_their_files(tmp_path, family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = {"input_ids": torch.randint(3, 60, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    before = model(**batch).logits
    adapter.add_bottlenecks(model, 4, task_type="SEQ_CLS")
    assert torch.equal(model(**batch).logits, before)
    blocks = len({re.search(r"\d+", name)[0] for name in model.bottleneck_config["modules"]})
    assert len(model.bottleneck_config["modules"]) == 2 * blocks == 2 * model.config.num_hidden_layers
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    trained = model(**batch).logits
    assert not torch.allclose(trained, before)
    adapter.save_bottleneck_adapter(model, tmp_path)
    fresh = FAMILIES[family]()
    fresh.load_state_dict(base)
    adapter.load_bottleneck_adapter(fresh, tmp_path)
    assert torch.equal(fresh.eval()(**batch).logits, trained)


def test_every_bottleneck_is_on_the_way_to_the_output():
    model = adapter.add_bottlenecks(tiny_roberta(), 4)
    batch = {"input_ids": torch.randint(3, 60, (2, 8)), "labels": torch.tensor([0, 1])}
    model(**batch).loss.backward()
    up = [p for name, p in model.named_parameters() if ".bottleneck.up." in name]
    assert len(up) == 8 and all(p.grad.abs().max() > 0 for p in up)


def test_layer_norms_can_stay_frozen_and_the_base_always_does():
    for layer_norm in (True, False):
        model = adapter.add_bottlenecks(tiny_roberta(), 4, layer_norm)
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert any("LayerNorm" in name for name in trainable) == layer_norm
        rest = [n for n in trainable if ".bottleneck." not in n and "LayerNorm" not in n]
        assert rest and all(name.startswith("classifier.") for name in rest)


def test_the_size_of_table_1():
    """0.9M, the parameters of "Adapter" in Tables 1 and 3, is a bottleneck of 24 in RoBERTa-base."""
    with torch.device("meta"):
        model = adapter.add_bottlenecks(
            tiny_roberta(hidden_size=768, num_hidden_layers=12, intermediate_size=3072), 24, layer_norm=False
        )
    assert count_parameters(model)[0] == 24 * (2 * 768 * 24 + 24 + 768) == 903_744


def test_a_model_without_known_blocks_is_refused():
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="found 0 attention outputs and 0 feed-forward outputs in T5ForConditional"):
        adapter.find_outputs(model)


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
    adapter.save_bottleneck_adapter(adapter.add_bottlenecks(tiny_roberta(), 4), tmp_path)
    path = tmp_path / adapter.CONFIG
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        adapter.load_bottleneck_adapter(tiny_roberta(), tmp_path)


def test_a_model_has_room_for_one_bottleneck_adapter(tmp_path):
    model = adapter.add_bottlenecks(tiny_roberta(), 4)
    adapter.save_bottleneck_adapter(model, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for second in (
        lambda: adapter.add_bottlenecks(model, 8),
        lambda: adapter.load_bottleneck_adapter(model, tmp_path),
    ):
        with pytest.raises(ValueError, match="has a bottleneck adapter already, .* Load its base model anew"):
            second()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    adapter.load_bottleneck_adapter(tiny_roberta(), tmp_path)


def test_a_missing_or_truncated_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no bottleneck adapter"):
        adapter.load_bottleneck_adapter(tiny_roberta(), tmp_path)
    adapter.save_bottleneck_adapter(adapter.add_bottlenecks(tiny_roberta(), 4), tmp_path)
    (tmp_path / adapter.WEIGHTS).write_bytes(b"1234")
    with pytest.raises(ValueError, match="cannot be read"):
        adapter.load_bottleneck_adapter(tiny_roberta(), tmp_path)


# ---- patterns

MODULES = {f"layer.{block}.{name}": COST for block in range(12) for name in ("query", "value")}


@pytest.mark.parametrize("total", [24, 25, 47, 96, 97, 192])
def test_patterns_have_the_asked_size(total):
    size = total * COST
    patterns = {
        "uniform": uniform_ranks(MODULES, size),
        "random": random_ranks(MODULES, size, capacity=8, min_rank=1, seed=0),
        "linear": linear.linear_ranks(MODULES, size),
    }
    assert {name: sum(ranks.values()) for name, ranks in patterns.items()} == dict.fromkeys(patterns, total)
    assert all(min(ranks.values()) >= 1 for ranks in patterns.values())
    by_block = [[patterns["linear"][f"layer.{b}.{name}"] for b in range(12)] for name in ("query", "value")]
    assert all(ranks == sorted(ranks) for ranks in by_block)


def test_linear_ranks_go_from_half_to_one_and_a_half_times_the_mean():
    ranks = linear.linear_ranks(MODULES, 24 * 8 * COST)
    assert [ranks[f"layer.{block}.query"] for block in (0, 11)] == [4, 12]
    assert linear.linear_ranks({"0.q": 10, "1.q": 30}, 70) == {"0.q": 1, "1.q": 2}  # unequal shapes: within the size
    assert linear.linear_ranks({"0.q": 10, "1.q": 10, "2.q": 10}, 20, min_rank=0) == {"0.q": 0, "1.q": 1, "2.q": 1}


def test_the_cut_keeps_the_largest_singular_values_of_all_modules(place, tmp_path):
    """Against ranks counted by hand, on the adapter that was cut."""
    wide = adapt(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    for scale, layer in enumerate(lora_layers(wide).values(), 1):
        layer.lora_B["default"].weight.data.normal_().mul_(scale)
    values = torch.stack(
        [torch.linalg.svdvals(layer.get_delta_weight("default"))[:4] for layer in lora_layers(wide).values()]
    ).detach()
    ranks = svd.ranks_by_singular_values(wide, 7 * COST, min_rank=0)
    level = values.flatten().sort(descending=True).values[6]
    assert list(ranks.values()) == (values >= level - 1e-5).sum(dim=1).tolist() and sum(ranks.values()) == 7
    assert svd.ranks_by_singular_values(wide, 4 * COST) == dict.fromkeys(ranks, 1)


def test_a_cut_to_everything_is_plain_lora(place, tmp_path):
    cut = run_glue.main(command(place, tmp_path / "cut", method="svd", rank_budget="lora:4"))
    lora = run_glue.main(command(place, tmp_path / "lora", method="lora", lora_r=4))
    assert cut["eval_loss"] == pytest.approx(lora["eval_loss"], abs=1e-5)
    assert LearnedRanks.load(tmp_path / "cut" / "ranks.json").rank_rule == "svd"


# ---- EVA


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


def collate(batch):
    return {key: torch.tensor([row[key] for row in batch]) for key in batch[0]}


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
    run = prepared(place, tmp_path / "o", method="eva", rank_budget="lora:2")
    built = eva.build(run)
    assert built.ranks.rank_rule == "eva" and built.ranks.total_rank == 8 and set(built.phases) == {"calibration"}
    for layer in lora_layers(built.model).values():
        a = layer.lora_A["default"].weight.detach()
        torch.testing.assert_close(a @ a.T, torch.eye(len(a)), atol=1e-4, rtol=0)  # directions, not random numbers
        assert not layer.lora_B["default"].weight.any()
    results = run_glue.main(command(place, tmp_path / "p", method="eva", rank_budget="lora:2"))
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["init_lora_weights"] is True and config["eva_config"] is None
    cost = json.loads((tmp_path / "p" / "cost.json").read_text())
    assert cost["calibration"]["forward_passes"] > 0 and cost["calibration"]["passes"] == 0
    assert results["adapter_params"] == 8 * COST


def test_eva_works_on_whole_fused_projections():
    model = tiny_gpt2()
    probe = adapt(tiny_gpt2(), LoraConfig(task_type="CAUSAL_LM", r=1))
    costs = eva.layer_costs(probe)
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


# ---- PEFT's other types


class FakeRun:
    """What `methods.peft` asks of a run, around a tiny model."""

    def __init__(self, make, task, peft_type, targets=None, **kwargs):
        argv = ["--method", "peft", "--peft_type", peft_type, "--peft_kwargs", json.dumps(kwargs)]
        _, _, self.method, self.training = parse_arguments(argv + ["--output_dir", "nowhere", "--use_cpu", "True"])
        self.method.lora_target_modules = targets
        self.application = SimpleNamespace(task_type=task)
        self.make, self.adapted, self.data_collator, self.fresh_modules = make, None, collate, []
        ids = [row["input_ids"] for row in rows(4, length=8)]
        labels = {"SEQ_CLS": [0, 1, 0, 1], "TOKEN_CLS": [[i % 2 for i in row] for row in ids], "CAUSAL_LM": ids}[task]
        self.train_dataset = [
            {"input_ids": row, "attention_mask": [1] * 8, "labels": label} for row, label in zip(ids, labels)
        ]

    lora_config = Run.lora_config

    def base_model(self):
        torch.manual_seed(0)
        return self.make()


KINDS = {
    "SEQ_CLS": (tiny_roberta, "SEQ_CLS"),
    "TOKEN_CLS": (lambda: RobertaForTokenClassification(tiny_roberta().config), "TOKEN_CLS"),
    "gpt2": (tiny_gpt2, "CAUSAL_LM"),
    "llama": (tiny_llama, "CAUSAL_LM"),
}
ALL = tuple(KINDS)
LINEAR_ONLY = ("SEQ_CLS", "TOKEN_CLS", "llama")  # GPT-2's Conv1D is none of theirs
# settings are those that models of 16 dimensions need; at real sizes PEFT's defaults fit
TYPES = {
    "LORA": (ALL, {"r": 2}),
    "DORA": (ALL, {}),
    "IA3": (ALL, {}),
    "PREFIX_TUNING": (ALL, {"num_virtual_tokens": 4}),
    "PROMPT_TUNING": (("SEQ_CLS", "gpt2", "llama"), {"num_virtual_tokens": 4}),
    "P_TUNING": (("SEQ_CLS", "gpt2", "llama"), {}),
    "LLAMA_ADAPTER": (("gpt2", "llama"), {}),
    "VERA": (ALL, {}),
    "RANDLORA": (ALL, {}),
    "LN_TUNING": (ALL, {}),
    "FOURIERFT": (ALL, {"n_frequency": 20}),
    "VBLORA": (ALL, {"vector_length": 4, "num_vectors": 8}),
    "HIRA": (ALL, {}),
    "LOHA": (LINEAR_ONLY, {}),
    "LOKR": (LINEAR_ONLY, {}),
    "OFT": (LINEAR_ONLY, {"oft_block_size": 4}),
    "BOFT": (LINEAR_ONLY, {}),
    "HRA": (LINEAR_ONLY, {}),
    "MISS": (LINEAR_ONLY, {"r": 2}),
    "BONE": (LINEAR_ONLY, {"r": 2}),
}


@pytest.mark.parametrize("kind, name", [(kind, name) for name, (kinds, _) in TYPES.items() for kind in kinds])
def test_a_peft_type_trains_and_comes_back(tmp_path, kind, name):
    run = FakeRun(*KINDS[kind], name, **TYPES[name][1])
    model = peft.adapt(run)
    adapter_params, head = count_parameters(model)
    assert adapter_params > 0 and head == (
        0 if run.application.task_type == "CAUSAL_LM" else HEAD if kind == "SEQ_CLS" else 34
    )
    batch = collate(run.train_dataset)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    before = [p.detach().clone() for p in trained]
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(p, old) for p, old in zip(trained, before))
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(run.base_model(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["distilbert", "roberta tokens"])
@pytest.mark.parametrize(
    "name, settings", [("LOHA", {}), ("IA3", {"feedforward_modules": ["lin2", "output.dense"]}), ("VERA", {})]
)  # VeRA has no `exclude_modules`
def test_all_linear_layers_are_those_of_no_head(kind, name, settings):
    task = "TOKEN_CLS" if kind == "roberta tokens" else "SEQ_CLS"
    model = peft.adapt(FakeRun(FAMILIES[kind], task, name, ["all-linear"], **settings))
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert len(adapted) == 12 and not any("classifier" in name for name in adapted)


def test_a_type_is_tried_where_its_model_is():
    """bitsandbytes puts a quantized model on the accelerator while it loads."""

    class Watched(torch.Tensor):
        def to(self, device):
            moved.append(device)
            return self.as_subclass(torch.Tensor)

    moved, run = [], FakeRun(*KINDS["gpt2"], "IA3")
    run.data_collator = lambda rows: {key: value.as_subclass(Watched) for key, value in collate(rows).items()}
    peft.adapt(run)
    assert moved == 3 * [torch.device("cpu")]


@pytest.mark.parametrize(
    "kind, name, changes, message",
    [
        ("TOKEN_CLS", "PROMPT_TUNING", {}, "puts virtual tokens before the words, .* Type --method prefix_tuning"),
        ("TOKEN_CLS", "P_TUNING", {}, "puts virtual tokens before the words, .* Type --method prefix_tuning"),
        ("SEQ_CLS", "ADAPTION_PROMPT", {}, "does not work with Roberta.* for SEQ_CLS: Unsupported model type"),
        ("gpt2", "LOHA", {}, "does not work with GPT2LMHeadModel for CAUSAL_LM: Target module .*Conv1D"),
        ("llama", "LILY", {}, "so that a token would see later ones"),
        ("gpt2", "OSF", {}, "does not work with GPT2LMHeadModel for CAUSAL_LM: it has nothing to train there"),
        ("SEQ_CLS", "MISS", {}, "does not work with Roberta.*in_features.*settings with --peft_kwargs"),
        (
            "SEQ_CLS",
            "IA3",
            {"targets": ["q_proj"]},
            "does not work with Roberta.*No modules were targeted.*--lora_target_modules",
        ),
        ("llama", "TRAINABLE_TOKENS", {}, "needs the tokens to train. Add --peft_kwargs"),
        ("SEQ_CLS", "TRAINABLE_TOKENS", {"token_indices": [5]}, "leaves the new head of a classifier as it was drawn"),
        ("SEQ_CLS", "XLORA", {}, "--peft_type XLORA mixes adapters that are trained already. Type --method lora"),
        ("SEQ_CLS", "POLY", {}, "needs a task id in every row"),
        ("SEQ_CLS", "ADALORA", {}, "is a method of its own here. Type --method adalora"),
        ("SEQ_CLS", "PREFIX", {}, "must be one of PEFT's types, got 'PREFIX'. Did you mean"),
        ("SEQ_CLS", "IA3", {"ranks": 2}, "sets 'ranks', and IA3Config has no such setting. It has target_modules"),
        ("SEQ_CLS", "VERA", {"vera_droput": 2}, "Did you mean vera_dropout"),
        ("SEQ_CLS", "VERA", {"inference_mode": True}, "sets 'inference_mode', and VeraConfig has no such setting"),
        ("SEQ_CLS", "LORA", {"init_lora_weights": "eva"}, "Type --method eva"),
    ],
)
def test_what_a_peft_type_cannot_do_is_refused_in_one_line(kind, name, changes, message):
    run = FakeRun(*KINDS[kind], name, **changes)
    with pytest.raises(ValueError, match=message) as error:
        peft.adapt(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind, limit", [("SEQ_CLS", 38), ("gpt2", 40), ("llama", None)])
def test_virtual_tokens_and_rows_fit_the_positions(kind, limit):
    run = FakeRun(*KINDS[kind], "PREFIX_TUNING", num_virtual_tokens=31)
    run.datasets = {"train": rows(4, length=5), "validation": [{"input_ids": [7] * 8}]}
    model = peft.adapt(FakeRun(*KINDS[kind], "PREFIX_TUNING", num_virtual_tokens=30))
    assert peft.positions(model) == limit and peft.longest_row(run.datasets["train"]) == 5
    peft.check_positions(run, model)
    if limit is None:
        return
    run.datasets["validation"] = [{"input_ids": [7] * (limit - 29)}]
    message = f"30 virtual tokens and the longest validation row, {limit - 29} tokens, exceed the {limit} positions"
    with pytest.raises(ValueError, match=f"{message} of .* Lower --max_seq_length to {limit - 30}, or num_virtual"):
        peft.check_positions(run, model)
    fits = {"input_ids": torch.full((1, limit - 30), 7), "attention_mask": torch.ones(1, limit - 30)}
    assert model(**fits).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(**{key: torch.cat([value, value[:, :1]], dim=1) for key, value in fits.items()})


# ---- grid

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="the extra `grid`")


def test_the_grid_is_16_pairs_and_a_budget_cuts_it():
    sizes = {"query": 10, "value": 10}
    assert len(grid.configurations(sizes, grid.LEVELS)) == grid.TRIALS == 16
    within = grid.configurations(sizes, grid.LEVELS, budget=80)
    assert all(sum(config.values()) <= 8 for config in within) and {"query": 4, "value": 4} in within


def test_a_grid_too_large_to_list_is_drawn():
    sizes = {f"projection{i}": 10 for i in range(12)}  # 4 ** 12 configurations
    drawn = grid.configurations(sizes, grid.LEVELS, budget=400, seed=1)
    assert drawn == grid.configurations(sizes, grid.LEVELS, budget=400, seed=1)
    assert dict.fromkeys(sizes, 1) in drawn and max(grid.parameters(config, sizes) for config in drawn) <= 400
    chosen = grid.some(drawn, 16, seed=1)
    assert len(chosen) == 16 and chosen != grid.some(drawn, 16, seed=2)


def test_groups_are_projections():
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(4) for p in "qv"]
    assert list(grid.groups(names)) == ["q_proj", "v_proj"] and len(grid.groups(names)["q_proj"]) == 4
    assert list(grid.groups([f"h.{i}.attn.c_attn#{p}" for i in range(2) for p in "qv"])) == ["c_attn#q", "c_attn#v"]
    halves = grid.groups([f"h.{i}.attn.c_attn" for i in range(4)])
    assert [len(names) for names in halves.values()] == [2, 2]
    both = grid.groups(["encoder.0.dense", "encoder.0.mlp.dense"])
    assert list(both) == ["encoder.dense", "encoder.mlp.dense"]


class Trials:
    """In place of processes: a trial's loss is a formula, and some trial is the last one before the run dies."""

    def __init__(self, dies_after=None):
        self.ran, self.dies_after = [], dies_after

    def __call__(self, run, ranks, folder):
        if len(self.ran) == self.dies_after:
            raise KeyboardInterrupt
        self.ran.append(os.path.basename(folder))
        query, value = (ranks[f"roberta.encoder.layer.1.attention.self.{name}"] for name in ("query", "value"))
        cost = {"wall_seconds": 1.0, "passes": 10, "examples": 40, "peak_memory_mb": 100.0 + query}
        with open(os.path.join(folder, grid.RESULT), "w") as file:
            json.dump({"loss": abs(query - 4) + abs(value - 2) + 0.5, "cost": cost}, file)
        return 0


@needs_optuna
@pytest.mark.parametrize("sampler", grid.SAMPLERS)
def test_a_grid_that_was_killed_does_not_run_a_finished_trial_again(place, tmp_path, monkeypatch, capsys, sampler):
    settings = {"method": "grid", "sampler": sampler, "grid_trials": 5, "initial_rank": 4, "max_steps": 2, "seed": 5}
    whole, first, second = Trials(), Trials(dies_after=3), Trials()
    monkeypatch.setattr(grid, "run_in_process", whole)
    run_glue.main(command(place, tmp_path / "whole", **settings))
    assert len(whole.ran) == len(set(whole.ran)) == 5
    monkeypatch.setattr(grid, "run_in_process", first)
    with pytest.raises(KeyboardInterrupt):
        run_glue.main(command(place, tmp_path / "part", **settings))
    monkeypatch.setattr(grid, "run_in_process", second)
    resumed = run_glue.main([*command(place, tmp_path / "part", **settings), "--resume_from_checkpoint"])
    assert first.ran + second.ran == whole.ran
    assert resumed["resumed_from"] == {"phase": "search", "step": 3}
    for name in ("ranks.json", PEFT_FILE):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    cost = json.loads((tmp_path / "part" / "cost.json").read_text())
    assert cost["search"]["passes"] == 50 and cost["search"]["examples"] == 200
    assert cost["total"]["passes"] == 52


@needs_optuna
def test_the_best_configuration_is_trained_on_all_rows(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(grid, "run_in_process", trials := Trials())
    results = run_glue.main(command(place, tmp_path / "o", method="grid", max_steps=2))
    assert "different sizes, up to rank 8 everywhere, and so is the best" in caplog.text
    assert "add --rank_budget lora:2" in caplog.text  # initial_rank is 4
    ranks = LearnedRanks.load(tmp_path / "o" / "ranks.json")
    assert len(trials.ran) == 16 and ranks.rank_rule == "grid"
    assert [
        ranks.ranks[f"roberta.encoder.layer.{b}.attention.self.{n}"] for b in (0, 1) for n in ("query", "value")
    ] == [4, 2, 4, 2]
    assert results["adapter_params"] == 12 * COST and results["train_samples"] == 40


@needs_optuna
@pytest.mark.parametrize("sampler", grid.SAMPLERS)
def test_nothing_beyond_the_budget_is_tried(place, tmp_path, monkeypatch, caplog, sampler):
    monkeypatch.setattr(grid, "run_in_process", trials := Trials())
    settings = {"method": "grid", "sampler": sampler, "rank_budget": "lora:3", "initial_rank": 4, "max_steps": 1}
    results = run_glue.main(command(place, tmp_path / "o", **settings))
    assert "different sizes" not in caplog.text
    sizes = [2 * COST * sum(map(int, name.split("-"))) for name in trials.ran]
    assert max(sizes) <= 3 * 4 * COST and results["adapter_params"] in sizes
    assert len(trials.ran) == (8 if sampler == "grid" else 13)  # all that fit, as there are fewer than 16


@needs_optuna
def test_a_trial_is_trained_on_one_part_of_the_rows_and_scored_on_the_other(place, tmp_path, monkeypatch):
    seen = {}

    def spy(run, model, callbacks):
        seen["trainer"] = trainer = make_trainer(run, model, callbacks)
        evaluate = trainer.evaluate
        trainer.evaluate = lambda rows: evaluate(seen.setdefault("held_out", rows))
        return trainer

    monkeypatch.setattr("autolora_trainer.pipeline.make_trainer", spy)
    run = prepared(place, tmp_path / "o", method="grid", max_steps=2)
    ranks = dict.fromkeys(run.costs, 2)
    arguments = grid.trial_arguments(run, str(tmp_path / "t"))
    result = grid.train_trial(run_glue.GlueApplication, run.model, run.data, run.method, arguments, ranks)
    training = seen["trainer"].train_dataset
    assert len(training) == len(seen["held_out"]) == 20 and result["cost"]["passes"] == 2
    both = sorted(str(row["input_ids"]) for row in [*training, *seen["held_out"]])
    assert both == sorted(str(row["input_ids"]) for row in run.train_dataset)
    assert {layer.r["default"] for layer in lora_layers(seen["trainer"].model).values()} == {2}
    assert 0 < result["loss"] < 2


@needs_optuna
def test_a_configuration_that_diverges_is_the_worst_and_ends_no_grid(place, tmp_path, monkeypatch):
    run = prepared(place, tmp_path / "o", method="grid", max_steps=20)

    def diverged(self, model, inputs, *args, **kwargs):
        return model(**inputs).loss * math.nan

    monkeypatch.setattr(RetrainTrainer, "compute_loss", diverged)
    arguments = grid.trial_arguments(run, str(tmp_path / "t"))
    ranks = dict.fromkeys(run.costs, 2)
    result = grid.train_trial(run_glue.GlueApplication, run.model, run.data, run.method, arguments, ranks)
    assert result["loss"] == math.inf and result["cost"]["passes"] == 10


@needs_optuna
def test_a_trial_is_a_process_of_its_own(place, tmp_path):
    run = prepared(place, tmp_path / "o", method="grid", max_steps=1)
    space = grid.Space.of(run, run.costs)
    result = grid.evaluate(run, space, {"query": 1, "value": 2})
    assert result["cost"]["passes"] == 1 and 0 < result["loss"] < 2
    assert os.path.isfile(tmp_path / "o" / "grid" / "1-2" / "result.json")
    assert grid.evaluate(run, space, {"query": 1, "value": 2}) == result  # from its file


@needs_optuna
def test_the_reason_of_a_failed_trial_reaches_the_run(place, tmp_path, monkeypatch):
    def fails(run, ranks, folder):
        with open(os.path.join(folder, grid.ERROR), "w") as file:
            file.write("OutOfMemoryError: no room\n")
        return 1

    monkeypatch.setattr(grid, "run_in_process", fails)
    with pytest.raises(RuntimeError, match="The trial with query 1, value 1 failed: OutOfMemoryError: no room"):
        run_glue.main(command(place, tmp_path / "o", method="grid"))
    monkeypatch.setattr(grid, "run_in_process", lambda *args: -9)  # killed
    with pytest.raises(RuntimeError, match="failed: its process ended with status -9"):
        run_glue.main(command(place, tmp_path / "o", method="grid"))
    diverged = {"loss": math.inf, "cost": {"wall_seconds": 1, "passes": 1, "examples": 1, "peak_memory_mb": 1}}
    monkeypatch.setattr(grid, "evaluate", lambda *args: diverged)
    with pytest.raises(RuntimeError, match="all trainings diverged. Lower learning_rate"):
        run_glue.main(command(place, tmp_path / "o", method="grid", grid_trials=2))


# ---- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "lora", "adapter_size": 8}, "--adapter_size is for --method adapter, got --method lora. Drop it."),
        (
            {"method": "full", "adapter_layer_norm": False},
            "--adapter_layer_norm is for --method adapter, got --method",
        ),
        ({"method": "ia3", "peft_type": "IA3"}, "--peft_type is for --method peft, got --method ia3. Drop it."),
        ({"method": "lora", "peft_kwargs": "{}"}, "--peft_kwargs is for --method peft, got --method lora. Drop it."),
        ({"method": "random", "sampler": "tpe"}, "--sampler is for --method grid, got --method random. Drop it."),
        ({"grid_trials": 4}, "--grid_trials is for --method grid, got --method autolora. Drop it."),
        ({"method": "grid", "sampler": "bayes"}, "sampler must be one of grid, random, tpe, got 'bayes'"),
        ({"method": "grid", "grid_trials": 0}, "grid_trials must be at least 1, got 0"),
        ({"method": "adapter", "adapter_size": 0}, "adapter_size must be at least 1, got 0"),
        ({"method": "peft"}, "--method peft needs --peft_type, one of ADAMSS, "),
        ({"method": "peft", "peft_type": "lowrank"}, "--peft_type must be one of PEFT's types, got 'lowrank'"),
        ({"method": "ia3", "peft_kwargs": "r=2"}, "--peft_kwargs is not JSON: .* Type e.g."),
        ({"method": "ia3", "peft_kwargs": "[1]"}, "--peft_kwargs must be a JSON object, e.g. .*, got \\[1\\]"),
        ({"method": "full", "rank_budget": "lora:2"}, "--rank_budget is for methods with ranks, got --method full"),
        ({"method": "adapter", "lora_target_modules": "query"}, "--lora_target_modules is for LoRA and PEFT's other"),
        (
            {"method": "grid", "ranks": "r.json"},
            "--ranks is for autolora, eva and the pattern baselines, got --method",
        ),
        ({"method": "p_tuning", "label_smoothing_factor": 0.1}, "Trainer has no label smoothing for virtual tokens"),
        pytest.param(
            {"method": "grid", "rank_budget": 100},
            "the smallest configuration has 128. Raise rank_budget",
            marks=needs_optuna,
        ),
        (
            {"method": "uniform", "lora_r": 8},
            "--lora_r 8 has no effect on --method uniform, whose size is --rank_budget",
        ),
        (
            {"lora_r": 16},
            "--lora_r 16 has no effect on --method autolora, whose size is --rank_budget lora:16. Drop it",
        ),
        ({"method": "full", "lora_r": 2}, "--lora_r 2 has no effect on --method full. Drop it."),
        (
            {"method": "peft", "peft_type": "LOHA", "lora_r": 2},
            "--lora_r 2 is for LoRA, got --peft_type LOHA. Set what",
        ),
        (
            {
                "method": "ia3",
                "load_best_model_at_end": True,
                "save_only_model": True,
                "save_strategy": "epoch",
                "eval_strategy": "epoch",
            },
            "--save_only_model leaves that out. Drop one of the two.",
        ),
        ({"attn_implementation": "flash_attention_2"}, "takes no fp32, .* Type --attn_implementation sdpa."),
        ({"auto_find_batch_size": True}, "--auto_find_batch_size tries batch sizes until one fits, and the search"),
        (
            {"method": "eva", "rank_budget": 100},
            "--method eva hands out uniform ranks anew, and a size of 100 adapter",
        ),
        (
            {"method": "eva", "rank_budget": "lora:9"},
            "looks for 18 directions in the inputs of '.*query', twice its uniform rank, and they have 16. Lower",
        ),
        ({"method": "svd", "rank_budget": "lora:9"}, "asks for .* adapter parameters, and rank 4 in every module has"),
        (
            {"method": "svd", "initial_rank": 32, "rank_budget": "lora:24"},
            "asks for 3,072 adapter parameters, and rank 16 in every module has 2,048. Lower",
        ),
        *(
            (
                {"method": method, "lora_target_modules": ["query", "word_embeddings"]},
                f"--method {method} finds ranks of linear layers, and --lora_target_modules has 'roberta.embeddings."
                r"word_embeddings' \(Embedding\). Leave it out, or type --method lora",
            )
            for method in ("autolora", "adalora", "eva", "linear", "random", "svd", "uniform")
        ),
        pytest.param(
            {"method": "grid", "lora_target_modules": "word_embeddings"},
            "--method grid finds ranks of linear layers",
            marks=needs_optuna,
        ),
        *(
            (
                {**method, "lora_target_modules": "all-linear", "min_rank": 0, "rank_budget": 40},
                "rank_budget 40 has no room for a component of the largest module, 48 adapter parameters",
            )
            for method in ({"method": "svd"}, {"method": "autolora"})
        ),
        ({"method": "random", "rank_budget": "lora:9"}, "asks for .* adapter parameters, and rank 4 in every module"),
        ({"method": "linear", "rank_budget": 100}, "rank_budget 100 is 100 adapter parameters, and the least that"),
    ],
)
def test_arguments_of_other_methods_and_impossible_sizes_are_refused(place, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        run_glue.main(command(place, tmp_path / "o", **changes))
    assert not (tmp_path / "o").exists()


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
        run_glue.main(command(place, tmp_path / "o", rank_budget="lora:1", **settings))
    assert not (tmp_path / "o").exists()
    results = run_glue.main(command(place, tmp_path / "o", rank_budget="lora:2", max_steps=1, **settings))
    assert results["adapter_params"] == 128


@pytest.mark.parametrize(
    "rank, more, changes, message",
    [
        (5, (), {}, "initial_rank 4 of --ranks in every module, and '.*0.attention.self.query' has rank 5. Drop"),
        (2, ["roberta.encoder.layer.0.output.dense"], {}, "adapts other ones: not '.*output.dense'. Give the --lora"),
        (2, (), {"lora_target_modules": "query"}, "adapts other ones: not '.*value'. Give the --lora_target_modules"),
    ],
)
def test_ranks_that_no_cut_can_give_are_refused_before_the_retrain(place, tmp_path, rank, more, changes, message):
    names = [f"roberta.encoder.layer.{b}.attention.self.{name}" for b in range(2) for name in ("query", "value")]
    ranks = LearnedRanks({name: ModuleRank(rank) for name in [*names, *more]}, initial_rank=4)
    ranks.save(tmp_path / "ranks.json")
    argv = command(place, tmp_path / "o", ranks=tmp_path / "ranks.json", retrain_cut=0.5, **changes)
    with pytest.raises(UsageError, match=message):
        run_glue.main(argv)
    assert not (tmp_path / "o").exists()


def test_grid_without_optuna_says_what_to_install(place, tmp_path, monkeypatch):
    find = grid.importlib.util.find_spec
    monkeypatch.setattr(grid.importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(UsageError, match=r'needs Optuna. Type pip install "autolora_trainer\[grid\]"'):
        run_glue.main(command(place, tmp_path / "o", method="grid"))


def test_nothing_to_evaluate_is_refused(place, tmp_path):
    with pytest.raises(UsageError, match="holds no adapter to evaluate. Add --do_train"):
        run_glue.main(command(place, tmp_path / "o") + ["--do_eval"])


def test_peft_types_have_folders_of_their_own(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_glue.main(command(place, None, method="peft", peft_type="ia3", max_steps=1))
    assert json.loads((tmp_path / "outputs" / "sst2-ia3" / "all_results.json").read_text())["peft_type"] == "IA3"
