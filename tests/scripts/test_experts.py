"""Experts have ranks, and no dropout; what a method cannot do with them it says, and what to type."""

import json

import pytest
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM, set_seed

import run_nlg
from autolora_trainer import LearnedRanks
from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError
from autolora_trainer.ranks.adapter_file import AdapterFile
from tests.helpers.commands import as_argv
from tests.helpers.models import byte_tokenizer, tiny_llama
from tests.helpers.rows import write_rows

FEW = {"vocab_size": 258, "max_position_embeddings": 200, "num_experts_per_tok": 1, "pad_token_id": None}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4}
KINDS = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 2}),
    "deepseek": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config,
        {**LATENT, "num_key_value_heads": 2, "moe_intermediate_size": 8, "n_routed_experts": 4, "n_group": 2,
         "topk_group": 1, "first_k_dense_replace": 1},
    ),
}  # fmt: skip
LAYERS = {
    "mixtral": "k_proj o_proj q_proj v_proj",
    "deepseek": "kv_a_proj_with_mqa kv_b_proj o_proj q_a_proj q_b_proj",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    set_seed(0)
    for kind, (model, config, sizes) in KINDS.items():
        tiny_llama(model, config, **{**FEW, **sizes}).save_pretrained(folder / kind)
        byte_tokenizer(llama=True).save_pretrained(folder / kind)
    write_rows(folder / "rows.jsonl", [{"input": word, "reference": word[::-1]} for word in "ab bc cd de".split()])
    return folder


def command(place, kind, **changes):
    settings = {
        "task_name": "nlg", "model_name_or_path": place / kind, "train_file": place / "rows.jsonl",
        "validation_file": place / "rows.jsonl", "decode": False, "use_cpu": True, "max_steps": 1,
        "search_max_steps": 3, "hypergradient_interval": 1, "save_strategy": "no", "val_fraction": 0.5,
        "size": "lora:2",
    }  # fmt: skip
    if changes.get("method") == "lora":
        settings.pop("size")
    return as_argv({**settings, **changes})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("typed", [{}, {"method": "lora"}, {"lora_target_modules": ["gate_proj", "up_proj"]}])
def test_dropout_of_experts_is_refused(place, tmp_path, kind, typed):
    if "lora_target_modules" in typed and kind == "mixtral":
        return  # has no module of such a name
    with pytest.raises(UsageError) as error:
        run_nlg.main(command(place, kind, output_dir=tmp_path / "o", **typed))
    said, targets = str(error.value), " ".join(typed.get("lora_target_modules", ["all-linear"]))
    assert said.startswith("--lora_dropout 0.1 is for linear layers, and --lora_target_modules ")
    assert f"--lora_target_modules {targets} takes experts of {KINDS[kind][0].__name__} too" in said
    assert said.endswith(f"Type --lora_target_modules {LAYERS[kind]}, or --lora_dropout 0.")
    assert "base_layer" not in said and not (tmp_path / "o").exists()


@pytest.mark.parametrize("method", ["adalora", "eva"])
def test_methods_of_linear_layers_alone_name_them(place, tmp_path, method):
    with pytest.raises(UsageError, match=f"--method {method} is for linear layers.*Type --lora_target_modules k_proj"):
        run_nlg.main(command(place, "mixtral", output_dir=tmp_path / "o", method=method, lora_dropout=0.0, size=None))


@pytest.mark.parametrize("method", ["autolora", "svd", "lora"])
def test_experts_are_searched_trained_and_read_again(place, tmp_path, capsys, caplog, method):
    kind, typed = "deepseek" if method == "svd" else "mixtral", {"method": method, "lora_dropout": 0.0}
    run_nlg.main(command(place, kind, output_dir=tmp_path / "o", **typed))
    found = LearnedRanks.from_pretrained(tmp_path / "o")
    assert any("experts" in name and rank for name, rank in found.ranks.items())
    assert not any("gate.weight" in name for name in found.ranks)
    scores = json.loads((tmp_path / "o" / "all_results.json").read_text())
    run_nlg.main(command(place, kind, output_dir=tmp_path / "o", do_train=False, do_eval=True, **typed))
    again = json.loads((tmp_path / "o" / "all_results.json").read_text())
    assert again["eval_loss"] == pytest.approx(scores["eval_loss"], abs=1e-6)
    assert f"experts ('model.layers.{int(method == 'svd')}.mlp.experts.gate_up_proj' and" in caplog.text
    if method == "autolora":
        cli.main(["export", str(tmp_path / "o"), "--format", "adapter", "--output", str(tmp_path / "start")])
        assert (
            AdapterFile.from_pretrained(tmp_path / "start").ranks == AdapterFile.from_pretrained(tmp_path / "o").ranks
        )
        cli.main(["export", str(tmp_path / "o"), "--format", "trl"])
        assert "target_parameters=[" in capsys.readouterr().out


def test_what_the_message_says_to_type_works(place, tmp_path):
    layers = LAYERS["deepseek"].split()
    run_nlg.main(command(place, "deepseek", output_dir=tmp_path / "o", lora_target_modules=layers))
    assert LearnedRanks.load(tmp_path / "o" / "ranks.json").total_rank > 0
