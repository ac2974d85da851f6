"""Hashes of what a run reads: files whole, rows as they are tokenized, the tokenizer, and the versions it runs on."""

import hashlib
import json
import os

import accelerate
import peft
import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers

from autolora_trainer.runs.settings import noted
from autolora_trainer.training.checkpoints import file_hash
from autolora_trainer.version import __version__

LIBRARIES = {"torch": torch, "transformers": transformers, "peft": peft, "accelerate": accelerate}


def of_files(inputs: dict[str, str | None], known: dict | None = None) -> dict[str, dict]:
    """{argument: {"sha256", "seen"}} of the content of every local file, and of every folder's own files, that decides
    what a run learns.

    Args:
        inputs: {argument: path, or None, or a Hub id}.
        known: of an earlier look; what has its sizes, inodes and times is not read again.
    """
    found = {}
    for argument, place in inputs.items():
        if not place or not os.path.exists(place):
            continue
        names = sorted(os.listdir(place)) if os.path.isdir(place) else [""]
        paths = [path for name in names if os.path.isfile(path := os.path.join(place, name) if name else place)]
        seen = [[os.path.basename(p), s.st_size, s.st_ino, s.st_mtime_ns] for p in paths for s in [os.stat(p)]]
        earlier = (known or {}).get(argument, {})
        if earlier.get("seen") == seen:
            found[argument] = earlier
            continue
        digest = hashlib.sha256()
        for path in paths:
            digest.update(f"{os.path.basename(path)} {file_hash(path)} ".encode())
        found[argument] = {"sha256": digest.hexdigest(), "seen": seen}
    return found


def check_same_files(place: str, inputs: dict[str, str | None]) -> None:
    """Raise `ValueError` if the run in a folder, which is to go on, was begun with other content of what it reads."""
    earlier = noted(place, "inputs")
    for argument, found in of_files(inputs, earlier).items():
        if found["sha256"] != earlier.get(argument, found).get("sha256"):
            name = os.path.basename(os.path.normpath(inputs[argument]))
            raise ValueError(
                f"--resume_from_checkpoint: {argument} {name} holds something else than when the run in {place} was "
                "begun. Give it as it was, or start anew with --overwrite."
            )


def of_rows(dataset) -> str:
    """Of every value of a `datasets.Dataset`, in its order."""
    digest = hashlib.sha256()
    for name in sorted(dataset.column_names):
        digest.update(name.encode())
        for table in dataset.select_columns(name).with_format("arrow").iter(10_000):
            _feed(digest, table.column(0).combine_chunks())
    return digest.hexdigest()[:16]


def _feed(digest, values) -> None:
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        digest.update(pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False).tobytes())
        _feed(digest, pc.list_flatten(values))
    elif pa.types.is_integer(values.type) and not values.null_count:
        digest.update(values.to_numpy(zero_copy_only=False).astype("int64").tobytes())
    else:
        digest.update(json.dumps(values.to_pylist(), default=str).encode())


def of_tokenizer(tokenizer) -> str:
    """Of all that it does to a text, the chat template included."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    what = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    more = [tokenizer.special_tokens_map, tokenizer.padding_side, tokenizer.chat_template]
    return hashlib.sha256(json.dumps([what, more], default=str).encode()).hexdigest()[:16]


def environment(base: torch.nn.Module, tokenizer, device: torch.device) -> dict[str, str]:
    """What else decides the bits of a run: attention, weights of the Hub, tokenizer, kind of device, versions."""
    config = base.config
    found = {
        "attn_implementation": config._attn_implementation,
        "base_revision": getattr(config, "_commit_hash", None),
    }
    found |= {"tokenizer": of_tokenizer(tokenizer), "device": device.type, "autolora_trainer": __version__}
    return {name: str(value) for name, value in found.items()} | {n: lib.__version__ for n, lib in LIBRARIES.items()}
