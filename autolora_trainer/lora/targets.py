"""What the targets of a LoRA mean in a mixture of experts: linear layers, and experts, which are parameters.

PEFT's own `all-linear` passes over the experts of some models (gpt-oss, Llama 4); of others (Mixtral, Qwen3-MoE,
DeepSeek) it takes them, and routers too, and passes over linear layers that are called like parts of experts
(`shared_expert.down_proj`). Here it is all linear layers and all experts, and no router; every one by its full name.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from transformers.pytorch_utils import Conv1D

from autolora_trainer.compat import all_linear, meant_parameters
from autolora_trainer.lora.experts import routers, share_of, stacked_weights, within
from autolora_trainer.lora.heads import HEADS
from autolora_trainer.names import module_of, named

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Targets:
    """Of a LoRA in a mixture of experts, by their names in the model.

    Attributes:
        layers: modules.
        parameters: of experts; and weights of linear layers that PEFT could not name among modules, as it takes their
            names for those of experts.
        routers: what is meant too, and left out; `all-linear` of PEFT means them in some models.
        left: weights that `all-linear` means, and PEFT cannot adapt.
        unread: linear layers that are meant, and that nothing calls; see `unread_layers`.
    """

    layers: list[str]
    parameters: list[str]
    routers: list[str]
    left: list[str]
    unread: list[str]


def find_targets(model: torch.nn.Module, config: LoraConfig) -> Targets | None:
    """None where PEFT knows what to do: for a model that is no mixture of experts, and of whose layers that are meant
    all are called; and where there are no targets.

    Raises:
        ValueError: PEFT's, for a part alone of what is one parameter.
    """
    stacked, gates, given = stacked_weights(model), routers(model), config.target_modules
    settings = getattr(model, "config", None)
    if given is None and config.target_parameters is None:
        given = DEFAULT_TARGETS.get(getattr(settings, "model_type", None))
    unread = unread_layers(model)
    if not (stacked or gates or unread) or given is None and config.target_parameters is None:
        return None
    everything = isinstance(given, str) and given.lower() == ALL_LINEAR
    modules, names = ([n for n, _ in walk() if n] for walk in (model.named_modules, model.named_parameters))
    ends = set(config.target_parameters or ())
    if everything:
        linear = all_linear(model, config)
        layers = [name for name in modules if name in linear and _allowed(config, name)]
        ends |= set(stacked)
    else:
        own = copy.copy(config)
        own.target_modules = given if given is None or isinstance(given, str) else [module_of(name) for name in given]
        layers = [name for name in modules if check_target_module_exists(own, name)]
        ends |= _named_parameters(model, config, own.target_modules, stacked, modules)
    unread = within(unread, layers)
    if not (stacked or gates or unread):
        return None
    layers = [name for name in layers if name not in unread]
    meant = [name for name in _ending(names, ends) if _allowed(config, name)]
    meant = [name for name in meant if _allowed(config, name.rpartition(".")[0])]
    routing = {name: gate for gate in gates for name in within([gate], (*layers, *meant))}
    taken = {leaf for leaf in {_leaf(name) for name in layers} if _is_taken(model, config, leaf)}
    weights = {f"{name}.weight" for name in layers if _leaf(name) in taken and name not in routing}
    fit = {name for name in meant if name not in stacked or _fits(stacked[name])}
    fit |= weights if getattr(settings, "quantization_config", None) is None else set()
    left = weights.union(meant) - fit if everything else ()
    return Targets(
        layers=[name for name in layers if name not in routing and _leaf(name) not in taken],
        parameters=[name for name in names if name in fit and name not in routing],
        routers=gates if everything else list(dict.fromkeys(routing.values())),
        left=[name for name in names if name in left],
        unread=unread,
    )


def unread_layers(model: torch.nn.Module) -> list[str]:
    """Names of linear layers that nothing calls: `nn.MultiheadAttention` reads the weight of its out_proj, so that an
    adapter there would do nothing."""
    return [f"{name}.out_proj" for name, m in model.named_modules() if isinstance(m, torch.nn.MultiheadAttention)]


def _named_parameters(model, config: LoraConfig, given, stacked, modules: list[str]) -> set[str]:
    """The parameters that target modules mean: to PEFT, and of names those that are of experts and of no module."""
    if given is None:
        return set()
    typed = () if isinstance(given, str) else given
    own = {name for name in typed if _ending(stacked, [name]) and not _ending(modules, [name])}
    return meant_parameters(model, config, given) | own


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _ending(names: Iterable[str], ends: Iterable[str]) -> list[str]:
    """Names that are one of `ends`, or end in one."""
    tails = tuple(f".{end}" for end in ends)
    return [name for name in names if f".{name}".endswith(tails)]


def _fits(weight: torch.Tensor) -> bool:
    """Whether PEFT can adapt the stacked weight of experts."""
    return weight.dim() == 3 and weight.is_floating_point()


def _is_taken(model: torch.nn.Module, config: LoraConfig, name: str) -> bool:
    """Whether PEFT takes the name of a module for one of experts'."""
    try:
        return bool(meant_parameters(model, config, [name]))
    except ValueError:  # for a part of them
        return True


def _allowed(config: LoraConfig, name: str) -> bool:
    """Whether `exclude_modules`, `layers_to_transform` and `modules_to_save` leave it in, as PEFT does for modules."""
    own = copy.copy(config)
    own.target_modules = [_leaf(name)]
    return bool(check_target_module_exists(own, name))


def named_targets(model: torch.nn.Module, config: LoraConfig) -> LoraConfig:
    """`config`; of a mixture of experts, or with layers that nothing calls, every target by its full name, so that
    PEFT turns none into others, and adapts none that is left out."""
    if (found := find_targets(model, config)) is None:
        return config
    whole = {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return replace(config, target_modules=found.layers, target_parameters=found.parameters or None, **whole)


def target_lines(model: torch.nn.Module, config: LoraConfig) -> list[str]:
    """What there is to say of the targets of a LoRA in a model without an adapter, a line each."""
    if (found := find_targets(model, config)) is None:
        return []
    lines = []
    stacked = stacked_weights(model)
    if experts := [name for name in found.parameters if name in stacked]:
        lines.append(f"experts ({named(experts)}): one rank for all experts of a parameter, as PEFT has it")
    if found.routers:
        lines.append(f"routers ({named(found.routers)}) are never adapted, and left out")
    if found.unread:
        lines.append(
            f"{named(found.unread)} left out: nn.MultiheadAttention reads its weight and calls no layer, so that an "
            "adapter there would do nothing"
        )
    if found.left:
        lines.append(
            f"all-linear leaves out {named(found.left)}, {share_of(model, found.left):.0%} of the weights of the "
            "layers: PEFT cannot adapt them in this model, and they get no ranks"
        )
    return lines


def linear_names(model: torch.nn.Module) -> list[str]:
    """Of the linear layers of a model without an adapter."""
    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]


def stacked_targets(model: torch.nn.Module, config: LoraConfig) -> list[str]:
    """Names of the parameters that a LoRA adapts in place of modules."""
    found = find_targets(model, config)
    return list(config.target_parameters or ()) if found is None else found.parameters


def whole_layers(model: torch.nn.Module, config: LoraConfig) -> list[str]:
    """The last parts of the names of the linear layers, such as `q_proj`, that PEFT adapts as layers; no head, and no
    router."""
    head, names = getattr(model, "get_output_embeddings", lambda: None)(), linear_names(model)
    names = [name for name in names if model.get_submodule(name) is not head]
    ends = {_leaf(n) for n in names} - {_leaf(n) for n in within(routers(model), names)}
    return [end for end in sorted(ends.difference(HEADS)) if not _is_taken(model, config, end)]


def refuse_dropout(model: torch.nn.Module, config: LoraConfig) -> None:
    """Raise `ValueError` where a LoRA with dropout adapts parameters: PEFT has none for them."""
    if config.lora_dropout and (names := stacked_targets(model, config)):
        raise ValueError(
            f"PEFT has no dropout for parameters, got lora_dropout={config.lora_dropout} for {named(names)}. Set "
            f"lora_dropout=0, or name linear layers alone: target_modules={whole_layers(model, config)}."
        )
