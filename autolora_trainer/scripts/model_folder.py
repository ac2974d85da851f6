"""A folder with a model, looked at before transformers reads it: it may be a stranger's.

transformers builds what config.json says, layer by layer, and waits for whatever bears the name of a file.
"""

import math
import os
import re

import torch

from autolora_trainer.files import check_regular, parse_json, read_bounded, read_json
from autolora_trainer.ranks.adapter_file import read_header

MOST_BYTES = 5_000_000  # of config.json
LAYERS = re.compile(r"(^|_)(layers?|experts|depth)$")  # numbers of modules that are built one by one
MOST_LAYERS, MOST_LABELS = 1_000, 1_000_000
SLACK = 100_000_000  # numbers that a model may have beside those in its file: position ids, a new head


def check_model_folder(folder: str) -> None:
    """Raise `ValueError` for a folder whose model would be no end building, or no end reading."""
    check_regular(folder)
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        return
    text = read_bounded(path, MOST_BYTES)
    try:
        config = parse_json(text)
    except ValueError:
        return  # transformers says so
    tensors = _tensors(folder)
    for name, value in _numbers(config):
        if LAYERS.search(name) and value > max(tensors, MOST_LAYERS):
            raise ValueError(f"{name} is {value:,} in config.json, and the weights have {tensors:,} tensors.")
        if name == "num_labels" and value > MOST_LABELS:
            raise ValueError(f"num_labels is {value:,} in config.json; at most {MOST_LABELS:,} are taken.")


def check_built_size(auto_class, config, folder: str, trust_remote_code: bool) -> None:
    """Raise `ValueError` for a config that makes a far larger model than the weights beside it are."""
    held = sum(math.prod(shape) for _, shape in _headers(folder).values())
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    built = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if built > 2 * held + SLACK:
        raise ValueError(
            f"{folder} holds {held:,} numbers, and its config.json is of a model of {built:,}. Train it again, or "
            "give another --output_dir."
        )


def _numbers(config):
    """(name, value) of all whole numbers in a config, those of models in it too."""
    left = [config]
    while left:
        value = left.pop()
        for name, own in value.items() if isinstance(value, dict) else ():
            if isinstance(own, dict):
                left.append(own)
            elif type(own) is int:
                yield name, own


def _tensors(folder: str) -> int:
    """How many tensors the safetensors files of a folder say that they have; 0 where there are none."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        content = read_json(index)
        names = content.get("weight_map") if isinstance(content, dict) else None
        return len(names) if isinstance(names, dict) else 0
    return len(_headers(folder))


def _headers(folder: str) -> dict:
    found = {}
    for name in os.listdir(folder):
        if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name):
            found |= read_header(os.path.join(folder, name))
    return found
