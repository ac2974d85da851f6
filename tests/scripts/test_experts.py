"""Experts and routers have no ranks, and no dropout; every method says so, and what to type."""

import pytest
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM, set_seed

import run_nlg
from autolora_trainer import LearnedRanks
from autolora_trainer.errors import UsageError
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
@pytest.mark.parametrize(
    "typed",
    [
        {},
        {"lora_dropout": 0.0},
        {"method": "uniform"},
        {"method": "svd", "lora_dropout": 0.0},
        {"lora_target_modules": ["gate_proj", "up_proj"]},
    ],
)
def test_a_method_with_ranks_names_the_linear_layers(place, tmp_path, kind, typed):
    """Whatever the dropout: without it the message would be the next one."""
    if "lora_target_modules" in typed and kind == "mixtral":
        return  # has no module of such a name
    with pytest.raises(UsageError) as error:
        run_nlg.main(command(place, kind, output_dir=tmp_path / "o", **typed))
    said, targets = str(error.value), " ".join(typed.get("lora_target_modules", ["all-linear"]))
    assert said.startswith(f"--method {typed.get('method', 'autolora')} finds ranks of linear layers, and ")
    assert f"--lora_target_modules {targets} takes experts and routers of {KINDS[kind][0].__name__} too" in said
    assert said.endswith(f"Type --lora_target_modules {LAYERS[kind]}, or type --method lora --lora_dropout 0.")
    assert "base_layer" not in said and not (tmp_path / "o").exists()


def test_plain_lora_adapts_experts_without_dropout(place, tmp_path):
    with pytest.raises(
        UsageError, match="--lora_dropout 0.1 is for linear layers, and --lora_target_modules all-line"
    ):
        run_nlg.main(command(place, "mixtral", output_dir=tmp_path / "o", method="lora"))
    run_nlg.main(command(place, "mixtral", output_dir=tmp_path / "o", method="lora", lora_dropout=0.0))
    assert any("experts" in name for name in LearnedRanks.from_pretrained(tmp_path / "o").ranks)


def test_what_the_message_says_to_type_works(place, tmp_path):
    layers = LAYERS["deepseek"].split()
    run_nlg.main(command(place, "deepseek", output_dir=tmp_path / "o", lora_target_modules=layers))
    assert LearnedRanks.load(tmp_path / "o" / "ranks.json").total_rank > 0
