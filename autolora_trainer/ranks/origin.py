"""The base model that ranks belong to: its public name, and a fingerprint of its weights."""

import hashlib
import os

import torch
from peft.utils.integrations import dequantize_module_weight

from autolora_trainer.lora.parts import base_model_of, module_of
from autolora_trainer.ranks.learned import LearnedRanks

QUANTIZED = "quantized-"  # how the fingerprint of a quantized model begins


def fingerprint(model: torch.nn.Module, names) -> str:
    """A short hash of a base model: the names and shapes of `names` and the first 64 values of each weight, as
    bfloat16, so that loading in another precision does not change it. It tells checkpoints apart; it is no signature.

    Quantizing does change the values. The hash of a quantized model is that of its dequantized weights, begins with
    `quantized-`, and compares only with its like: see `is_other_model`.
    """
    digest, quantized = hashlib.sha256(), False
    base = base_model_of(model)
    modules = dict(base.named_modules())
    for name in sorted({module_of(name) for name in names}):
        module = modules[name]
        layer = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        weight = dequantize_module_weight(layer)
        quantized |= weight is not getattr(layer, "weight", None)
        head = weight.detach().flatten()[:64]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(repr(head.to(torch.bfloat16).float().tolist()).encode())
    return (QUANTIZED if quantized else "") + digest.hexdigest()[:16]


def is_other_model(ranks: LearnedRanks, model: torch.nn.Module) -> bool:
    """Whether `ranks` were learned on a checkpoint with other weights than `model`, as far as fingerprints tell; of
    a quantized and an unquantized model they cannot."""
    learned = ranks.base_model_fingerprint
    if learned is None:
        return False
    present = fingerprint(model, ranks.modules)
    return learned != present and learned.startswith(QUANTIZED) == present.startswith(QUANTIZED)


def public_model_name(model) -> str:
    """The base model's Hub id; for a local folder its name alone, so that no file carries a path of this machine."""
    base = base_model_of(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__
    if os.path.isdir(name) or os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
        return os.path.basename(os.path.normpath(name))
    return name
