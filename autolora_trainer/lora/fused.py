"""Parts of adapters: the query, key and value of a fused projection get ranks of their own.

GPT-2's `c_attn` computes query, key and value in one product; so do `qkv_proj`, `Wqkv`, `query_key_value` and others.
A *part* of such a module is written `…c_attn#q`. Its update lives in its own rows of `lora_B` and its own components:

    [ΔW_q]   [B_q  0 ] [A_q]
    [ΔW_k] = [ 0   0 ] [A_v]
    [ΔW_v]   [ 0  B_v]

which is one ordinary LoRA of rank r_q + r_v on the fused module (in Hu et al. 2022's code: MergedLinear). Its `lora_B`
becomes a `SplitLinear`, which keeps the zeros exactly zero.

All of the package sees adapters through `lora_parts`: an unfused module is one part, the whole of itself.
"""

import dataclasses
import math
import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn

from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.lora.split import SplitLinear
from autolora_trainer.lora.targets import named_targets
from autolora_trainer.names import SEPARATOR, check_names

SEARCHED_PARTS = ("q", "v")  # where nothing else is asked for: the paper adapts query and value (§5.1)
FUSED = ("c_attn", "qkv_proj", "Wqkv", "query_key_value")
# [q | k | v], with fewer key-value heads of unequal width; GPT-BigCode with `multi_query` only
THIRDS = "gpt2 decision_transformer imagegpt openai-gpt phi3 phi4_multimodal modernbert mpt gpt_bigcode".split()
# for every head its q, k and v; others of these names (Falcon, ChatGLM) order it otherwise
BY_HEAD = "gpt_neox gpt_neox_japanese bloom".split()


def part_rows(module_name: str, rows: int, config) -> dict[str, torch.Tensor] | None:
    """{"q": its rows, "k": …, "v": …} of a fused projection with `rows` outputs; None if it is none that is known.

    By the model's code: a module's name does not tell (CodeGen and MiniMax order their `qkv_proj` otherwise).
    """
    kind, multi_query = getattr(config, "model_type", None), getattr(config, "multi_query", False)
    by_head = kind in BY_HEAD or kind == "gpt_bigcode" and not multi_query
    if module_name.rpartition(".")[2] not in FUSED or not (by_head or kind in THIRDS):
        return None
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "n_head", None)
    size = getattr(config, "hidden_size", None)
    if not (heads and size):
        return None
    width = getattr(config, "head_dim", None) or size // heads
    shared = 1 if multi_query else getattr(config, "num_key_value_heads", None) or heads
    widths = [heads * width] * 3 if by_head else [heads * width, shared * width, shared * width]
    if rows != sum(widths):  # cross attention's c_attn is [k | v]
        return None
    index = torch.arange(rows)
    parts = index.view(heads, 3, width).unbind(1) if by_head else index.split(widths)
    return {part: own.reshape(-1) for part, own in zip("qkv", parts)}


def split_layer(layer: LoraLayer, parts: dict[str, int], rows: dict[str, torch.Tensor]) -> None:
    """Divide the components of a LoRA layer among parts {part: r_p}, in their order, for good: what of `lora_B` is not
    in the `rows` of a component's part becomes zero and stays zero under any training."""
    weight = layer.lora_B["default"].weight
    if sum(parts.values()) != weight.shape[1]:
        raise ValueError(f"The parts {parts} need rank {sum(parts.values())}, the layer has {weight.shape[1]}.")
    mask, start = torch.zeros_like(weight), 0
    for part, rank in parts.items():
        mask[rows[part].to(mask.device), start : start + rank] = 1
        start += rank
    SplitLinear.divide(layer.lora_B["default"], mask)
    layer.fused_parts = {"default": {part: (rank, rows[part]) for part, rank in parts.items()}}


def resolve_targets(model: nn.Module, lora_config: LoraConfig) -> dict[str, list[str]] | None:
    """{full module name: parts, in order} for the target modules that are searched by parts; None if there are none.

    A target `c_attn#q` names a part. Where no targets are given and PEFT's own default for the model is a fused
    projection, its query and value are meant, and the whole of those that have no parts, of cross attention; a target
    `c_attn` that is typed means the whole of it. `exclude_modules`, `layers_to_transform` and `modules_to_save` leave
    out what they leave out in PEFT.
    """
    targets, config = lora_config.target_modules, getattr(model, "config", None)
    if targets is None:
        default = DEFAULT_TARGETS.get(getattr(config, "model_type", None), [])
        if not isinstance(default, list) or not any(name in FUSED for name in default):
            return None
        wanted = [f"{name}{SEPARATOR}{part}" if name in FUSED else name for name in default for part in SEARCHED_PARTS]
    elif isinstance(targets, str) or not any(SEPARATOR in name for name in targets):
        return None
    else:
        wanted = list(targets) if isinstance(targets, list) else sorted(targets)
        ends = tuple("." + target for target in wanted if SEPARATOR in target)
        check_names(name for name, _ in model.named_modules() if ("." + name).endswith(ends))  # called so themselves
    found: dict[str, list[str]] = {}
    for target in dict.fromkeys(wanted):
        module, _, part = target.partition(SEPARATOR)
        names = [n for n, _ in model.named_modules() if n == module or n.endswith("." + module)]
        if not names:
            raise ValueError(f"Target modules {module!r} not found in the base model")  # PEFT's words
        own = dataclasses.replace(lora_config, target_modules=[module])
        for name in names:
            if not check_target_module_exists(own, name):
                continue
            parts = found.setdefault(name, [])
            if part:
                known = part_rows(name, out_features(model.get_submodule(name)), config)
                if known is None and targets is None:
                    continue
                if part not in (known or {}):
                    raise ValueError(
                        f"{target!r} names a part of {type(model).__name__}'s {name!r}, which has "
                        f"{', '.join(known) if known else 'no parts that are known'}. Give the whole, {module!r}."
                    )
                parts.append(part)
    if not found:
        raise ValueError(
            f"exclude_modules, layers_to_transform or modules_to_save leave none of {', '.join(wanted)} in "
            f"{type(model).__name__}. Leave out less."
        )
    if targets is None and not any(found.values()):
        return None
    return {name: sorted(parts, key="qkv".index) for name, parts in found.items()}


def out_features(module: nn.Module) -> int:
    """Rows of a linear layer's output, of `nn.Linear` as of GPT-2's `Conv1D`."""
    return module.nf if hasattr(module, "nf") else module.out_features


def add_lora(model: nn.Module, lora_config: LoraConfig, rank: int | None = None) -> PeftModel:
    """`peft.get_peft_model`, with `rank` components for every target module, for every part of a fused one, and for
    every parameter of experts; routers are left out, see `named_targets`.

    Args:
        lora_config: its `target_modules` may name parts (`c_attn#q`); see `resolve_targets`.
        rank: default: the config's r.
    Raises:
        ValueError: if a target is not there.
    """
    rank = lora_config.r if rank is None else rank
    targets = resolve_targets(model, lora_config)
    if targets is None:
        return get_peft_model(model, dataclasses.replace(named_targets(model, lora_config), r=rank))
    split = {name: parts for name, parts in targets.items() if parts}
    keys = {name: "^" + re.escape(name) for name in split}
    # the scale of every component is then lora_alpha / rank, in parts as in whole modules
    grow = math.sqrt if lora_config.use_rslora else int
    wide = dataclasses.replace(
        lora_config,
        r=rank,
        target_modules=list(targets),
        rank_pattern={keys[name]: rank * len(parts) for name, parts in split.items()},
        alpha_pattern={keys[name]: lora_config.lora_alpha * grow(len(parts)) for name, parts in split.items()},
    )
    adapted = get_peft_model(model, wide)
    split_parts(adapted, {f"{name}{SEPARATOR}{part}": rank for name, parts in split.items() for part in parts})
    return adapted


def split_parts(model: PeftModel, ranks: dict[str, int]) -> None:
    """`split_layer` for every name with a part in `ranks` whose rank is not zero."""
    layers, base = lora_layers(model), model.get_base_model()
    grouped: dict[str, dict[str, int]] = {}
    for name, rank in ranks.items():
        module, separator, part = name.partition(SEPARATOR)
        if separator and rank:
            grouped.setdefault(module, {})[part] = rank
    for module, parts in grouped.items():
        rows = part_rows(module, out_features(layers[module].get_base_layer()), base.config)
        if rows is None or not set(parts) <= set(rows):
            raise ValueError(
                f"{module!r} has no part {', '.join(sorted(set(parts) - set(rows or ())))} in {type(base).__name__}. "
                "Were the ranks learned on another model?"
            )
        split_layer(layers[module], parts, rows)
