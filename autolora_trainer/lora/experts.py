"""Mixture-of-experts weights beside linear layers: what `all-linear` leaves as it is."""

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from autolora_trainer.lora.parts import base_model_of, factors_of


def unadapted_experts(model: nn.Module) -> tuple[float, str] | None:
    """What of a model's layers are experts that no adapter reaches: stacked weights of three dimensions.

    Returns:
        (their share of the weights outside embeddings and head, name of the first); None where there are none.
    """
    base = base_model_of(model)
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    experts, whole, factors = {}, 0, factors_of(base)
    adapted = {module.get_param() for module in base.modules() if isinstance(module, ParamWrapper)}
    for name, module in base.named_modules():
        if isinstance(module, nn.Embedding) or module is output:
            continue
        own = {f"{name}.{n}": p for n, p in module.named_parameters(recurse=False) if p not in factors}
        whole += sum(map(_count, own.values()))
        left = {n: _count(p) for n, p in own.items() if p not in adapted}
        if any(own[n].dim() == 3 for n in left) and not isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            experts |= left  # their biases too
    return (sum(experts.values()) / whole, next(iter(experts))) if experts else None


def _count(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two weights in a byte
    return parameter.numel() if state is None else state.shape.numel()


def experts_line(model: nn.Module) -> str | None:
    """One line about them, where there are any."""
    if (found := unadapted_experts(model)) is None:
        return None
    return (
        f"all-linear leaves out the experts (first: {found[1]!r}), {found[0]:.0%} of the weights of the layers: they "
        "are no linear layers, and get no ranks"
    )
