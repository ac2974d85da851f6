"""Block and projection of a module, read off its name."""

import os
from collections.abc import Iterable, Mapping

from autolora_trainer.lora.parts import module_of


def split_name(name: str) -> tuple[str | None, int | None, str]:
    """`encoder.layer.3.attn.query` -> ("encoder.layer", 3, "attn.query"); without a number (None, None, name)."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            # a numbered module without further parts (nn.Sequential) goes by the name of its container
            return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :]) or (parts[i - 1] if i else "module")
    return None, None, name


def split_block(name: str) -> tuple[str, str]:
    """(block, projection) of a module's name; a module that is in no numbered block is one of its own.

    Example:
        >>> split_block("encoder.layer.3.attention.query"), split_block("pooler.dense")
        (('encoder.layer.3', 'encoder.layer.attention.query'), ('pooler.dense', 'pooler.dense'))
    """
    stack, block, rest = split_name(name)
    if block is None or name.rpartition(".")[2].isdecimal():  # without a number, or nothing but one
        return name, name
    return f"{stack}.{block}".lstrip("."), f"{stack}.{rest}".lstrip(".")


def depths(names) -> list[int]:
    """The place of every module's block in the order of the model.

    Example:
        >>> depths(["encoder.0.q", "encoder.0.v", "encoder.1.q", "pooler"])
        [0, 0, 1, 2]
    """
    blocks: dict[str, int] = {}
    return [blocks.setdefault(split_block(name)[0], len(blocks)) for name in names]


def by_module(ranks: Mapping[str, int]) -> dict[str, int]:
    """Ranks of whole modules, as PEFT counts them: those of a fused projection's parts add up.

    Example:
        >>> by_module({"c_attn#q": 2, "c_attn#v": 1, "c_proj": 4})
        {'c_attn': 3, 'c_proj': 4}
    """
    whole: dict[str, int] = {}
    for name, rank in ranks.items():
        whole[module_of(name)] = whole.get(module_of(name), 0) + rank
    return whole


def row_labels(rows: list[tuple[str | None, str]]) -> dict[tuple[str | None, str], str]:
    """A short label, different from all others, for every (stack, rest of the name)."""
    tails = _shortest_tails([rest for _, rest in rows])
    stacks = _stack_labels([stack for stack, _ in rows if stack is not None])
    labels = {row: " ".join(filter(None, (stacks.get(row[0]), tails[row[1]]))) for row in rows}
    taken = list(labels.values())
    return {row: text if taken.count(text) == 1 else ".*.".join(filter(None, row)) for row, text in labels.items()}


def _shortest_tails(names: Iterable[str]) -> dict[str, str]:
    split = {name: name.split(".") for name in dict.fromkeys(names)}
    tails = {}
    for name, parts in split.items():
        others = [other for other in split.values() if other is not parts]
        sizes = (n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others))
        tails[name] = ".".join(parts[-next(sizes, len(parts)) :])
    return tails


def _stack_labels(stacks: Iterable[str]) -> dict[str, str]:
    """`encoder.block`, `decoder.block` -> encoder, decoder. A single stack needs no label."""
    split = {stack: stack.split(".") for stack in dict.fromkeys(stacks)}
    if len(split) < 2:
        return {}
    shared = len(os.path.commonprefix(list(split.values())))
    labels = {}
    for stack, parts in split.items():
        others = [other[shared:] for other in split.values() if other is not parts]
        own = parts[shared:]
        size = next((n for n in range(1, len(own)) if all(o[:n] != own[:n] for o in others)), len(own))
        labels[stack] = ".".join(own[:size]) or parts[-1]
    return labels
