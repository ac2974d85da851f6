"""What a setting must be, and the sentence that says so."""

import difflib
import math
from dataclasses import field

MAX_RANK = 4096
MAX_ADAPTER_SIZE = 65_536


def setting(default, help: str):
    """The field of a dataclass of arguments, with its help."""
    return field(default=default, metadata={"help": help})


def check_choice(name, value, choices):
    """Raise `ValueError` unless `value` is one of `choices`; the sentence names all three, and the likeliest."""
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.{hint}")


NUMBERS = {  # what a number must be: whether it is
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "at least 1, or -1 for its default": lambda value: value >= 1 or value == -1,
    "a positive number": lambda value: value > 0,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
    "from 0 to 4294967295": lambda value: 0 <= value < 2**32,
    f"at most {MAX_RANK}": lambda value: value <= MAX_RANK,
    f"at most {MAX_ADAPTER_SIZE}": lambda value: value <= MAX_ADAPTER_SIZE,
}


def check_numbers(arguments, needed: dict[str, str]) -> None:
    """Raise `ValueError` for the first number that is not finite or not what it must be.

    Args:
        arguments: a dataclass; None is no number.
        needed: {a key of `NUMBERS`: names of fields}.
    Example:
        >>> from types import SimpleNamespace
        >>> rows = SimpleNamespace(max_seq_length=128, max_train_samples=0)
        >>> check_numbers(rows, {"at least 1": "max_seq_length max_train_samples"})
        Traceback (most recent call last):
        ValueError: max_train_samples must be at least 1, got 0.
    """
    for words, names in needed.items():
        for name in names.split():
            value = getattr(arguments, name)
            if value is not None and not (math.isfinite(value) and NUMBERS[words](value)):
                raise ValueError(f"{name} must be {words}, got {value}.")
