"""What an adapter leaves as it is: tensors of its base model, by their names there, and whether two are the same."""

from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from autolora_trainer.lora.parts import base_model_of
from autolora_trainer.lora.sharded import whole

PLAIN = (torch.Tensor, nn.Parameter)  # others are quantized
LARGE = 2**20  # elements
ROUNDING = 2**-8  # relative, of bfloat16


def base_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """(name in the base model without an adapter, tensor, whether it is a buffer) of all that computes there, the
    originals of trained copies left out."""
    yield from _walk(base_model_of(model), "")


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor, bool]]:
    if isinstance(module, ModulesToSaveWrapper):
        return
    if isinstance(module, (AuxiliaryTrainingWrapper, BaseTunerLayer)):
        inner = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module.base_layer
        yield from _walk(inner, prefix)
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter, False
    for name, buffer in module.named_buffers(recurse=False):
        if not hasattr(module, f"original_{name}"):  # rotary frequencies, which long rows change for a while
            yield prefix + name, buffer, True
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}{name}.")


def frozen_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """{name: tensor} of `base_tensors` that no training moves."""
    return {name: tensor for name, tensor, _ in base_tensors(model) if not tensor.requires_grad}


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """{name: a copy} of the base model's buffers, which a training may move without gradient, as BatchNorm's means.
    Large ones are not copied: they are weights of a quantized model, as GPTQ's, which stay."""
    found = {name: tensor.detach() for name, tensor, is_buffer in base_tensors(model) if is_buffer}
    return {name: tensor.clone() if tensor.numel() <= LARGE else tensor for name, tensor in found.items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of `one` whose tensors `other` holds with other values, as far as they can be compared: what is quantized
    in one of the two, or lies on the meta device, cannot."""
    return [name for name, tensor in one.items() if name in other and not same(tensor, other[name])]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same values, in whatever floating point dtypes they were loaded."""
    if one is other or one.is_meta or other.is_meta:
        return True
    one, other = whole(one), whole(other)
    if type(one) not in PLAIN or type(other) not in PLAIN or one.is_floating_point() != other.is_floating_point():
        return True
    if one.shape != other.shape:
        return False
    one, other = one.detach(), other.detach().to(one.device)
    if one.dtype == other.dtype:
        return torch.equal(one, other) or bool(torch.isclose(one, other, 0, 0, equal_nan=True).all())
    return torch.allclose(one.float(), other.float(), rtol=ROUNDING, atol=1e-7, equal_nan=True)
