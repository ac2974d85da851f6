"""The grid of ranks: block and projection read off a module's name; blocks across, projections down (Figure 3)."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping

from autolora_trainer.names import module_of

MOST_CELLS = 250_000  # a mixture of 512 experts in 96 blocks has 150,000
LABEL = 72  # characters of a projection's name in the text, at most: its end


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
    taken = Counter(labels.values())
    return {row: text if taken[text] == 1 else ".*.".join(filter(None, row)) for row, text in labels.items()}


def _shortest_tails(names: Iterable[str]) -> dict[str, str]:
    reversed_parts = {name: name.split(".")[::-1] for name in dict.fromkeys(names)}
    sizes = _telling(reversed_parts)
    return {name: ".".join(parts[: sizes[name]][::-1]) for name, parts in reversed_parts.items()}


def _stack_labels(stacks: Iterable[str]) -> dict[str, str]:
    """`encoder.block`, `decoder.block` -> encoder, decoder. A single stack needs no label."""
    split = {stack: stack.split(".") for stack in dict.fromkeys(stacks)}
    if len(split) < 2:
        return {}
    shared = len(os.path.commonprefix(list(split.values())))
    own = {stack: parts[shared:] for stack, parts in split.items()}
    sizes = _telling(own)
    return {stack: ".".join(parts[: sizes[stack]]) or split[stack][-1] for stack, parts in own.items()}


def _telling(sequences: Mapping[str, list[str]]) -> dict[str, int]:
    """How many of its first parts tell each sequence from the others; all, where none do.

    Example:
        >>> _telling({"a": ["x", "1"], "b": ["x", "2"], "c": ["y", "3"], "d": ["x"]})
        {'a': 2, 'b': 2, 'c': 1, 'd': 1}
    """
    sizes, groups, size = {name: len(parts) for name, parts in sequences.items()}, [list(sequences)], 0
    while groups:
        buckets = []
        for group in groups:
            by_part: dict[str, list[str]] = {}
            for name in group:
                if len(sequences[name]) > size:
                    by_part.setdefault(sequences[name][size], []).append(name)
            buckets += by_part.values()
        size += 1
        for bucket in buckets:
            if len(bucket) == 1:
                sizes[bucket[0]] = size
        groups = [bucket for bucket in buckets if len(bucket) > 1]
    return sizes


def rank_grid(ranks: Mapping[str, int]) -> tuple[list[str], list[str], list[list[int | None]]]:
    """Blocks across, projections down, as in Figure 3.

    A module's block is the first integer among the dotted parts of its name. What follows it names the projection, cut
    to the shortest trailing part that no other projection ends with. Stacks that number their blocks separately (the
    encoder and the decoder of T5) keep separate rows, labelled with the part of the name that tells them apart.

    Args:
        ranks: {module: rank}, as `LearnedRanks.ranks`.
    Returns:
        (R row labels in the order of `ranks`, C column labels sorted by number, R rows of C ranks). `None`
        stands where the model has no such module. Modules without a block number share a last column, "-".
    Example:
        >>> rank_grid({"layer.10.attention.query": 3, "layer.2.attention.query": 1})
        (['query'], ['2', '10'], [[1, 3]])
    """
    places = {name: split_name(name) for name in ranks}
    labels = row_labels(list(dict.fromkeys((stack, rest) for stack, _, rest in places.values())))
    blocks = sorted({block for _, block, _ in places.values()}, key=lambda block: (block is None, block))
    if len(labels) * len(blocks) > MOST_CELLS:
        raise ValueError(
            f"A grid of {len(labels):,} projections in {len(blocks):,} blocks is too large to be shown; at most "
            f"{MOST_CELLS:,} cells are."
        )
    cells = {((stack, rest), block): ranks[name] for name, (stack, block, rest) in places.items()}
    grid = [[cells.get((row, block)) for block in blocks] for row in labels]
    return list(labels.values()), ["-" if block is None else str(block) for block in blocks], grid


def rank_summary(ranks: Mapping[str, int]) -> str:
    """The totals in a line."""
    dropped, count = sum(rank == 0 for rank in ranks.values()), len(ranks)
    return (
        f"total rank {sum(ranks.values())} in {count} module{'s' * (count != 1)}, "
        f"{dropped or 'none'} of {'them' if count != 1 else 'it'} at rank 0"
    )


def format_rank_table(ranks: Mapping[str, int]) -> str:
    """The grid as plain text, at most 100 columns wide (more blocks continue below), and a line with the totals.

    Example:
        >>> print(format_rank_table({f"h.{i}.attn.q": i for i in range(3)}))
        block  0  1  2
        q      0  1  2
        total rank 3 in 3 modules, 1 of them at rank 0
    """
    rows, columns, grid = rank_grid(ranks)
    rows = [row if len(row) <= LABEL else "…" + row[1 - LABEL :] for row in rows]
    label_width = max(map(len, ["block", *rows]))
    texts = [["." if rank is None else str(rank) for rank in row] for row in grid]
    width = max((len(text) for row in [columns, *texts] for text in row), default=1)
    room = 100 - label_width
    close = (width + 1) * len(columns) <= room < (width + 2) * len(columns)  # 24 blocks fit if set closer
    width += 1 if close else 2
    texts_of_bands = []
    for part in bands(len(columns), max(1, room // width)):
        used = [(label, row[part]) for label, row in zip(rows, texts) if set(row[part]) != {"."}]
        lines = [("block", columns[part]), *used]
        texts_of_bands.append(
            "\n".join(label.ljust(label_width) + "".join(t.rjust(width) for t in r) for label, r in lines)
        )
    return "\n\n".join(texts_of_bands) + "\n" + rank_summary(ranks)


def bands(count: int, most: int) -> list[slice]:
    """`count` columns in the fewest bands of at most `most`, and those as even as can be."""
    size = -(-count // max(-(-count // most), 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]
