"""What a setting must be, and the sentence that says so."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import field

from autolora_trainer.clean import is_secret

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


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to type in place of an argument that there is not."""
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), list(known), 1)
    return f" Did you mean {close[0]}?" if close else " --help lists the arguments."


def no_argument(unknown: Sequence[str], typed: Sequence[str], known: Iterable[str], program: str) -> str:
    """What to say of words on a command line that no argument takes. No value among them is repeated: it may be a
    secret behind a name that was typed wrong.

    Args:
        unknown: those words; the first is spoken of.
        typed: the whole command line.
        known: names of the arguments that there are.
    Example:
        >>> no_argument(["--tokn=abc"], ["--tokn=abc"], ["token", "seed"], "this script")
        '--tokn is no argument of this script. Did you mean token?'
        >>> no_argument(["abc"], ["--token", "x", "abc"], ["token"], "this script")
        'After --token stands a word that no argument of this script takes. --help lists the arguments.'
    """
    known, word = list(known), unknown[0]
    if word[:1] in "\u2010\u2011\u2012\u2013\u2014\u2212":
        return "An argument begins with --, got a long dash, as some programs make of it. Type two hyphens."
    if match := re.match(r"--?[A-Za-z][\w-]*", word, re.ASCII):
        name, bare = match[0], match[0].lstrip("-").replace("-", "_")
        if stuck := next((own for own in known if is_secret(own) and bare.startswith(own) and bare != own), None):
            return f"--{stuck} takes its value after a blank or =. Type one between them."
        return f"{name[:60]} is no argument of {program}.{suggestion(name, known)}"
    before = ""
    for place, own in enumerate(typed):
        if own.startswith("--"):
            before = own.partition("=")[0]
        elif own == word and not (place and typed[place - 1].startswith("--") and "=" not in typed[place - 1]):
            break
    where = f"After {before} stands" if before else "There is"
    return f"{where} a word that no argument of {program} takes. --help lists the arguments."


NUMBERS = {  # what a number must be: whether it is
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "at least 1, or -1 for its default": lambda value: value >= 1 or value == -1,
    "a positive number": lambda value: value > 0,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
    "from 0 to 1024": lambda value: 0 <= value <= 1024,
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
