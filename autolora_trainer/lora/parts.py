"""An adapter seen as parts with a rank of their own: whole LoRA layers, and what `fused.py` divides some into."""

from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from autolora_trainer.lora.split import SplitLinear
from autolora_trainer.names import SEPARATOR


@dataclass(frozen=True)
class LoraPart:
    """A LoRA layer, or the part of one that belongs to a part of a fused projection.

    Attributes:
        name: as in the base model's `named_modules()`, with `#part` where it is a part.
        layer, adapter_name: PEFT's.
        columns: its components: rows of `lora_A`, columns of `lora_B`.
        rows: its rows of `lora_B`, (m,); None: all.
    """

    name: str
    layer: LoraLayer
    adapter_name: str
    columns: slice
    rows: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def lora_A(self) -> torch.Tensor:
        """(r, n), a view of the weight."""
        return self.layer.lora_A[self.adapter_name].weight[self.columns]

    @property
    def lora_B(self) -> torch.Tensor:
        """(m, r); of a part a copy, so write with `set_lora_B`."""
        return self.rows_of(self.layer.lora_B[self.adapter_name].weight[:, self.columns])

    @torch.no_grad()
    def set_lora_B(self, value: torch.Tensor) -> None:
        columns = self.layer.lora_B[self.adapter_name].weight[:, self.columns]
        if self.rows is None:
            columns.copy_(value)
        else:
            columns[self.rows.to(columns.device)] = value.to(columns)

    @property
    def gradient(self) -> torch.Tensor | None:
        """Of the whole layer's `lora_B`, (m, r); None where none has come."""
        return self.layer.lora_B[self.adapter_name].weight.grad

    @property
    def scaling(self) -> float:
        return self.layer.scaling[self.adapter_name]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of its update."""
        return self.lora_B.shape[0], self.lora_A.shape[1]

    @property
    def cost(self) -> int:
        """Parameters of one of its components, m + n."""
        return sum(self.shape)

    def rows_of(self, output: torch.Tensor) -> torch.Tensor:
        """Its rows of an (m_layer, …) tensor."""
        return output if self.rows is None else output[self.rows.to(output.device)]


def base_model_of(model: nn.Module) -> nn.Module:
    """The model under PEFT, or the model itself where there is no adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def init_that_changes_base(model: nn.Module, adapter_name: str = "default") -> str | None:
    """The `init_lora_weights` of an adapter if it takes its first update out of the base model's weights, as PiSSA."""
    config = getattr(model, "peft_config", {}).get(adapter_name)
    name = str(getattr(config, "init_lora_weights", "")).lower()
    return name if name.startswith(("pissa", "corda", "olora", "loftq", "lora_ga")) else None


def lora_layers(model: nn.Module, adapter_name: str = "default") -> dict[str, LoraLayer]:
    """The LoRA layers of a `PeftModel`, keyed by their names in the base model's `named_modules()`."""
    return {
        name: module
        for name, module in base_model_of(model).named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.lora_A
    }


def factors_of(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of all adapters' updates, whatever the modules are called that they lie in."""
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    held = (getattr(layer, name, None) for layer in layers for name in layer.adapter_layer_names)
    return {parameter for part in held if isinstance(part, nn.Module) for parameter in part.parameters()}


def lora_parts(model: nn.Module, adapter_name: str = "default") -> dict[str, LoraPart]:
    """All that has a rank of its own in an adapter: whole LoRA layers, and the parts that `split_layer` made."""
    parts = {}
    for name, layer in lora_layers(model, adapter_name).items():
        whole, start = {"": (layer.r[adapter_name], None)}, 0
        for part, (rank, rows) in getattr(layer, "fused_parts", {}).get(adapter_name, whole).items():
            full = name + SEPARATOR + part if part else name
            parts[full] = LoraPart(full, layer, adapter_name, slice(start, start + rank), rows)
            start += rank
    return parts


def masked_parameters(model: nn.Module) -> int:
    """How many parameters of an adapter the masks of split layers keep at zero: its file holds them, no training."""
    return sum(int((~module.mask).sum()) for module in model.modules() if isinstance(module, SplitLinear))
