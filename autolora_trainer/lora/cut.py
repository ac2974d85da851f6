"""A smaller adapter from some components of a trained one: an ordinary LoRA of scale 1, whatever the given one was."""

import copy
import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from autolora_trainer.lora.parts import (
    LoraPart,
    base_model_of,
    flat,
    init_that_changes_base,
    lora_layers,
    lora_parts,
    paths_of,
)
from autolora_trainer.lora.svd import INITIAL_NORM, best_factors, strengths
from autolora_trainer.names import PREFIX, check_names, file_names, module_of


def check_cuttable(model: torch.nn.Module, adapter_name: str = "default") -> None:
    """Raise `ValueError` for an adapter whose updates are not plain products B A on the base model as it is."""
    configs = getattr(model, "peft_config", {})
    config = configs.get(adapter_name)
    if not isinstance(config, LoraConfig):
        kind = getattr(config, "peft_type", None)
        names = ", ".join(map(repr, configs)) or "none"
        what = f"of type {getattr(kind, 'value', kind)}" if config is not None else f"not there (adapters: {names})"
        raise ValueError(f"The adapter {adapter_name!r} is {what}, and only LoRA is cut. Give a LoRA adapter.")
    check_names(lora_layers(model, adapter_name))
    if config.use_dora:
        raise ValueError("The adapter is DoRA, whose magnitudes belong to its whole update. Train it again smaller.")
    if (scheme := init_that_changes_base(model, adapter_name)) is not None:
        raise ValueError(
            f"init_lora_weights={scheme!r} has altered the base model under this adapter. Convert it to plain LoRA "
            "first: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    if config.lora_bias or config.bias != "none":
        raise ValueError("The adapter trains biases, which belong to no component. Train without bias, lora_bias.")
    for name, module in base_model_of(model).named_modules():
        if isinstance(module, LoraLayer) and adapter_name in getattr(module, "lora_variant", {}):
            variant = type(module.lora_variant[adapter_name]).__name__
            raise ValueError(f"{name!r} is {variant}, and only plain LoRA is cut. Train it again smaller.")
        if isinstance(module, LoraLayer) and module.merged:
            raise ValueError(f"{name!r} is merged into the base model. Call model.unmerge_adapter() first.")


def cuttable_parts(model: torch.nn.Module, adapter_name: str = "default") -> dict[str, LoraPart]:
    """{module: part} of the linear layers of an adapter; embeddings and convolutions are kept as they are."""
    parts = lora_parts(model, adapter_name)
    return {n: part for n, part in parts.items() if isinstance(part.layer.lora_A[adapter_name], torch.nn.Linear)}


def singular_values(parts: dict[str, LoraPart]) -> dict[str, torch.Tensor]:
    """{module: σ of its update, scale included, falling, (min(r, m, n),)}, in float64; see `strengths`."""
    return {
        name: strengths(part.lora_B.detach().cpu().double() * part.scaling, part.lora_A.detach().cpu().double())
        for name, part in parts.items()
    }


def leading(values: dict[str, torch.Tensor], rank: int | float) -> dict[str, list[int]]:
    """{module: its leading components}: `rank` of them, or of a float the fewest with that share of the energy Σ σ²,
    as in PEFT's `save_as_lora`."""
    kept = {}
    for name, own in values.items():
        if isinstance(rank, int):
            count = min(rank, len(own))
        else:
            energy = own.square().cumsum(0)
            count = int((energy < rank * energy[-1] * (1 - 1e-12)).sum()) + 1 if energy[-1] > 0 else 0
        kept[name] = list(range(count))
    return kept


@torch.no_grad()
def cut(
    model: PeftModel, chosen: dict[str, list[int]], adapter_name: str = "default"
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """The adapter of some components of another, as PEFT saves it; that is left alone.

    What is saved beside the updates (heads and other `modules_to_save`, embeddings, convolutions) comes along as it
    is. Rows of A have the norm that LoRA begins with, so that training goes on as it would from there.

    Args:
        chosen: {module: places of its components among the singular directions of its update}; of others none is kept.
    Returns:
        (config, {name in the file: tensor}); every module has scale 1, lora_alpha / r in whole numbers.
    Raises:
        ValueError: see `check_cuttable`, and if nothing is left.
    """
    check_cuttable(model, adapter_name)
    tensors = dict(get_peft_model_state_dict(model, adapter_name=adapter_name))
    ranks: dict[str, int] = {}
    alphas: dict[str, int | float] = {}
    layers: dict[LoraLayer, list[LoraPart]] = {}
    paths, kept, parameters = paths_of(model), {}, []
    for part in cuttable_parts(model, adapter_name).values():
        layers.setdefault(part.layer, []).append(part)
    for layer, parts in layers.items():
        name = module_of(parts[0].name)
        a, b = (tensors.pop(f"{PREFIX}{paths[layer]}.lora_{which}.weight") for which in "AB")
        own, new_a, new_b = _kept_factors(b.shape[0], parts, chosen)
        if own:
            ranks[name] = alphas[name] = own
            kept[name] = new_a.to(a).contiguous(), new_b.to(b).contiguous()
            parameters += [name] if parts[0].experts else []
    for name, path in file_names(kept, parameters).items():
        tensors |= {f"{PREFIX}{path}.lora_{which}.weight": tensor for which, tensor in zip("AB", kept[name])}
    for name, module in base_model_of(model).named_modules():
        if isinstance(module, LoraLayer) and module not in layers and adapter_name in module.r:
            ranks[name], alphas[name] = module.r[adapter_name], _alpha(module, adapter_name)
    if not ranks:
        raise ValueError("No component is left, and PEFT has no empty adapter. Keep at least one.")
    return _config(model.peft_config[adapter_name], ranks, alphas, parameters), tensors


def _kept_factors(rows: int, parts: list[LoraPart], chosen) -> tuple[int, torch.Tensor, torch.Tensor]:
    """r, and A and B of the r kept components of a layer as PEFT has them, scale included."""
    factors_a, factors_b = [], []
    for part in parts:
        own = sorted(chosen.get(part.name, ()))
        b = part.lora_B.detach().cpu().double() * part.scaling
        a, b = best_factors(b, part.lora_A.detach().cpu().double(), part.rank, INITIAL_NORM)
        whole = torch.zeros(*b.shape[:-2], rows, len(own), dtype=b.dtype)
        whole[..., slice(None) if part.rows is None else part.rows.cpu(), :] = b[..., own]
        factors_a.append(a[..., own, :])
        factors_b.append(whole)
    a, b = torch.cat(factors_a, dim=-2), torch.cat(factors_b, dim=-1)
    return b.shape[-1], *flat(a, b)


def _alpha(layer: LoraLayer, adapter_name: str) -> int | float:
    """What gives a layer that is not cut its scale, where that is lora_alpha / r."""
    alpha = layer.scaling[adapter_name] * layer.r[adapter_name]
    return round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha


def _config(given: LoraConfig, ranks: dict[str, int], alphas: dict, parameters: list[str]) -> LoraConfig:
    keys = {name: "^" + re.escape(name) for name in ranks}
    config = copy.deepcopy(given)
    config.r = config.lora_alpha = max(ranks.values())
    config.target_modules, config.target_parameters = set(ranks).difference(parameters), parameters or None
    config.rank_pattern = {keys[name]: rank for name, rank in ranks.items()}
    config.alpha_pattern = {keys[name]: alpha for name, alpha in alphas.items()}
    config.use_rslora, config.init_lora_weights, config.inference_mode = False, True, True
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return config
