"""adapter_config.json, which may be a stranger's: types, sizes and numbers are checked before anything is built of it.

PEFT builds what it says: a rank of a billion, as many copies of a layer, a module that is imported by its name.
"""

import os
import re

from autolora_trainer.files import parse_json, read_bounded
from autolora_trainer.ranks.matching import KEY, LAYERS, LONGEST, SAVED, WHOLE
from autolora_trainer.values import MAX_RANK

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 5_000_000
MAX_NAMES = 50_000  # in a list or a pattern
MAX_NUMBER = 65_536
MAX_LAYERS = 1_000  # after layer_replication
MAX_ROUNDS = 100  # of an initialization that PEFT repeats as it loads
# whole numbers that nothing is built by
FREE = re.compile(r"seed|prng|step|tinit|tfinal|delta_?t|indices|invocation_tokens|token_id", re.IGNORECASE)


def read_config(path: str | os.PathLike) -> dict:
    """The content of adapter_config.json, checked.

    Raises:
        ValueError: one line that names the file and what is wrong with it.
    """
    try:
        config = parse_json(read_bounded(path, MAX_CONFIG_BYTES))
    except ValueError as error:
        raise _refusal(path, str(error)) from None
    return check_config(config, path)


def _refusal(path, what: str) -> ValueError:
    return ValueError(f"{path} cannot be used: {what}. Save the adapter again with PEFT, or give another.")


def check_config(config, path) -> dict:
    """`config`, or a `ValueError` that says what of it cannot be."""
    if not isinstance(config, dict):
        raise _refusal(path, f"it holds {type(config).__name__}, and an object is needed")
    for name, value in config.items():
        if what := _too_large(value, bool(FREE.search(name))):
            raise _refusal(path, f"{name[:80]} has {what}")
    if not isinstance(config.get("peft_type"), str):
        raise _refusal(path, "peft_type is missing")
    base = config.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and len(base) <= 500 and base.isprintable()):
        raise _refusal(path, "base_model_name_or_path must be a short text on one line")
    if config.get("megatron_config"):
        raise _refusal(path, "megatron_config has modules of Python imported by their names")
    if config["peft_type"].upper() == "LORA" and (what := _wrong_lora(config)):
        raise _refusal(path, what)
    return config


def _too_large(value, free: bool) -> str | None:
    """What of a value is too large, however deep in it."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, (dict, list)):
            if len(value) > MAX_NAMES:
                return f"{len(value):,} entries; at most {MAX_NAMES:,} are taken"
            left += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, str) and len(value) > LONGEST:
            return f"a text of {len(value):,} characters; at most {LONGEST:,} are taken"
        elif isinstance(value, (int, float)) and not (abs(value) <= (2**64 if free else MAX_NUMBER)):  # NaN too
            return f"a number beyond {MAX_NUMBER:,}"
    return None


def _wrong_lora(config: dict) -> str | None:
    """What of LoRA's settings is of another kind than PEFT writes."""
    for name, kind in (
        ("r", int),
        ("rank_pattern", int),
        ("lora_alpha", (int, float)),
        ("alpha_pattern", (int, float)),
    ):
        value = config.get(name)
        if "pattern" in name and not isinstance(value, (dict, type(None))):
            return f"{name} must be an object"
        values = list((value or {}).values()) if "pattern" in name else [] if value is None else [value]
        if not all(isinstance(own, kind) and not isinstance(own, bool) for own in values):
            return f"{name} must hold numbers"
        if kind is int and not all(0 <= own <= MAX_RANK for own in values):
            return f"{name} must be from 0 to {MAX_RANK}"
    for name in ("target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = config.get(name)
        if not (value is None or isinstance(value, str) or _is_names(value)):
            return f"{name} must be a name or a list of names"
    copies = config.get("layer_replication")
    if copies is not None and not (isinstance(copies, list) and all(map(_is_range, copies))):
        return "layer_replication must be a list of pairs"
    if sum(max(0, end - start) for start, end in copies or ()) > MAX_LAYERS:
        return f"layer_replication makes more than {MAX_LAYERS:,} layers"
    rounds = re.findall(r"\d+", str(config.get("init_lora_weights")))
    loftq = config.get("loftq_config")
    rounds += [str(loftq["loftq_iter"])] if isinstance(loftq, dict) and type(loftq.get("loftq_iter")) is int else []
    if any(len(number) > 3 or int(number) > MAX_ROUNDS for number in rounds):
        return f"an initialization of more than {MAX_ROUNDS} rounds"
    return None


def _is_names(value) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_range(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value)


def patterns_of(config: dict) -> list[tuple[str, str]]:
    """The regular expressions that PEFT will match on the names of modules; see `matching.check_patterns`."""
    found = []
    for name, value in config.items():
        values = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, dict)) else []
        texts = [text for text in values if isinstance(text, str)]
        if name == "layers_pattern":
            found += [(LAYERS, text) for text in texts]
        elif name == "modules_to_save":
            found += [(SAVED, text) for text in texts]
        elif isinstance(value, dict):
            found += [(KEY, text) for text in texts]
        elif name.endswith("modules") and isinstance(value, str):
            found += [(WHOLE, value)]
    return found
