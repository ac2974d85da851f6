"""Rows that belong on one side of D_tr and D_val, since they share what a model reads: copies, pairs with a text in
common, answers to one prompt, windows of one document.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset

from autolora_trainer.heldout.split import split_rows, take
from autolora_trainer.training.shares import IGNORED
from autolora_trainer.untouched import undrawn

logger = logging.getLogger("autolora_trainer")

MOST_ROWS = 20_000  # that are read one by one, where rows are no table
NUMBERS = {"idx", "id", "index", "__index_level_0__"}  # columns that tell rows apart and say nothing
TARGETS = {"label", "labels", "label_ids", "start_positions", "end_positions"}
PROMPTS = ("prompt_ids", "prompt_input_ids")  # of TRL's preferences
DOCUMENTS = ("overflow_to_sample_mapping", "example_id")  # of which document a window is


def grouped(links: Sequence[Sequence[Hashable]]) -> tuple[list[int], str]:
    """The group of every row, and a sentence about rows that are in one with others; "" where there are none.

    Args:
        links: for every row what it shares with the rows of its group; the first links equal inputs, those at the end
            may be left out, where they would link more than half of all rows.
    Example:
        >>> grouped([("ab", "a", "b"), ("cb", "c", "b"), ("ab", "a", "b"), ("d", "d"), ("e", "e"), ("f", "f")])[0]
        [0, 0, 0, 3, 4, 5]
    """
    most, groups, sizes = max(map(len, links), default=0), [], Counter()
    for kept in range(most, 0, -1):
        groups = _connected([own[:kept] for own in links])
        sizes = Counter(groups)
        if 2 * max(sizes.values()) <= len(links):
            break
    if len(sizes) == 1 < len(links):
        said = f"all {len(links):,} training rows have the same input: what those of D_val say is memory, not evidence"
        return list(range(len(links))), said
    if not (sharing := sum(size for size in sizes.values() if size > 1)):
        return groups, ""
    left = "; what others have in common links more than half of all rows, and is left out of account"
    return groups, (
        f"{sharing:,} of {len(links):,} rows share an input with others: such rows stay together, on one side "
        f"of every split{left if kept < most else ''}"
    )


def _connected(links: Sequence[Sequence[Hashable]]) -> list[int]:
    """The first row that each row is linked with, directly or through others."""
    parent, owner = list(range(len(links))), {}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for row, own in enumerate(links):
        for link in own:
            first, second = root(owner.setdefault(link, row)), root(row)
            parent[max(first, second)] = min(first, second)
    return [root(row) for row in range(len(links))]


def input_links(rows, targets: Iterable[str] = ()) -> list[tuple[bytes, ...]] | None:
    """For every row hashes of what a model reads of it, whole first, then what may be shared by rows that differ: its
    prompt, its documents; None where rows cannot be read twice, or are too many to be read one by one.

    Args:
        rows: a `datasets.Dataset`, which is read as it is stored, or any other with a length; of rows that are no
            mapping all counts.
        targets: columns that are no input, beside the usual ones.
    """
    if hasattr(rows, "with_format") and hasattr(rows, "column_names"):
        read = _table(rows)
    elif isinstance(rows, IterableDataset) or not hasattr(rows, "__len__") or len(rows) > MOST_ROWS:
        return None
    else:
        read = (rows[row] for row in range(len(rows)))
    targets = TARGETS | set(targets)
    with undrawn():
        return [_links(row, targets) for row in read]


def _table(rows) -> Iterator[dict]:
    for batch in rows.with_format("arrow").iter(1000):
        columns = [_cells(column.combine_chunks()) for column in batch.columns]
        yield from (dict(zip(batch.column_names, cells)) for cells in zip(*columns))


def _cells(column: pa.Array) -> list:
    """The cells of a column; numbers of lists stay arrays."""
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    numbers = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not numbers or not pa.types.is_primitive(column.type.value_type) or column.null_count:
        return column.to_pylist()
    values, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    return [values[start:end] for start, end in zip(ends, ends[1:])]


def _links(row, targets: set[str]) -> tuple[bytes, ...]:
    if not isinstance(row, Mapping):
        return (_hash(row),)
    inputs = {name: value for name, value in row.items() if name not in targets | NUMBERS}
    documents = [_hash((name, inputs.pop(name))) for name in DOCUMENTS if name in inputs]
    ids = inputs.get("input_ids")
    links = [_hash(sorted((inputs or row).items()))]
    links += [_hash(inputs[name]) for name in PROMPTS if name in inputs]
    if ids is not None and "seq_lengths" in inputs:  # several documents in a row
        links += map(_hash, np.split(_array(ids), np.cumsum(_array(inputs["seq_lengths"]))[:-1]))
    elif ids is not None and len(prompt := _prompt(_array(ids), row)):
        links.append(_hash(prompt))
    elif not any(name in inputs for name in PROMPTS):
        links += [_hash(value) for name, value in inputs.items() if name.startswith(("chosen", "rejected"))]
    return (*links, *documents)


def _prompt(ids: np.ndarray, row: Mapping) -> np.ndarray:
    """The tokens before those that are learned, where a row's labels are its tokens."""
    if row.get("completion_mask") is not None:
        return ids[_array(row["completion_mask"]) == 0]
    labels = _array(row["labels"]) if row.get("labels") is not None else np.zeros(0)
    if labels.shape != ids.shape or ids.ndim != 1:
        return ids[:0]
    learned = labels != IGNORED
    return ids[~learned] if (labels[learned] == ids[learned]).all() else ids[:0]


def _array(value) -> np.ndarray:
    return value.detach().cpu().numpy() if torch.is_tensor(value) else np.asarray(value)


def _hash(value) -> bytes:
    """Of what rows hold, by value: lists, tensors and arrays of the same numbers are the same."""
    state = blake2b(digest_size=16)
    _feed(state, value)
    return state.digest()


def _feed(state, value) -> None:
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if torch.is_tensor(value) and value.dtype == torch.bfloat16:
        value = value.float()
    if torch.is_tensor(value) or isinstance(value, np.ndarray) or _are_numbers(value):
        numbers = _array(value)
        numbers = numbers.astype(np.float64) if numbers.dtype.kind == "f" else numbers
        numbers = numbers.astype(np.int64) if numbers.dtype.kind in "iub" else numbers
        state.update(repr(numbers.shape).encode() + np.ascontiguousarray(numbers).tobytes())
    elif isinstance(value, (list, tuple)):
        state.update(b"[%d" % len(value))
        for part in value:
            _feed(state, part)
    else:
        value = value.tobytes() if hasattr(value, "tobytes") else value  # a picture
        state.update(value if isinstance(value, bytes) else f"{type(value).__name__}:{value!r};".encode())


def _are_numbers(value) -> bool:
    return isinstance(value, list) and bool(value) and all(type(part) in (int, float, bool) for part in value)


def parted(trainer, val_dataset=None, size_dataset=None):
    """(D_tr, D_val, the groups of D_val's rows) of a search.

    Args:
        trainer: its training rows are split, unless `val_dataset` is given, which then is D_val whole.
        size_dataset: rows that judge the size, where they are given too.
    """
    rows, args = trainer.train_dataset, trainer.args
    warn_of_own_loader(trainer)
    if val_dataset is not None:
        warn_of_shared(trainer, train_dataset=rows, val_dataset=val_dataset, size_dataset=size_dataset)
        return rows, val_dataset, groups_of(trainer, val_dataset) if size_dataset is None and args.finds_size else None
    groups = groups_of(trainer, rows)
    train_rows, val_rows = split_rows(rows, args.val_fraction, args.seed, groups)
    return take(rows, train_rows), take(rows, val_rows), groups and [groups[row] for row in val_rows]


def groups_of(trainer, rows) -> list[int] | None:
    """The groups of a Trainer's rows, said where there are any; None, said too, where they cannot be known."""
    links = _known(trainer, rows)
    groups, said = (None, "") if links is None else grouped(links)
    if links is None:
        said = (
            f"rows of {type(rows).__name__} are not compared: where some are equal, or are windows of one document, "
            "give D_val apart, as val_dataset"
        )
    if said and trainer.is_world_process_zero():
        logger.warning(said)
    return groups


def _known(trainer, rows):
    """`input_links` of the columns that a Trainer's model takes, and of those that tell documents."""
    kept, names = rows, getattr(rows, "column_names", None)
    if isinstance(names, list) and hasattr(rows, "remove_columns"):
        try:
            kept, _ = trainer._as_the_model_takes(rows)
        except ValueError:  # rows that its Trainer has not prepared
            return None
        documents = [name for name in DOCUMENTS if name in names and name not in kept.column_names]
        kept = rows.select_columns([*kept.column_names, *documents])
    return input_links(kept, getattr(trainer, "label_names", None) or ())


def warn_of_shared(trainer, **parts) -> None:
    """Say how many rows of parts that were given apart, `name=rows`, the first of them has, too."""
    (first, rows), *others = parts.items()
    known = _known(trainer, rows)
    found = None if known is None else {own[0] for own in known}
    for name, rows in others:
        links = None if rows is None or found is None else _known(trainer, rows)
        shared = sum(own[0] in found for own in links or ())
        if shared and trainer.is_world_process_zero():
            logger.warning(
                f"{shared:,} of {len(links):,} rows of {name} have inputs that {first} has too: what they say is "
                "memory, not evidence. Leave them out of one of the two."
            )


def warn_of_own_loader(trainer) -> None:
    """Say that D_tr is what is left to train on, where a loader of the user's own may read other rows."""
    method = "get_train_dataloader"
    owners = [kind for kind in type(trainer).__mro__ if method in vars(kind)]
    known = ("transformers", "trl", "autolora_trainer")
    own = [kind.__name__ for kind in owners if kind.__module__.partition(".")[0] not in known]
    if own and trainer.is_world_process_zero():
        logger.warning(
            f"{own[0]} has a {method} of its own: it has to read self.train_dataset, which is D_tr. Other rows may be "
            "those of D_val, and this cannot be seen from here."
        )
