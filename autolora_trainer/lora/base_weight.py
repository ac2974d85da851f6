"""The frozen weight of a layer under an adapter: as numbers where something dequantizes it, else as it is packed."""

import torch
from peft.utils.integrations import dequantize_module_weight

from autolora_trainer.compat import gradients_through_4_bit


def base_weight(layer: torch.nn.Module) -> torch.Tensor | None:
    """The weight of a linear layer, (m, n), dequantized; the layer stays as it is. None where nothing dequantizes it:
    PEFT (0.21) knows bitsandbytes, torchao and HQQ, and GPTQ, AWQ and AQLM hold no weight at all."""
    weight = getattr(layer, "weight", None)
    if type(weight).__name__ == "Int8Params":
        return _of_8_bit(layer, weight)
    try:
        with gradients_through_4_bit(layer):  # as it was packed, not as a CPU's kernel reads it
            return dequantize_module_weight(layer)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None


def _of_8_bit(layer: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor | None:
    """PEFT moves an 8-bit weight to its device anew, and on a CPU it has lost its scales then (bitsandbytes 0.50)."""
    from bitsandbytes.functional import int8_vectorwise_dequant

    holders = (getattr(layer, "state", None), weight)
    scales = next((own.SCB for own in holders if getattr(own, "SCB", None) is not None), None)
    return None if scales is None else int8_vectorwise_dequant(weight.data, scales.to(weight.device))


def told_by(layer: torch.nn.Module) -> torch.Tensor | None:
    """What tells the weight of a linear layer from others: `base_weight`; of 4 bits (bitsandbytes) its codes, as their
    scales are rounded to bfloat16 where a CPU has repacked them."""
    weight = getattr(layer, "weight", None)
    if type(weight).__name__ != "Params4bit" or weight.quant_state is None:
        return base_weight(layer)
    with gradients_through_4_bit(layer):
        return weight.data


def packed_tensors(layer: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """[(name, tensor)] of all that a layer holds, packed weights and scales, by name."""
    return sorted([*layer.named_parameters(), *layer.named_buffers()], key=lambda item: item[0])
