"""Tiny Llamas whose frozen weights are quantized, by the libraries whose layers PEFT adapts."""

import importlib.util

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

LIBRARIES = {  # of each kind
    "bitsandbytes 4 bits": "bitsandbytes", "bitsandbytes 8 bits": "bitsandbytes", "torchao int8": "torchao",
    "torchao float8": "torchao", "HQQ": "hqq", "GPTQ": "gptqmodel", "AWQ": "gptqmodel",
}  # fmt: skip
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
GROUP = 32  # weights of a row with one scale


def is_installed(kind: str) -> bool:
    return importlib.util.find_spec(LIBRARIES[kind]) is not None


def quantized(folder, kind: str):
    """The checkpoint in `folder` in fp32, all its linear layers but the head quantized."""
    library, _, width = kind.partition(" ")
    if library == "bitsandbytes":
        return _loaded(folder, BitsAndBytesConfig(
            load_in_4bit=width == "4 bits", load_in_8bit=width == "8 bits", bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
        ))  # fmt: skip
    if library == "torchao":
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        own = Int8WeightOnlyConfig if width == "int8" else Float8WeightOnlyConfig
        return _loaded(folder, TorchAoConfig(own()))
    model = _loaded(folder)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, {"HQQ": _hqq, "GPTQ": _gptq, "AWQ": _awq}[kind](module))
    return model


def _loaded(folder, settings=None):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=settings)


def _hqq(linear: nn.Linear) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    return HQQLinear(linear, BaseQuantizeConfig(nbits=4, group_size=64), compute_dtype=torch.float32, device="cpu")


def _shape(linear: nn.Linear) -> dict:
    own = {"in_features": linear.in_features, "out_features": linear.out_features, "bias": False}
    return {"bits": 4, "group_size": GROUP, "desc_act": False, **own}


def _gptq(linear: nn.Linear) -> nn.Module:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    layer = TorchLinear(sym=True, pack_dtype=torch.int32, **_shape(linear))
    scales = linear.weight.data.view(linear.out_features, -1, GROUP).abs().amax(-1) / 7  # (m, groups)
    groups = torch.arange(linear.in_features, dtype=torch.int32) // GROUP
    layer.pack_original(linear, scales, torch.full_like(scales, 8), groups)
    layer.optimized = True  # no torch.compile
    layer.post_init()
    return layer


def _awq(linear: nn.Linear) -> nn.Module:
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    layer = AwqTorchLinear(sym=False, register_buffers=False, **_shape(linear))
    groups = linear.weight.data.view(linear.out_features, -1, GROUP)
    least, most = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)  # (m, groups)
    scales = (most - least) / 15
    layer.pack(linear, scales, (-least / scales).round().clamp(0, 15))
    layer.post_init()
    return layer
