"""Tiny mixtures of experts, built from configurations."""

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 64, "intermediate_size": 24, "num_experts_per_tok": 2, "initializer_range": 0.2,
}  # fmt: skip
SMALL = {"head_dim": 8, "moe_intermediate_size": 12, "num_experts": 4}
MIXED = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4}
GROUPED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
FEW = {"head_dim": 8, "num_local_experts": 4}
MIXTURES = {
    "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig, FEW),
    "qwen3_moe": (hf.Qwen3MoeForCausalLM, hf.Qwen3MoeConfig, SMALL),
    "qwen3_next": (
        hf.Qwen3NextForCausalLM, hf.Qwen3NextConfig,
        {**SMALL, **MIXED, "shared_expert_intermediate_size": 12,
         "layer_types": ["linear_attention", "full_attention"]},
    ),
    "deepseek_v3": (
        hf.DeepseekV3ForCausalLM, hf.DeepseekV3Config, {**LATENT, **GROUPED, "moe_intermediate_size": 12}
    ),
    "gpt_oss": (hf.GptOssForCausalLM, hf.GptOssConfig, FEW),
    "llama4": (
        hf.Llama4ForCausalLM, hf.Llama4TextConfig, {**FEW, "intermediate_size_mlp": 24, "num_experts_per_tok": 1}
    ),
}  # fmt: skip


def mixture(kind="mixtral", **changes):
    """With weights that do not depend on what was drawn before."""
    model, config, sizes = MIXTURES[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**{**SIZES, **sizes, **changes}))


def adapted_experts(
    kind="mixtral", rank=3, parameters=("gate_up_proj", "down_proj"), model=None, spread=0.3, **changes
):
    """Under a LoRA on queries and experts whose B is not zero; `model`: changes of its config."""
    settings = {"r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], **changes}
    targets = [f"experts.{name}" for name in parameters]
    model = get_peft_model(mixture(kind, **(model or {})), LoraConfig(target_parameters=targets, **settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (spread if "lora_B" in name else 0.2) * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def ids(count=4, length=10, seed=0):
    """(count, length)."""
    return torch.randint(1, 64, (count, length), generator=torch.Generator().manual_seed(seed))


def logits(model, tokens=None):
    with torch.no_grad():
        return model(input_ids=ids() if tokens is None else tokens).logits
