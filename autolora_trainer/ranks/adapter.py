"""Ranks and a model: the ordinary PEFT adapter of given ranks (§4.5), and the model they belong to."""

import hashlib
import os
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from autolora_trainer.compat import patterns_of_parameters
from autolora_trainer.files import read_bounded, replacing, write_atomically
from autolora_trainer.lora.base_weight import packed_tensors, told_by
from autolora_trainer.lora.fresh import untrained_fresh, with_modules
from autolora_trainer.lora.fused import split_parts
from autolora_trainer.lora.parts import adaptable_names, base_model_of, base_modules, lora_parts
from autolora_trainer.lora.sharded import whole
from autolora_trainer.names import module_of, named
from autolora_trainer.ranks.adapter_config import CONFIG_FILE
from autolora_trainer.ranks.adapter_file import WEIGHTS_FILE
from autolora_trainer.ranks.learned import LearnedRanks


def build_adapter(
    model: torch.nn.Module, ranks: LearnedRanks, lora_config: LoraConfig | None = None, scaling: str = "constant"
) -> PeftModel:
    """Wrap `model` with an ordinary LoRA adapter of the learned ranks, and check that it really has them.

    Args:
        model: the pre-trained model, without an adapter.
        lora_config: the other LoRA settings (task type, dropout, lora_alpha …). Modules that the model's checkpoint
            lacks are trained and saved too.
        scaling: see `LearnedRanks.to_lora_config`.
    Raises:
        ValueError: if the model lacks one of the modules, or a built rank differs from the learned one.
    """
    ranks.check_names(adaptable_names(model))
    config = ranks.to_lora_config(lora_config, scaling=scaling)
    _check_settings(config)
    with patterns_of_parameters():
        adapted = get_peft_model(model, with_modules(config, untrained_fresh(model, config)[0]))
    split_parts(adapted, ranks.ranks)
    verify_ranks(adapted, ranks)
    return adapted


def _check_settings(config: LoraConfig) -> None:
    """Raise `ValueError` for the settings of a LoRA that do not go with a rank for every module."""
    if config.layer_replication:
        raise ValueError(
            "layer_replication makes other layers than those that have ranks. Drop it from the LoraConfig, or save "
            "the replicated model and search that."
        )
    if config.target_parameters and config.lora_dropout:
        raise ValueError(
            f"PEFT has no dropout for parameters, got lora_dropout={config.lora_dropout} and ranks of "
            f"{named(config.target_parameters)}. Set lora_dropout=0 in the LoraConfig."
        )
    odd = [name for name, rank in config.rank_pattern.items() if rank % 2]
    if odd and str(config.init_lora_weights).lower() == "orthogonal":
        raise ValueError(
            f"init_lora_weights='orthogonal' takes even ranks alone, and {len(odd)} of {len(config.rank_pattern)} are "
            "odd. Leave it out."
        )


def save_adapter(config: LoraConfig, tensors: dict[str, torch.Tensor], folder: str | os.PathLike) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT does, each whole or not at all."""
    os.makedirs(folder, exist_ok=True)
    with replacing(os.path.join(folder, WEIGHTS_FILE)) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with tempfile.TemporaryDirectory() as made:
        config.save_pretrained(made)
        write_atomically(os.path.join(folder, CONFIG_FILE), read_bounded(os.path.join(made, CONFIG_FILE)))


def verify_ranks(model: torch.nn.Module, ranks: LearnedRanks) -> None:
    """Compare the real rank of every module of a built adapter with the rank asked for.

    PEFT drops a pattern key that matches nothing and gives that module the default rank; this stops instead.

    Raises:
        ValueError: naming the first module that differs.
    """
    real = {name: part.lora_A.shape[-2] for name, part in lora_parts(model).items()}
    asked = {name: rank for name, rank in ranks.ranks.items() if rank > 0}
    for name in [*asked, *real]:
        if asked.get(name, 0) != real.get(name, 0):
            raise ValueError(
                f"Module {name!r} should have rank {asked.get(name, 0)}, and the built adapter gives it "
                f"{real.get(name, 0)}. Check target_modules and rank_pattern of the LoraConfig."
            )


QUANTIZED = "quantized-"  # how the fingerprint of a quantized model begins,
PACKED = "packed-"  # and of one that nothing dequantizes
DIGITS = 16


def fingerprint(model: torch.nn.Module, names) -> str | None:
    """A short hash of a base model: the names and shapes of `names` and the first 64 values of each weight, as
    bfloat16, so that loading in another precision does not change it. It tells checkpoints apart; it is no signature.

    Quantizing does change the values. The hash of a quantized model is that of its dequantized weights, of its codes
    (4 bits of bitsandbytes), or of its packed tensors where nothing dequantizes them, begins with `quantized-` or
    `packed-`, and compares only with its like: see `is_other_model`. None: the weights are not in memory.
    """
    digest, kinds = hashlib.sha256(), set()
    modules = dict(base_modules(model))
    for name in sorted({module_of(name) for name in names}):
        owner, _, leaf = name.rpartition(".")
        module = modules[name if name in modules else owner]
        layer = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        weight = told_by(layer) if name in modules else getattr(layer, leaf)  # a module's, or a parameter
        packed = name in modules and weight is not getattr(layer, "weight", None)
        kinds.add(PACKED if weight is None else QUANTIZED if packed else "")
        for part, tensor in packed_tensors(layer) if weight is None else [("", weight)]:
            if tensor.is_meta:
                return None
            head = whole(tensor).detach().flatten()[:64].to(torch.bfloat16).float().tolist()
            digest.update(f"{name}{part} {tuple(tensor.shape)}{head!r}".encode())
    return next((kind for kind in (PACKED, QUANTIZED) if kind in kinds), "") + digest.hexdigest()[:DIGITS]


def is_other_model(ranks: LearnedRanks, model: torch.nn.Module) -> bool:
    """Whether `ranks` were learned on a checkpoint with other weights than `model`, as far as fingerprints tell; of
    models that are quantized differently they cannot."""
    learned = ranks.base_model_fingerprint
    present = None if learned is None else fingerprint(model, ranks.modules)
    if learned is None or present is None:
        return False
    return learned != present and learned[:-DIGITS] == present[:-DIGITS]


def public_model_name(model) -> str:
    """The base model's Hub id; for a local folder its name alone, so that no file carries a path of this machine."""
    base = base_model_of(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__
    if os.path.isdir(name) or os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
        return os.path.basename(os.path.normpath(name))
    return name
