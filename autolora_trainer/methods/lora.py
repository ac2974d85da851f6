"""Plain LoRA of one rank, as PEFT builds it (Hu et al. 2022), and the settings of every LoRA."""

from dataclasses import dataclass, field

from autolora_trainer.lora.fused import add_lora
from autolora_trainer.methods.base import Built, Job, Method, Plan

RANK = 4  # the paper's baseline (§5.1)


@dataclass
class LoraArguments:
    """The settings of every LoRA, in TRL's and PEFT's words."""

    scaling: str = field(
        default="constant",
        metadata={
            "help": "constant: every module has the scale of plain LoRA of that size, lora_alpha / mean rank; paper: "
            "lora_alpha / its own rank."
        },
    )
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Rank of --method lora, average rank of --method adalora. Default: 4 (§5.1)."},
    )
    lora_alpha: int = field(default=16, metadata={"help": "LoRA's scale is lora_alpha / r."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before lora_A."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Modules to adapt, or all-linear. Default: PEFT's for the model, query and value."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / sqrt(r)."})

    @property
    def rank(self) -> int:
        """`--lora_r`, or its default."""
        return RANK if self.lora_r is None else self.lora_r


class Lora(Method):
    name = "lora"
    reads = frozenset({"lora_r", "lora_target_modules"})
    has_lora = True

    def prepare(self, job: Job) -> Plan:
        rank = job.request.settings.rank
        return lambda: Built(add_lora(job.source.base_model(), job.source.lora_config(r=rank)))
