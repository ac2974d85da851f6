"""An ordinary PEFT adapter of given ranks (§4.5), checked to really have them."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from autolora_trainer.lora.fused import split_parts
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.ranks.learned import LearnedRanks


def build_adapter(
    model: torch.nn.Module, ranks: LearnedRanks, lora_config: LoraConfig | None = None, scaling: str = "constant"
) -> PeftModel:
    """Wrap `model` with an ordinary LoRA adapter of the learned ranks, and check that it really has them.

    Args:
        model: the pre-trained model, without an adapter.
        ranks: the learned ranks, by module name.
        lora_config: the other LoRA settings (task type, dropout, lora_alpha …).
        scaling: see `LearnedRanks.to_lora_config`.
    Raises:
        ValueError: if the model lacks one of the modules, or a built rank differs from the learned one.
    """
    ranks.check_names(name for name, _ in model.named_modules())
    adapted = get_peft_model(model, ranks.to_lora_config(lora_config, scaling=scaling))
    split_parts(adapted, ranks.ranks)
    verify_ranks(adapted, ranks)
    return adapted


def verify_ranks(model: torch.nn.Module, ranks: LearnedRanks, adapter_name: str = "default") -> None:
    """Compare the real rank of every module of a built adapter with the rank asked for.

    PEFT drops a pattern key that matches nothing and gives that module the default rank; this stops instead.

    Raises:
        ValueError: naming the first module that differs.
    """
    real = {name: part.lora_A.shape[0] for name, part in lora_parts(model, adapter_name).items()}
    asked = {name: rank for name, rank in ranks.ranks.items() if rank > 0}
    for name in [*asked, *real]:
        if asked.get(name, 0) != real.get(name, 0):
            raise ValueError(
                f"Module {name!r} should have rank {asked.get(name, 0)}, and the built adapter gives it "
                f"{real.get(name, 0)}. Check target_modules and rank_pattern of the LoraConfig."
            )
