"""Mixtures of experts: where a model keeps the weights of its experts, and what sends tokens to them."""

from collections.abc import Collection, Iterable

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from autolora_trainer.lora.parts import base_modules

ROUTERS = ("gate", "router")  # names of those whose class has none of its own, beside the experts


def stacked_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: weight} of what stacks the matrices of experts, (E, …), E > 1, in a model without an adapter."""
    found = {}
    for name, module in model.named_modules():
        if "expert" not in f"{name} {type(module).__name__}".lower():
            continue
        own = {f"{name}.{n}": p for n, p in module.named_parameters(recurse=False) if p.dim() > 2 and p.shape[0] > 1}
        found |= own if not isinstance(module, (nn.Conv1d, nn.Conv2d)) else {}
    return found


def routers(model: nn.Module) -> list[str]:
    """Names of the modules that choose experts, of a model under an adapter too."""
    modules, found = dict(base_modules(model)), []
    for name, module in modules.items():
        owner, _, leaf = name.rpartition(".")
        own = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if "Router" in type(own).__name__ or leaf in ROUTERS and hasattr(modules.get(owner), "experts"):
            found.append(name)
    return found


def within(modules: Collection[str], names: Iterable[str]) -> list[str]:
    """Names of, or of what is in, some modules."""
    heads = tuple(f"{module}." for module in modules)
    return [name for name in names if f"{name}.".startswith(heads)]


def share_of(model: nn.Module, names: Collection[str]) -> float:
    """The share of weights in those of the layers of a model without an adapter: all but embeddings and head."""
    output, part, whole = getattr(model, "get_output_embeddings", lambda: None)(), 0, 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) and module is not output:
            own = {f"{name}.{n}": _count(p) for n, p in module.named_parameters(recurse=False)}
            whole += sum(own.values())
            part += sum(count for n, count in own.items() if n in names)
    return part / whole


def _count(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two weights in a byte
    if state is not None:
        return state.shape.numel()
    return parameter.numel() * (1 if parameter.dtype != torch.uint8 else 2)  # so do others
