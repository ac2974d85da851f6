"""The data of a text as its prompt, as LoRA's code writes it."""

import json
import re

from autolora_trainer.tasks.files import shown_value, split_lines

E2E_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_SLOT = re.compile(r"\s*([^\[\],]+?)\s*\[\s*([^\[\]]*[^\[\]\s])\s*\]\s*")


def prompt_of_meaning(meaning: str) -> str:
    """An E2E meaning representation as the files of LoRA's code have it, with `eatType`, `priceRange` and
    `familyFriendly` in words of their own.

    Their values are split into words (`£ 20 - 25`), and so are their texts; here both stay as E2E has them.

    Raises:
        ValueError: if it is not written as `name[X], attribute[Y]`.
    Example:
        >>> prompt_of_meaning("name[Blue Spice], eatType[coffee shop], priceRange[£20-25]")
        'name : Blue Spice | Type : coffee shop | price : £20-25'
    """
    slots, position = [], 0
    while position < len(meaning):
        slot = _SLOT.match(meaning, position)
        if slot is None or (slot.end() < len(meaning) and meaning[slot.end()] != ","):
            break
        slots.append(f"{E2E_NAMES.get(slot[1], slot[1])} : {slot[2]}")
        position = slot.end() + 1
        if slot.end() == len(meaning):
            return " | ".join(slots)
    raise ValueError("a meaning representation is written as name[Blue Spice], eatType[pub], …")


def prompt_of_triples(triples: list[str]) -> str:
    """A set of WebNLG triples as LoRA's code writes it; names keep their underscores, and literals their quotes.

    Raises:
        ValueError: if there is none, or one is not written as `subject | property | object`.
    Example:
        >>> prompt_of_triples(["Aarhus | leaderName | Jacob_Bundsgaard", "Aarhus | country | Denmark"])
        'Aarhus : leaderName : Jacob_Bundsgaard | Aarhus : country : Denmark'
    """
    shown = []
    for triple in triples:
        parts = [part.strip() for part in triple.split("|")]
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"the triple {shown_value(triple)} is not written as subject | property | object")
        shown.append(" : ".join(parts))
    if not shown:
        raise ValueError("there is no triple; write each as subject | property | object")
    return " | ".join(shown)


def as_triples(value) -> list[str]:
    """The triples of one cell, one string each.

    Args:
        value: a list of `subject | property | object`, of triples of strings or of {subject, property, object}; or
            text with one triple a line, or with a JSON list of any of these (CSV files).
    Raises:
        ValueError: for anything else.
    Example:
        >>> as_triples('[{"subject": "Aarhus", "property": "country", "object": "Denmark"}]')
        ['Aarhus | country | Denmark']
    """
    if isinstance(value, str):
        listed = json_list(value)
        value = [line for line in split_lines(value) if line.strip()] if listed is None else listed
    triples = []
    for triple in value if isinstance(value, list) else [value]:
        if isinstance(triple, dict):
            triple = [triple.get(name) for name in ("subject", "property", "object")]
        if isinstance(triple, list) and all(isinstance(part, str) for part in triple):
            triple = " | ".join(triple)
        if not isinstance(triple, str):
            raise ValueError(f"the triple {shown_value(triple)} is not written as subject | property | object")
        triples.append(triple)
    return triples


def as_text(value) -> str:
    """The input of one cell; `ValueError` if it is no text, or blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text is needed")
    return value


def json_list(text: str) -> list | None:
    """A JSON list that stands in a text; None of another text."""
    try:
        return json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
