"""What of a model does all-linear leave out?"""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GptOssConfig, Qwen2MoeConfig

from autolora_trainer import AutoLoraTrainer
from autolora_trainer.lora.experts import experts_line, unadapted_experts
from tests.helpers.models import tiny_gpt2, tiny_llama, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import arguments

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = {
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
        layer_types=["full_attention"],
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SIZES, intermediate_size=64, moe_intermediate_size=16, shared_expert_intermediate_size=32, num_experts=4,
        num_experts_per_tok=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_experts_that_all_linear_leaves_out_are_said_with_their_share(tmp_path, caplog, kind):
    model = AutoModelForCausalLM.from_config(KINDS[kind]())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if "layers." in name}
    experts = {n: size for n, size in sizes.items() if "experts." in n and "shared" not in n}
    norm = next(p.numel() for n, p in model.named_parameters() if n.endswith("model.norm.weight"))
    expected = sum(experts.values()) / (sum(sizes.values()) + norm), next(iter(experts))
    assert unadapted_experts(model) == pytest.approx(expected) and expected[0] > 0.4
    text = [{**row, "labels": row["input_ids"]} for row in rows(16)]
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    AutoLoraTrainer(model, arguments(tmp_path), train_dataset=text, peft_config=config)
    line = (
        f"all-linear leaves out the experts (first: 'model.layers.0.mlp.experts.gate_up_proj'), {expected[0]:.0%} of"
    )
    assert [record for record in caplog.records if record.getMessage().startswith(line)]


def test_where_all_is_adapted_nothing_is_said():
    for model in (tiny_roberta(), tiny_gpt2(), tiny_llama()):
        assert experts_line(get_peft_model(model, LoraConfig(target_modules="all-linear"))) is None


def test_experts_that_are_adapted_count_as_such():
    config = LoraConfig(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    model = AutoModelForCausalLM.from_config(KINDS["qwen2_moe"]())
    before = unadapted_experts(model)[0]
    share, first = unadapted_experts(get_peft_model(model, config))
    assert first.endswith("down_proj") and share == pytest.approx(before / 3, rel=0.01)
