"""An exported adapter is an ordinary LoRA: it merges, loads everywhere, and keeps the rules of vLLM's LoRA loader."""

import json
import os
import re

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from autolora_trainer import LearnedRanks
from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.parts import lora_layers, lora_parts
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.ranks.serving import lora_rank_for_servers
from tests.helpers.models import byte_llama, tiny_gpt2

# What vLLM lets LoRA adapt of a Llama and of a GPT-2, by the last part of the name.
SERVED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc"}
LLAMA = {"q_proj": 1, "v_proj": 3, "down_proj": 9}  # ranks, the same in both blocks but for what is left out
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def llama():
    torch.manual_seed(0)
    return byte_llama(pad_token_id=257)


def gpt2():
    torch.manual_seed(0)
    return tiny_gpt2(initializer_range=0.3)


def llama_ranks():
    places = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}
    names = {
        f"model.layers.{i}.{places[kind]}.{kind}": ModuleRank(rank) for i in range(2) for kind, rank in LLAMA.items()
    }
    return LearnedRanks({**names, "model.layers.1.self_attn.q_proj": ModuleRank(0)}, base_model="org/llama")


def gpt2_ranks():
    """Query and value of a fused projection with ranks of their own."""
    pairs = {"transformer.h.0.attn.c_attn": (1, 3), "transformer.h.1.attn.c_attn": (0, 2)}
    parts = {f"{name}#{part}": ModuleRank(rank) for name, pair in pairs.items() for part, rank in zip("qv", pair)}
    return LearnedRanks(parts, base_model="org/gpt2")


CASES = {"llama": (llama, llama_ranks), "gpt2, fused": (gpt2, gpt2_ranks)}


@pytest.fixture(params=list(CASES))
def exported(request, tmp_path):
    """(how to make the base model, the trained adapter, its folder, its ranks); the base lies beside it."""
    make, make_ranks = CASES[request.param]
    base = make()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    ranks = make_ranks()
    adapted = build_adapter(base, ranks, LoraConfig(task_type="CAUSAL_LM", lora_alpha=8))
    generator = torch.Generator().manual_seed(1)
    for part in lora_parts(adapted).values():
        part.set_lora_B(0.3 * torch.randn(part.lora_B.shape, generator=generator))
    adapted.eval().save_pretrained(tmp_path / "adapter")
    return make, adapted, tmp_path / "adapter", ranks


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


# ---- the rules of vLLM


def served_by_vllm(folder, base, max_lora_rank) -> dict[str, float]:
    """{module: scale} of an adapter that vLLM takes; `AssertionError` for one that it refuses or computes otherwise.

    The rules are those of vLLM's `PEFTHelper` and `LoRAModel.from_local_checkpoint`. Earlier versions read no patterns
    and scale every module by lora_alpha / r of the config; later ones read `rank_pattern` and `alpha_pattern`. An
    adapter that both serve has the same scale by either reading.
    """
    with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
        config = json.load(file)
    assert config["peft_type"] == "LORA" and isinstance(config["target_modules"], list)
    assert config["bias"] == "none" and not config.get("lora_bias"), "no biases"
    assert not config.get("use_dora") and not config.get("modules_to_save"), "plain LoRA and nothing beside it"
    assert not isinstance(config["init_lora_weights"], str) and not config.get("layer_replication")
    assert not config.get("alora_invocation_tokens") and not config.get("use_bdlora") and not config.get("use_qalora")
    assert max([config["r"], *config["rank_pattern"].values()]) <= max_lora_rank
    global_scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    modules = dict(base.named_modules())
    tensors, scales = load_file(os.path.join(folder, "adapter_model.safetensors")), {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        assert found, f"{name} is no LoRA weight"
        module, factor = found.groups()
        assert module.rpartition(".")[2] in SERVED and module in modules
        rank, alpha = (of_pattern(config[f"{kind}_pattern"], module) for kind in ("rank", "alpha"))
        rank, alpha = rank or config["r"], alpha or config["lora_alpha"]
        assert tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        assert tensor.shape[0 if factor == "A" else 1] == rank <= config["r"]
        inputs, outputs = sizes(modules[module])
        assert tensor.shape[1 if factor == "A" else 0] == (inputs if factor == "A" else outputs)
        scales[module] = alpha / (rank**0.5 if config["use_rslora"] else rank)
        assert scales[module] == pytest.approx(global_scale), f"{module} has a scale of its own"
    assert {f"base_model.model.{m}.lora_{f}.weight" for m in scales for f in "AB"} == set(tensors), "A without B"
    assert set(config["target_modules"]) == set(scales)
    return scales


def of_pattern(pattern, module):
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), None)


def sizes(module):
    """(inputs, outputs) of a linear layer, also of GPT-2's `Conv1D`."""
    return (module.nx, module.nf) if hasattr(module, "nf") else (module.in_features, module.out_features)


def test_files_keep_the_rules_of_vllm(exported):
    make, adapted, folder, ranks = exported
    scales = served_by_vllm(folder, make(), lora_rank_for_servers(ranks.ranks))
    real = {name: layer.scaling["default"] for name, layer in lora_layers(adapted).items()}
    assert scales == pytest.approx(real) and len(scales) == sum(r > 0 for r in ranks.module_ranks.values())


def test_rank_that_the_server_is_told_is_needed(exported):
    make, _, folder, ranks = exported
    largest = max(ranks.module_ranks.values())
    assert largest <= lora_rank_for_servers(ranks.ranks)
    with pytest.raises(AssertionError):
        served_by_vllm(folder, make(), largest - 1)


def test_what_vllm_would_compute_is_what_peft_computes(exported):
    """The base's weights plus one global scale times B A, from the files alone."""
    make, adapted, folder, ranks = exported
    scale = set(served_by_vllm(folder, make(), 64).values()).pop()
    served, tensors = make(), load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name in (name for name, rank in ranks.module_ranks.items() if rank):
            a, b = (tensors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
            module = served.get_submodule(name)
            module.weight += (scale * b @ a).T if hasattr(module, "nf") else scale * b @ a
    assert torch.allclose(logits(served), logits(adapted), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}],
)
def test_the_check_refuses_what_vllm_refuses(tmp_path, changes):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **changes)
    get_peft_model(llama(), config).save_pretrained(tmp_path)
    with pytest.raises(AssertionError):
        served_by_vllm(tmp_path, llama(), 64)


def test_the_paper_scaling_is_not_for_servers(tmp_path):
    """Its scale differs between modules, which a server with one global scale computes otherwise."""
    adapted = build_adapter(llama(), llama_ranks(), LoraConfig(task_type="CAUSAL_LM"), scaling="paper")
    adapted.save_pretrained(tmp_path)
    with pytest.raises(AssertionError, match="has a scale of its own"):
        served_by_vllm(tmp_path, llama(), 64)


# ---- PEFT and transformers


def test_merged_weights_compute_the_same(exported):
    make, adapted, folder, _ = exported
    expected = logits(adapted)
    assert not torch.allclose(logits(make()), expected, atol=0.1)
    merged = PeftModel.from_pretrained(make(), folder).merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    assert torch.allclose(logits(adapted.merge_and_unload()), expected, atol=1e-5)


def test_every_way_to_load_computes_the_same(exported):
    """PEFT's and transformers' auto classes find the base by the name in adapter_config.json."""
    make, adapted, folder, _ = exported
    expected = logits(adapted)
    plain = make()
    plain.load_adapter(folder)  # transformers' own integration, on a model that is there already
    loaded = {
        "PeftModel": PeftModel.from_pretrained(make(), folder),
        "AutoPeftModelForCausalLM": AutoPeftModelForCausalLM.from_pretrained(folder),
        "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained(folder),
        "load_adapter": plain,
    }
    for way, model in loaded.items():
        assert torch.allclose(logits(model), expected, atol=1e-6), way


def test_second_adapter_beside_it(exported):
    """A server holds several: this one beside a plain LoRA, switched on and off."""
    make, adapted, folder, _ = exported
    model = PeftModel.from_pretrained(make(), folder, adapter_name="learned")
    model.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False))
    model.set_adapter("other")
    assert not torch.allclose(logits(model), logits(adapted), atol=1e-3)
    model.set_adapter("learned")
    assert torch.allclose(logits(model), logits(adapted), atol=1e-6)


# ---- PEFT's benchmark


def test_experiment_of_pefts_benchmark(tmp_path, capsys):
    """What `method_comparison/MetaMathQA/run.py` reads: a config for `PeftConfig.from_pretrained`, and parameters
    that its `TrainConfig` knows."""
    llama_ranks().save(tmp_path / "ranks.json")
    output = tmp_path / "experiments" / "lora" / "llama-autolora"
    cli.main(["export", str(tmp_path), "--format", "method_comparison", "--output", str(output), "--lora_alpha", "24"])
    assert f"adapter_config.json and training_params.json in {output}" in capsys.readouterr().out
    config = LoraConfig.from_pretrained(output)
    assert config.task_type == "CAUSAL_LM" and not config.inference_mode
    adapted = get_peft_model(llama(), config)
    assert {n: layer.r["default"] for n, layer in lora_layers(adapted).items()} == {
        name: rank for name, rank in llama_ranks().ranks.items() if rank
    }
    scales = {layer.scaling["default"] for layer in lora_layers(adapted).values()}
    assert max(scales) == pytest.approx(24 / llama_ranks().mean_rank) and max(scales) == pytest.approx(min(scales))
    with open(output / "training_params.json", encoding="utf-8") as file:
        assert json.load(file) == {"model_id": "org/llama"}
    with pytest.raises(UsageError, match="is not empty. Give a new folder."):
        cli.main(["export", str(tmp_path), "--format", "method_comparison", "--output", str(output)])


@pytest.mark.parametrize(
    "arguments, given",
    [
        (["--format", "method_comparison"], "--format method_comparison without it"),
        (["--output", "x"], "--format peft"),
    ],
)
def test_output_belongs_to_the_experiment(tmp_path, arguments, given):
    llama_ranks().save(tmp_path / "ranks.json")
    with pytest.raises(UsageError, match=f"--output DIR belongs to --format .*, method_comparison, got {given}"):
        cli.main(["export", str(tmp_path), *arguments])


def test_parts_of_fused_modules_have_no_experiment(tmp_path):
    gpt2_ranks().save(tmp_path / "ranks.json")
    with pytest.raises(UsageError, match="method_comparison takes whole modules"):
        cli.main(["export", str(tmp_path), "--format", "method_comparison", "--output", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()
