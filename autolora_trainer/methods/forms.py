"""How a method's result lies in a folder, and how it is loaded again, whatever `--method` says by then."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from autolora_trainer.errors import sentence
from autolora_trainer.training.trainer import FinalTrainer

PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class SavedForm:
    """One form of a result.

    Attributes:
        is_in: whether a folder holds it.
        load: (base model, folder) -> the trained model; None: the folder holds the whole model.
        what: it is, in a sentence, and `trained`, whose parameters they are.
        trainer: evaluates it.
    """

    is_in: Callable[[str], bool]
    load: Callable[[torch.nn.Module, str], torch.nn.Module] | None
    what: str = "adapter"
    trained: str = "adapter"
    trainer: type[FinalTrainer] = FinalTrainer


def peft_type_in(folder: str) -> str | None:
    """The type of the PEFT adapter in a folder; None where there is none, or its file is no JSON."""
    try:
        with open(os.path.join(folder, PEFT_CONFIG), encoding="utf-8") as file:
            return json.load(file).get("peft_type")
    except (OSError, ValueError, AttributeError):
        return None


def _load_peft(base: torch.nn.Module, folder: str) -> PeftModel:
    if not os.path.exists(os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)):  # PEFT would ask the Hub for it
        raise ValueError(f"{SAFETENSORS_WEIGHTS_NAME} is missing")
    return PeftModel.from_pretrained(base, folder)


PEFT_ADAPTER = SavedForm(is_in=lambda folder: os.path.exists(os.path.join(folder, PEFT_CONFIG)), load=_load_peft)


def load_saved(forms, source, folder: str) -> tuple[torch.nn.Module, SavedForm]:
    """What an earlier run left in a folder, and its form.

    Args:
        forms: those to look for, in this order.
        source: of the base model; see `scripts.source.Source`.
    Raises:
        ValueError: if there is nothing of the kind, or it does not fit.
    """
    form = next((form for form in forms if form.is_in(folder)), None)
    if form is None:
        raise ValueError(f"{folder} holds no adapter to evaluate. Add --do_train, or give its --output_dir.")
    if form.load is None:
        return source.saved_model(folder), form
    base = source.base_model()
    try:
        return form.load(base, folder), form
    except Exception as error:  # PEFT and safetensors raise nearly every kind
        raise ValueError(
            f"The adapter in {folder} does not load on {type(base).__name__}: {type(error).__name__}, "
            f"{sentence(error)} Train it again with --do_train --overwrite, or give another --output_dir."
        ) from error
