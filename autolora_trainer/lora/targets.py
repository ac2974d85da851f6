"""What the targets of a LoRA mean in a model: linear layers, or experts and routers that PEFT wraps as parameters."""

import torch
from peft import LoraConfig
from transformers.pytorch_utils import Conv1D

from autolora_trainer.compat import meant_parameters
from autolora_trainer.lora.heads import HEADS
from autolora_trainer.names import module_of


def linear_names(model: torch.nn.Module) -> list[str]:
    """Of the linear layers of a model without an adapter."""
    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]


def stacked_targets(model: torch.nn.Module, config: LoraConfig) -> list[str]:
    """Names of the parameters (stacked experts, routers) that PEFT adapts in place of modules for this config: those
    of `target_parameters`, and those that `all-linear`, `gate` or `down_proj` mean in Mixtral and models like it."""
    given = config.target_modules
    if given is not None and not isinstance(given, str):
        given = [module_of(name) for name in given]
    return sorted(meant_parameters(model, config, given))


def whole_layers(model: torch.nn.Module, config: LoraConfig) -> list[str]:
    """The last parts of the names of the linear layers, such as `q_proj`, that PEFT adapts as layers; no head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [name for name in linear_names(model) if model.get_submodule(name) is not head]
    ends = sorted({name.rpartition(".")[2] for name in names}.difference(HEADS))
    bare = {"target_parameters": None}
    return [end for end in ends if not meant_parameters(model, config, [end], **bare)]


def refuse_stacked(model: torch.nn.Module, config: LoraConfig) -> None:
    """Raise `ValueError` where PEFT would adapt experts or routers: they are no linear layers, and have no ranks."""
    if names := stacked_targets(model, config):
        raise ValueError(
            f"PEFT adapts experts and routers of {type(model).__name__} as parameters ({', '.join(names)}), and ranks "
            f"are found of linear layers. Name those: target_modules={whole_layers(model, config)}."
        )
