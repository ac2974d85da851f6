"""What is trained and saved beside an adapter: the head of a task, and what else a checkpoint lacks."""

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from autolora_trainer.lora.parts import factors_of
from autolora_trainer.lora.sharded import write_whole

HEADS = ("classifier", "score")  # what PEFT trains besides an adapter: the modules that a task adds to a base model

# beside those of a sequence classifier, which `all-linear` of PEFT passes over by itself: linear layers that PEFT
# trains whole for a task, and adapts too if nothing excludes them, which is an error
WHOLE_HEADS = {"TOKEN_CLS": HEADS, "SEQ_CLS": ("pre_classifier",), "QUESTION_ANS": ("qa_outputs",)}


def head_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of the head that a task adds to a base model, and of what else its checkpoint lacks; of a PEFT
    model, of the head's trained copy. A causal language model has none."""
    if isinstance(model, PeftModel):
        return {name: p for name, p in model.named_parameters() if ".modules_to_save." in name}
    heads = [name for name, _ in model.named_children() if name.endswith(HEADS)]
    return {
        f"{module_name}.{name}": p
        for module_name in dict.fromkeys([*heads, *getattr(model, "fresh_modules", ())])
        for name, p in model.get_submodule(module_name).named_parameters()
    }


def trained_beside_lora(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """{name: parameter} of what is trained beside the factors of a LoRA adapter, whatever it is called; a bias has its
    name in the base model, whether its module is adapted or not."""
    factors = factors_of(model)
    wrapped = {f"{name}.base_layer.": f"{name}." for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in factors:
            while (inner := next((key for key in wrapped if name.startswith(key)), None)) is not None:
                name = wrapped[inner] + name.removeprefix(inner)  # experts have a wrapper for every parameter
            found[name] = parameter
    return found


def set_values(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    """Give parameters the values of their names, in place."""
    for name, parameter in parameters.items():
        write_whole(parameter, values[name])
