"""What a checkpoint lacks, and transformers has drawn at random: it has to be trained and saved with an adapter."""

import dataclasses
import re

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from autolora_trainer.compat import drawn_parameters
from autolora_trainer.lora.heads import HEADS

# what PEFT trains of itself, by type of task
OF_TASKS = {"SEQ_CLS": HEADS, "TOKEN_CLS": HEADS, "QUESTION_ANS": ("qa_outputs",)}


def fresh_modules(model: torch.nn.Module, info: dict) -> list[str]:
    """Modules outside `HEADS` whose weights a checkpoint lacks, and which transformers has drawn at random: a pooler
    (DeBERTa; BERT's, of a checkpoint of its masked language model), heads of other names (BART, T5, XLNet). They have
    to be trained and saved with the adapter: whoever loads it draws others. `info` is that of
    `output_loading_info=True`."""
    parameters = {name for name, _ in model.named_parameters()}
    keys = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    names = {key.rpartition(".")[0] for key in keys if key in parameters} - {""}
    return sorted(name for name in names if not any(part.endswith(HEADS) for part in name.split(".")))


def untrained_fresh(model: torch.nn.Module, config: LoraConfig) -> tuple[list[str], list[str]]:
    """What the checkpoint of a model lacks, and an adapter of `config` would neither train nor save: whoever loads it
    draws others.

    Returns:
        (names of modules for `modules_to_save`, names of parameters that lie beside what was loaded).
    """
    drawn, heads = drawn_parameters(model), OF_TASKS.get(getattr(config.task_type, "value", config.task_type), ())
    modules, single = set(), []
    saved = tuple([*(config.modules_to_save or ()), *heads])
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        inside = [".".join(parts[:end]) for end in range(1, len(parts))]  # the modules that it lies in
        if parameter not in drawn or any(module.endswith(saved) for module in inside if saved):
            continue
        owner = inside[-1] if inside else None
        alone = owner and sum(other.endswith(owner) for other, _ in model.named_modules()) == 1  # as PEFT matches it
        if alone and all(own in drawn for own in model.get_submodule(owner).parameters()):
            modules.add(owner)
        else:
            single.append(name)
    return sorted(modules), single


def with_modules(config: LoraConfig, modules: list[str]) -> LoraConfig:
    """`config`, which trains and saves these modules too, and does not adapt them."""
    if not modules:
        return config
    given = config.exclude_modules
    patterns = [re.escape(name) for name in modules]
    if isinstance(given, str):
        patterns.append(f"(?:{given})")
    elif given:
        patterns += [rf"(?:.*\.)?{re.escape(name)}" for name in given]
    adapted = config.target_modules == "all-linear" or any(check_target_module_exists(config, n) for n in modules)
    excluded = "|".join(patterns) if adapted else given
    saved = [*(config.modules_to_save or ()), *modules]
    return dataclasses.replace(config, modules_to_save=saved, exclude_modules=excluded)


def fresh_line(modules: list[str], single: list[str], trained: bool) -> str | None:
    """One line about `untrained_fresh`, where there is any."""
    if not (modules or single):
        return None
    names = ", ".join([*modules, *single][:6])
    if trained and not single:
        return f"the checkpoint lacks {names}, drawn at random: trained and saved with the adapter (modules_to_save)"
    return (
        f"the checkpoint lacks {names}, drawn anew at every load, and no adapter trains or saves it. Name its module "
        "in modules_to_save, or save the whole model first and load that."
    )
