"""Plain LoRA of one rank, as PEFT builds it (Hu et al. 2022): the paper's baseline has rank 4 (§5.1)."""

from autolora_trainer.fused import adapt
from autolora_trainer.methods.common import Built


def build(run) -> Built:
    return Built(adapt(run.base_model(), run.lora_config(r=run.method.rank)))
