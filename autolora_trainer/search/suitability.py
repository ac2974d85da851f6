"""Whether a model, its adapter and the settings of a LoRA can be searched, and the true reason where they cannot."""

import torch
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from transformers import Trainer

from autolora_trainer.lora.experts import routers, within
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.lora.targets import refuse_dropout
from autolora_trainer.names import named
from autolora_trainer.training.passes import check_smoothing

OWN_FORWARD = ("sentence_transformers", "setfit")  # packages whose models take other inputs than transformers' models
ONLINE = "GRPO RLOO OnlineDPO PPO Distillation SDPO SDFT A2PO IWOPD AsyncGRPO AsyncDistillation".split()  # TRL's


def check_model(model, peft_config: LoraConfig | None, smoothing: float = 0.0) -> None:
    """Raise `ValueError` for a model that cannot be searched, with an adapter or with one to come.

    Args:
        smoothing: `label_smoothing_factor`.
    """
    kind = type(model).__name__
    if isinstance(model, str):
        raise ValueError(f"The search needs the model itself, got {model!r}. Load it, and pass model=....")
    check_module(model)
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise ValueError(
                "The search needs one adapter, got a PeftModel and a peft_config. Drop peft_config, or pass "
                "model.unload()."
            )
        check_adapter(model)
    elif any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError(
            f"The search needs a PeftModel, got a {kind} with LoRA layers inside (of add_adapter, or of a model that "
            "was searched before). Load it anew, and pass peft_config=LoraConfig(...)."
        )
    elif peft_config is None:
        raise ValueError(
            f"The search needs a LoRA adapter, got a plain {kind}. Pass peft_config=LoraConfig(...) or wrap the model "
            "with get_peft_model."
        )
    else:
        check_config(peft_config)
        refuse_dropout(model, peft_config)
    check_smoothing(model, smoothing)


def check_module(model) -> None:
    """Raise `ValueError` for what is no model, or is none that its batch alone is given to."""
    kind = type(model).__name__
    if any(parent.__module__.partition(".")[0] in OWN_FORWARD for parent in type(model).__mro__):
        raise ValueError(
            f"The search runs a model on its batch, and a {kind} is run by its own losses. Search the transformers "
            "model in it, with a Trainer whose compute_loss calls that loss, and give the ranks to add_adapter of the "
            "SentenceTransformer."
        )
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"The search needs a torch.nn.Module, got {kind}. Pass model=....")


def check_config(config) -> None:
    """Raise `ValueError` for the settings of a LoRA that a search cannot have."""
    if not isinstance(config, LoraConfig):
        raise ValueError(f"peft_config must be a peft.LoraConfig, got {type(config).__name__}.")
    check_kind(config)
    for name, what in (("rank_pattern", "rank k"), ("alpha_pattern", "scale")):
        if getattr(config, name, None):
            raise ValueError(
                f"The search needs the same {what} in every LoRA layer, got a {name} in peft_config. Drop {name} "
                "from the LoraConfig."
            )


def check_kind(config: LoraConfig) -> None:
    """What holds of the config of an adapter that is there, too."""
    if config.peft_type != PeftType.LORA:
        raise ValueError(
            f"The search is of plain LoRA, got {type(config).__name__}, which shares out ranks or factors by itself. "
            "Give a peft.LoraConfig."
        )
    if getattr(config, "lora_bias", False):
        raise ValueError(
            "The search needs lora_bias=False: a bias of lora_B belongs to no component. Search without it; the "
            "retrain may have it."
        )
    if getattr(config, "layer_replication", None):
        raise ValueError(
            "The search needs the layers of the base model, and layer_replication makes others, whose names no other "
            "model has. Drop it, or save the replicated model and search that."
        )
    if str(config.init_lora_weights).lower() == "orthogonal":
        raise ValueError(
            "init_lora_weights='orthogonal' takes even ranks alone, and learned ranks may be odd. Leave it out, here "
            "and in the retrain."
        )


def check_adapter(model: PeftModel, adapter_name: str = "default") -> None:
    """Raise `ValueError` for an adapter that is not the one that runs, or does not train. One of another name, or
    without LoRA layers, is left to `attach_gates`."""
    if adapter_name not in model.peft_config:
        return
    check_kind(model.peft_config[adapter_name])
    layers = lora_layers(model, adapter_name)
    if routing := within(routers(model), layers):
        raise ValueError(
            f"The search adapts no routers, and the adapter does ({named(routing)}). Give the model without an "
            "adapter, and the LoraConfig as peft_config: routers are then left out."
        )
    active = model.active_adapters
    if list(active) != [adapter_name]:
        raise ValueError(
            f"The search is of the adapter {adapter_name!r}, and {', '.join(map(repr, active)) or 'none'} runs. Call "
            f"model.set_adapter({adapter_name!r}) first."
        )
    for name, layer in layers.items():
        if layer.merged or layer.disable_adapters:
            what, cure = ("merged", "unmerge_adapter()") if layer.merged else ("off", "enable_adapter_layers()")
            raise ValueError(f"The adapter is {what} at {name!r}, and would not train. Call model.{cure} first.")
    asks = {name: any(p.requires_grad for p in _factors(layer, adapter_name)) for name, layer in layers.items()}
    frozen = [name for name, own in asks.items() if not own]
    if frozen:
        raise ValueError(
            f"The adapter is frozen in {len(frozen)} of {len(layers)} modules, the first is {frozen[0]!r}, and the "
            "search trains it. Load it with is_trainable=True, or leave these modules out of target_modules."
        )


def _factors(layer: LoraLayer, adapter_name: str) -> list[torch.nn.Parameter]:
    return [*layer.lora_A[adapter_name].parameters(), *layer.lora_B[adapter_name].parameters()]


def check_trainer(*kinds: type) -> None:
    """Raise `ValueError` for a trainer, or the arguments of one, that makes its rows while it trains."""
    names = {parent.__name__.removesuffix("Config") for kind in kinds for parent in kind.__mro__}
    names = {name.removesuffix("Trainer") for name in names}
    if online := next((name for name in ONLINE if name in names), None):
        raise ValueError(
            f"{online}Trainer makes its rows while it trains, so held-out rows have no loss to search by. Call "
            f"find_ranks with rows of prompts and completions, and give {online}Trainer the result as peft_config."
        )


def check_order(cls: type, mixin: type) -> None:
    """Raise `TypeError` for a class in which a Trainer comes before the search, which would never run."""
    order = cls.__mro__
    before = [own for own in order[: order.index(mixin)] if issubclass(own, Trainer) and not issubclass(own, mixin)]
    if before:
        raise TypeError(
            f"class {cls.__name__} would train without a search: {before[0].__name__} comes before {mixin.__name__}. "
            f"Write class {cls.__name__}({mixin.__name__}, {before[0].__name__})."
        )
