"""An adapter seen as parts with a rank of their own: whole LoRA layers, what `fused.py` divides some into, and the
parameters that hold the experts of a mixture.

PEFT adapts a parameter by wrapping its module, once for every parameter of it: the first lies innermost, and
`mlp.experts.base_layer` may be the LoRA of `mlp.experts.gate_up_proj`. Names here are those of the base model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from autolora_trainer.lora.sharded import changing, whole
from autolora_trainer.lora.split import SplitLinear
from autolora_trainer.names import SEPARATOR


@dataclass(frozen=True)
class LoraPart:
    """A LoRA layer, or the part of one that belongs to a part of a fused projection.

    Attributes:
        name: as in the base model's `named_modules()`, with `#part` where it is a part; of a parameter, its name.
        layer, adapter_name: PEFT's.
        columns: its components: rows of `lora_A`, columns of `lora_B`.
        rows: its rows of `lora_B`, (m,); None: all.
    """

    name: str
    layer: LoraLayer
    adapter_name: str
    columns: slice
    rows: torch.Tensor | None = None
    experts = None  # matrices that share the rank, of a stacked parameter; no field

    @property
    def rank(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Those of the whole layer's `lora_A` and `lora_B`, perhaps in shards."""
        return self.layer.lora_A[self.adapter_name].weight, self.layer.lora_B[self.adapter_name].weight

    @property
    def lora_A(self) -> torch.Tensor:
        """(r, n), or (E, r, n) of E experts; a collective where weights are in shards."""
        return self._view_A(whole(self.weights[0]))

    @property
    def lora_B(self) -> torch.Tensor:
        """(m, r), or (E, m, r) of E experts; a collective where weights are in shards."""
        return self.rows_of(self._view_B(whole(self.weights[1])))

    def set_lora_A(self, value: torch.Tensor) -> None:
        """Write all of it: what `lora_A` gives may be a copy."""
        with changing(self.weights[0]) as weight:
            self._view_A(weight).copy_(value)

    def set_lora_B(self, value: torch.Tensor) -> None:
        """Write all of it: what `lora_B` gives may be a copy."""
        with changing(self.weights[1]) as weight:
            columns = self._view_B(weight)
            if self.rows is None:
                columns.copy_(value)
            else:
                columns[self.rows.to(columns.device)] = value.to(columns)

    def _view_A(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[self.columns]

    def _view_B(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[:, self.columns]

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    @property
    def gradient(self) -> torch.Tensor | None:
        """Of the whole layer's `lora_B`, (m, r); None where none has come."""
        return self.weights[1].grad

    @property
    def scaling(self) -> float:
        return self.layer.scaling[self.adapter_name]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of its update."""
        a, b = self.weights
        return b.shape[0] if self.rows is None else len(self.rows), a.shape[-1]

    @property
    def cost(self) -> int:
        """Parameters of one of its components, m + n, or E (m + n)."""
        return sum(self.shape) * (self.experts or 1)

    def rows_of(self, output: torch.Tensor) -> torch.Tensor:
        """Its rows of an (m_layer, …) tensor."""
        return output if self.rows is None else output[self.rows.to(output.device)]


class StackedPart(LoraPart):
    """The LoRA of a parameter, which may stack the matrices of E experts: component j is a rank-1 matrix in each.

    PEFT keeps the factors of all experts in one layer each, reads their weights, and never calls the layers:

        lora_A.weight (E r, n): row e r + j         lora_B.weight (m, r E): column j E + e
    """

    @property
    def experts(self) -> int:
        return self.layer.num_experts

    def _view_A(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(0, (self.experts, self.rank))

    def _view_B(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(1, (self.rank, self.experts)).permute(2, 0, 1)


def flat(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors as PEFT keeps them: those of experts, (E, r, n) and (E, m, r), as (E r, n) and (m, r E)."""
    return (a, b) if a.dim() == 2 else (a.flatten(0, 1), b.permute(1, 2, 0).flatten(1))


def base_model_of(model: nn.Module) -> nn.Module:
    """The model under PEFT, or the model itself where there is no adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def init_that_changes_base(model: nn.Module, adapter_name: str = "default") -> str | None:
    """The `init_lora_weights` of an adapter if it takes its first update out of the base model's weights, as PiSSA."""
    config = getattr(model, "peft_config", {}).get(adapter_name)
    name = str(getattr(config, "init_lora_weights", "")).lower()
    return name if name.startswith(("pissa", "corda", "olora", "loftq", "lora_ga")) else None


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of a model under adapters as in the base model's `named_modules()`: of a module that is wrapped
    for its parameters, the outermost wrapper, and modules within it without PEFT's `base_layer` in their names."""
    names, base = {}, base_model_of(model)
    modules = dict(base.named_modules())
    for path, module in modules.items():
        owner, _, leaf = path.rpartition(".")
        if leaf == "base_layer" and isinstance(modules[owner], ParamWrapper):
            names[path] = names[owner]
        else:
            names[path] = ".".join(filter(None, (names.get(owner), leaf)))
            yield names[path], module


def adaptable_names(model: nn.Module) -> list[str]:
    """What may have a rank in a model without an adapter: modules, and parameters."""
    return [name for name, _ in (*model.named_modules(), *model.named_parameters())]


def lora_layers(model: nn.Module, adapter_name: str = "default") -> dict[str, LoraLayer]:
    """The LoRA layers of a `PeftModel`, keyed by the base model's names of modules, or of parameters; those of a
    module in the order in which PEFT wraps them."""
    found = {}
    for name, module in base_modules(model):
        own = {}
        while isinstance(module, ParamWrapper):
            own[f"{name}.{module.parameter_name}"] = module
            module = module.base_layer
        if isinstance(module, LoraLayer):
            own[name] = module
        found |= dict(reversed(own.items()))
    return {name: layer for name, layer in found.items() if adapter_name in layer.lora_A}


def paths_of(model: nn.Module) -> dict[nn.Module, str]:
    """{module: its name under PEFT, and so in an adapter's file}."""
    return {module: path for path, module in base_model_of(model).named_modules()}


def factors_of(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of all adapters' updates, whatever the modules are called that they lie in."""
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    held = (getattr(layer, name, None) for layer in layers for name in layer.adapter_layer_names)
    return {parameter for part in held if isinstance(part, nn.Module) for parameter in part.parameters()}


def lora_parts(model: nn.Module, adapter_name: str = "default") -> dict[str, LoraPart]:
    """All that has a rank of its own in an adapter: whole LoRA layers, the parts that `split_layer` made, and
    parameters."""
    parts = {}
    for name, layer in lora_layers(model, adapter_name).items():
        whole, start = {"": (layer.r[adapter_name], None)}, 0
        for part, (rank, rows) in getattr(layer, "fused_parts", {}).get(adapter_name, whole).items():
            full = name + SEPARATOR + part if part else name
            kind = StackedPart if isinstance(layer, ParamWrapper) else LoraPart
            parts[full] = kind(full, layer, adapter_name, slice(start, start + rank), rows)
            start += rank
    return parts


def masked_parameters(model: nn.Module) -> int:
    """How many parameters of an adapter the masks of split layers keep at zero: its file holds them, no training."""
    return sum(int((~module.mask).sum()) for module in model.modules() if isinstance(module, SplitLinear))
