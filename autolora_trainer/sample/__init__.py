"""The built-in offline sample: a task that the package generates itself, and a small encoder pre-trained for it."""

import os

from autolora_trainer.sample.data import load_sample

SAMPLE_LABELS = ["unfavourable", "favourable"]


def encoder_path() -> str:
    """Folder of the shipped encoder, for `from_pretrained`."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "encoder")


__all__ = ["SAMPLE_LABELS", "encoder_path", "load_sample"]
