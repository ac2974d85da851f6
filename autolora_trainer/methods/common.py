"""What methods share."""

from dataclasses import dataclass, field

import torch
from peft import PeftModel, get_peft_model

from autolora_trainer.gates import lora_layers
from autolora_trainer.ranks import LearnedRanks, ModuleRank, fingerprint


@dataclass
class Built:
    """The model to train, the ranks it was built from (None for methods without a rank per module), and the cost of
    the phases that ran before the final training."""

    model: torch.nn.Module
    ranks: LearnedRanks | None = None
    phases: dict[str, dict] = field(default_factory=dict)


def probe_adapter(run) -> PeftModel:
    """The pre-trained model under a rank-1 adapter: tells which modules an adapter would have."""
    return get_peft_model(run.base_model(), run.lora_config(r=1))


def component_costs(model: PeftModel) -> dict[str, int]:
    """{module: parameters of one rank-1 component, m_l + n_l}."""
    return {
        name: layer.lora_A["default"].weight.shape[1] + layer.lora_B["default"].weight.shape[0]
        for name, layer in lora_layers(model).items()
    }


def pattern(run, model: PeftModel, ranks: dict[str, int], rule: str) -> LearnedRanks:
    """Ranks that no search made, in the form of those that one did."""
    return LearnedRanks(
        modules={name: ModuleRank(rank) for name, rank in ranks.items()},
        base_model=run.base_model_name,
        base_model_fingerprint=fingerprint(model, ranks),
        initial_rank=run.given_ranks.initial_rank if run.given_ranks else run.method.initial_rank,
        rank_rule=rule,
    )
