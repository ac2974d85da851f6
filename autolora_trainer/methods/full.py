"""Full fine-tuning: every parameter of the base model trains ("Full FT" in Tables 1-3).

What is left is an ordinary transformers checkpoint. The rate of 1e-4 that §5.1 gives for adapters is a high one here;
1e-5 to 5e-5 is usual for models of RoBERTa's size (`--learning_rate`).
"""

import os

import torch

from autolora_trainer.application import load_pretrained
from autolora_trainer.methods.common import Built

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # the second: of weights in several files


def build(run) -> Built:
    return Built(run.base_model().requires_grad_(True))


def is_saved_in(folder: str) -> bool:
    """Whether a full checkpoint lies in `folder`."""
    return os.path.isfile(os.path.join(folder, "config.json")) and any(
        os.path.isfile(os.path.join(folder, name)) for name in WEIGHTS
    )


def load(run) -> torch.nn.Module:
    """The trained model in output_dir, in fp32."""
    return load_pretrained(
        run.application.auto_class,
        run.output_dir,
        run.model,
        dtype="float32",
        attn_implementation=run.model.attn_implementation,
    )
