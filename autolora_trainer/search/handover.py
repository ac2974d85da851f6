"""What a retrain may start from: the chosen components of a search, and its trained heads."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from safetensors import SafetensorError
from safetensors.torch import load_file

from autolora_trainer.lora.base_weight import base_weight
from autolora_trainer.lora.heads import trained_beside_lora
from autolora_trainer.lora.parts import flat, init_that_changes_base, lora_layers, lora_parts
from autolora_trainer.lora.sharded import whole, write_whole
from autolora_trainer.lora.svd import INITIAL_NORM, best_factors
from autolora_trainer.names import PREFIX, SEPARATOR, WRAPPED, file_names, module_of
from autolora_trainer.ranks.adapter_file import AdapterFile
from autolora_trainer.search.selection import SelectionGates


@torch.no_grad()
def kept_factors(
    gates: SelectionGates, chosen: dict[str, list[int]], directions: bool
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The kept components of a search with α folded into B, for a retrain that goes on from them.

    Args:
        chosen: {module: places of its components}.
        directions: they are singular directions of the module's update, by falling singular value, not components of
            the search. Their rows of A have the norm that LoRA begins with: Adam moves B A by about the rate times
            ‖A‖ + ‖B‖, so with smaller rows a retrain learns slower than from scratch (`benchmarks/README.md`).
    Returns:
        {module: (A of shape (r, n_l), B of shape (m_l, r))} for the modules of rank >= 1; of E experts, E in front.
    """
    kept = {}
    for row, (name, part) in enumerate(gates.parts.items()):
        if not (places := chosen.get(name)):
            continue
        a, b = part.lora_A.detach().float().cpu(), part.lora_B.detach().float().cpu() * gates.selection[row].cpu()
        if directions:
            a, b = best_factors(b, a, part.rank, INITIAL_NORM)
        kept[name] = (a[..., places, :], b[..., places])
    return kept


def handover_tensors(
    gates: SelectionGates, chosen: dict[str, list[int]], directions: bool, model: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """What a retrain of the search `model` starts from: the `kept_factors`, with the search's scales folded into B,
    and the trained heads.

    Returns:
        `A.<module>` and `B.<module>` of the shapes of `kept_factors`, `head.<parameter>`.
    """
    if gates.baked:
        raise ValueError("gates.bake() has folded α into the adapter. Call start_retrain before it.")
    tensors = {}
    for name, (a, b) in kept_factors(gates, chosen, directions).items():
        tensors[f"A.{name}"] = a.contiguous()
        tensors[f"B.{name}"] = (b * gates.scale * gates.parts[name].scaling).contiguous()
    for name, parameter in trained_beside_lora(model).items():
        tensors[f"head.{name}"] = whole(parameter).detach().cpu().contiguous().clone()  # the model stays as it was
    return tensors


def adapter_tensors(
    tensors: dict[str, torch.Tensor],
    config: LoraConfig,
    rows: dict[str, tuple[torch.Tensor, int]] | None = None,
    parameters: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """`handover_tensors` as the file of an adapter, {name in adapter_model.safetensors: tensor}.

    Args:
        config: of the adapter, as `LearnedRanks.to_lora_config` makes it.
        rows: {part of a fused projection: (its rows, those of the whole)}.
        parameters: of experts, in the order of the model, which a configuration does not keep.
    """
    pieces: dict[str, list] = {}
    for name in (key[2:] for key in tensors if key.startswith("A.")):
        a, b = tensors[f"A.{name}"], tensors[f"B.{name}"]
        if rows and name in rows:
            own, most = rows[name]
            b = torch.zeros(most, b.shape[1], dtype=b.dtype).index_copy(0, own.cpu(), b)
        pieces.setdefault(module_of(name), []).append((a, b))
    parameters, found = [name for name in parameters if name in pieces], {}
    for name, path in file_names(pieces, parameters).items():
        a, b = flat(*(torch.cat(part, dim) for part, dim in zip(zip(*pieces[name]), (0, 1))))
        found |= {f"{PREFIX}{path}.lora_A.weight": a, f"{PREFIX}{path}.lora_B.weight": b}
    file = AdapterFile(config.to_dict(), {name: ("F32", tuple(t.shape)) for name, t in found.items()})
    for path, name in file.names.items():
        found[f"{PREFIX}{path}.lora_B.weight"] = found[f"{PREFIX}{path}.lora_B.weight"] / file.scales[name]
    for name, tensor in tensors.items():
        if name.startswith("head."):
            name = name.removeprefix("head.").replace(".modules_to_save.default", "").removeprefix(PREFIX)
            module, _, last = name.rpartition(".")
            name = f"{module}.{WRAPPED}.{last}" if module in pieces else name
            found[PREFIX + file_names([name], parameters)[name]] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _check_variants(layers: dict[str, LoraLayer]) -> None:
    """Raise `ValueError` for a variant of LoRA that cannot begin as the search ended."""
    for name, layer in layers.items():
        variant = getattr(layer, "lora_variant", {}).get("default")
        if variant is not None and not isinstance(variant, DoraLinearVariant):
            raise ValueError(
                f"A retrain starts from a search as plain LoRA or DoRA, got {type(variant).__name__} at {name!r}. "
                "Leave start_retrain out, and it starts from the pre-trained model."
            )
        if variant is not None and base_weight(layer.get_base_layer()) is None:
            raise ValueError(
                f"DoRA begins with the norms of the weight, and nothing dequantizes that of {name!r} "
                f"({type(layer.get_base_layer()).__name__}). Leave use_dora out, or start_retrain."
            )


@torch.no_grad()
def start_from(
    tensors: dict[str, torch.Tensor], model: PeftModel, check_base: Callable[[PeftModel], None] | None = None
) -> None:
    """Start an adapter from `handover_tensors`: its update is then that of the search's kept components. DoRA's
    magnitudes become the norms of the weight with that update, so that it begins as the same model.

    Args:
        check_base: raises where the base model is not that of the search; before anything is written.
    Raises:
        ValueError: if they are not what the adapter needs, or it is of another variant than DoRA, or on another base.
    """
    if (scheme := init_that_changes_base(model)) is not None:
        raise ValueError(
            f"A retrain starts from a search on the same base model, and init_lora_weights={scheme!r} alters it. "
            "Leave start_retrain out, or init_lora_weights."
        )
    layers = lora_layers(model)
    _check_variants(layers)
    targets = {}
    for name, part in lora_parts(model).items():
        targets[f"A.{name}"] = (part.lora_A, part.set_lora_A)
        targets[f"B.{name}"] = (part.lora_B, lambda value, part=part: part.set_lora_B(value / part.scaling))
    for name, parameter in trained_beside_lora(model).items():
        targets[f"head.{name}"] = (parameter, partial(write_whole, parameter))
    for name, (target, _) in targets.items():
        given = tuple(tensors[name].shape) if name in tensors else "nothing"
        if given != tuple(target.shape):
            if any(kept.startswith(name + SEPARATOR) for kept in tensors):
                raise ValueError(
                    f"The search kept parts of {name[2:]!r}, and this adapter is of the whole. Make it with "
                    "autolora_trainer.build_adapter(model, learned_ranks, lora_config)."
                )
            raise ValueError(
                f"The search kept {given} for {name!r}, the retrain needs {tuple(target.shape)}. Search again."
            )
    for name in tensors:
        if name.startswith("head.") and name not in targets:
            raise ValueError(
                f"The search trained {name[5:]!r}, and this adapter does not. Give build_adapter the LoraConfig of "
                "the search, with its modules_to_save and bias."
            )
    if check_base is not None:
        check_base(model)
    for name, (_, write) in targets.items():
        write(tensors[name])
    for layer in layers.values():
        if "default" in layer.lora_magnitude_vector:
            dora, update = layer.lora_magnitude_vector["default"], layer.lora_B["default"].weight.float()
            update = update @ layer.lora_A["default"].weight.float()  # (m, n)
            weight = base_weight(layer.get_base_layer()).to(update)
            dora.weight.copy_(dora.get_weight_norm(weight, update, layer.scaling["default"]))


def load_handover(path: str, model: PeftModel) -> None:
    """`start_from` what a file holds; raises `ValueError` if that is not what the adapter needs."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}). Search again.") from None
    start_from(tensors, model)
