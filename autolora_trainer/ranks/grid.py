"""The grid of ranks, blocks across and projections down (Figure 3), as values and as text."""

from collections.abc import Mapping

from autolora_trainer.ranks.names import row_labels, split_name

TEXT_WIDTH = 100


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
    blocks = sorted({block for _, block, _ in places.values() if block is not None})
    if any(block is None for _, block, _ in places.values()):
        blocks.append(None)
    cells = {((stack, rest), block): ranks[name] for name, (stack, block, rest) in places.items()}
    grid = [[cells.get((row, block)) for block in blocks] for row in labels]
    return list(labels.values()), ["-" if block is None else str(block) for block in blocks], grid


def rank_summary(ranks: Mapping[str, int]) -> str:
    """The totals in a line."""
    dropped = sum(rank == 0 for rank in ranks.values())
    count = len(ranks)
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
    label_width = max(map(len, ["block", *rows]))
    texts = [["." if rank is None else str(rank) for rank in row] for row in grid]
    width = max((len(text) for row in [columns, *texts] for text in row), default=1)
    room = TEXT_WIDTH - label_width
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
