"""The training set as (D_tr, D_val) for the search (§5.2), and D_val in two; the retrain takes all of it (§4.5)."""

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset


def check_set(rows, name: str) -> None:
    """Raise `ValueError` for several sets of rows where one is needed, or for one without a row."""
    if isinstance(rows, Mapping):
        raise ValueError(
            f"{name} must be one set of rows, got a dict of them ({', '.join(map(str, rows)) or 'empty'}). Give one."
        )
    if isinstance(rows, Sized) and not len(rows):
        raise ValueError(f"{name} has no rows. Give some.")


def check_rows(rows, name: str) -> None:
    """`check_set` for held-out rows, which are drawn by their numbers; None is no set."""
    check_set(rows, name)
    if rows is not None and (not hasattr(rows, "__len__") or isinstance(rows, IterableDataset)):
        raise ValueError(
            f"Rows of {name} are drawn by their numbers, and a stream ({type(rows).__name__}) has none. Give a "
            "dataset with a length, e.g. Dataset.from_list(list(rows))."
        )


def split_train(dataset, val_fraction: float = 0.5, seed: int = 0, groups: Sequence | None = None):
    """Split a training set at random into D_tr and D_val.

    Args:
        dataset: a `datasets.Dataset` or any dataset with a length.
        val_fraction: share of the rows that D_val takes; the paper's ratio 1:1 is 0.5.
        seed: the same seed gives the same split, whatever the global generators did before.
        groups: for every row the group it belongs to, any hashable value; a group stays together, so D_val has about
            its share of the rows. Default: every row by itself.
    Returns:
        (train_split, val_split), disjoint, together complete, each in the original order.
    Raises:
        ValueError: If one of the two would be empty, or the rows come as a stream.
    """
    train_rows, val_rows = split_rows(dataset, val_fraction, seed, groups)
    return take(dataset, train_rows), take(dataset, val_rows)


def split_rows(dataset, val_fraction: float, seed: int, groups: Sequence | None) -> tuple[list[int], list[int]]:
    """The rows of `split_train`, by their numbers."""
    if not hasattr(dataset, "__len__") or isinstance(dataset, IterableDataset):
        raise ValueError(
            f"The training rows are split into D_tr and D_val, and a stream ({type(dataset).__name__}) cannot be. "
            "Give a dataset with a length, e.g. Dataset.from_list(list(rows)), or D_val apart, as val_dataset."
        )
    members: dict = {}  # group -> its rows, in the order of their first
    for row, group in enumerate(range(len(dataset)) if groups is None else groups):
        members.setdefault(group, []).append(row)
    together = list(members.values())
    wanted, val_rows, train_rows = round(len(dataset) * val_fraction), [], []
    for index in torch.randperm(len(together), generator=torch.Generator().manual_seed(seed)).tolist():
        (val_rows if len(val_rows) < wanted else train_rows).extend(together[index])
    if not (val_rows and train_rows):
        what = "training rows" if groups is None else "different inputs"
        raise ValueError(
            f"val_fraction={val_fraction} of {len(dataset)} training rows leaves {len(train_rows)} for D_tr and "
            f"{len(val_rows)} for D_val, and both need examples. Give more {what} or another val_fraction."
        )
    return sorted(train_rows), sorted(val_rows)


def take(dataset, rows: list[int]):
    """Some rows of a data set."""
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows)


def split_three(dataset, val_fraction: float = 0.5, seed: int = 0, groups: Sequence | None = None):
    """(D_tr, rows of D_val that order, rows of D_val that judge the size); see `split_train` and `split_held_out`."""
    train_rows, val_rows = split_rows(dataset, val_fraction, seed, groups)
    own = None if groups is None else [groups[row] for row in val_rows]
    return take(dataset, train_rows), *split_held_out(take(dataset, val_rows), seed, own)


def split_held_out(val_dataset, seed: int = 0, groups: Sequence | None = None):
    """D_val in two halves: rows that order the components (and move α), and rows that judge the size.

    Raises:
        ValueError: If D_val cannot be divided.
    """
    try:
        return split_train(val_dataset, 0.5, seed, groups)
    except ValueError as error:
        raise ValueError(
            "Some rows of D_val order the components and others judge the size, and D_val cannot be divided. Give "
            "more rows, a larger val_fraction, or a size, e.g. lora:4."
        ) from error


@dataclass(eq=False)
class EndlessBatches:
    """D_val in shuffled batches that never end: every row once before any row twice.

    Its whole state is `position`, so a resumed search draws what it would have drawn. It owns its generator and leaves
    the global ones alone.
    """

    dataset: Any  # D_val
    batch_size: int  # rows per batch and process
    collate: Callable  # list of rows -> batch
    seed: int = 0  # of the shuffling
    process_index: int = 0  # this process takes its slice of every global batch, so that the same global batch is
    num_processes: int = 1  # drawn whatever the number of processes
    position: int = 0  # rows drawn so far by all processes
    _epoch, _order = None, None

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator).tolist()
        return self._order[index]

    def __iter__(self):
        return self

    def __next__(self):
        first = self.position + self.process_index * self.batch_size
        rows = [self._row(position) for position in range(first, first + self.batch_size)]
        self.position += self.num_processes * self.batch_size
        return self.collate([self.dataset[row] for row in rows])
