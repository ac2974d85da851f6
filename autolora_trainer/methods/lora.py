"""The plain baselines, LoRA of one rank (Hu et al. 2022) and full fine-tuning, and the settings of every LoRA."""

import os
from dataclasses import dataclass

from autolora_trainer.hub.card import Card
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.targets import ALL_LINEAR
from autolora_trainer.methods.base import Built, Job, Method, Plan, SavedForm
from autolora_trainer.values import setting

RANK = 4  # the paper's baseline (§5.1)
QUERY_VALUE = "query-value"  # of --lora_target_modules, beside all-linear; others are names of modules
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # the second: of weights in several files


@dataclass
class LoraArguments:
    """The settings of every LoRA, in TRL's and PEFT's words."""

    scaling: str = setting(
        "constant",
        "constant: every module has the same scale, lora_alpha / mean rank of the modules that have any; paper: "
        "lora_alpha / its own rank.",
    )
    lora_r: int | None = setting(None, "Rank of --method lora, average rank of --method adalora. Default: 4 (§5.1).")
    lora_alpha: int = setting(16, "LoRA's scale is lora_alpha / r.")
    lora_dropout: float = setting(0.1, "Dropout before lora_A.")
    lora_target_modules: list[str] | None = setting(
        None,
        "Modules to adapt, all-linear, or query-value (PEFT's default for the model, the paper's). Default: "
        "all-linear for LoRA, PEFT's for its other methods.",
    )
    use_rslora: bool = setting(False, "Scale by lora_alpha / sqrt(r).")

    @property
    def rank(self) -> int:
        """`--lora_r`, or its default."""
        return RANK if self.lora_r is None else self.lora_r

    @property
    def targets(self) -> str | list[str] | None:
        """`--lora_target_modules` of a LoRA as PEFT takes them; None: its default for the model."""
        given = self.lora_target_modules or [ALL_LINEAR]
        return {ALL_LINEAR: ALL_LINEAR, QUERY_VALUE: None}.get(given[0], given) if len(given) == 1 else given


class Lora(Method):
    name = "lora"
    reads = frozenset({"lora_r", "lora_target_modules"})
    has_lora = True

    def prepare(self, job: Job) -> Plan:
        rank = job.request.settings.rank
        job.source.refuse_dropped_experts()
        return lambda: Built(add_lora(job.source.base_model(), job.source.lora_config(r=rank)))


def holds_model(folder: str) -> bool:
    """Whether a full checkpoint lies in `folder`."""
    return os.path.isfile(os.path.join(folder, "config.json")) and any(
        os.path.isfile(os.path.join(folder, name)) for name in WEIGHTS
    )


class Full(Method):
    """Every parameter of the base model trains ("Full FT" in Tables 1-3): an ordinary transformers checkpoint is left.

    The rate of 1e-4 that §5.1 gives for adapters is a high one here; 1e-5 to 5e-5 is usual for models of RoBERTa's
    size (`--learning_rate`).
    """

    name = "full"
    form = SavedForm(holds_model, load=None, what="model", trained="base")
    base_stays_frozen = False

    def prepare(self, job: Job) -> Plan:
        return lambda: Built(job.source.base_model().requires_grad_(True))

    def card(self, folder: str) -> Card:
        return Card(self.name, "{base}, fully fine-tuned on {data}.", library="transformers")
