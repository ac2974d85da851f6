"""The training set as (D_tr, D_val) for the search (§5.2), and D_val in two; the retrain takes all of it (§4.5)."""

import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset

logger = logging.getLogger("autolora_trainer")
OVER = 1.02  # times its share, at most, that D_val gets of groups, as long as one fits


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
        groups: for every row the group it belongs to, any hashable value (see `heldout.groups`); a group stays
            together, and D_val has about its share of the rows where groups allow it. Default: every row by itself.
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
    wanted, val_groups, train_groups, taken = round(len(dataset) * val_fraction), [], [], 0
    drawn = torch.randperm(len(together), generator=torch.Generator().manual_seed(seed)).tolist()
    for own in map(together.__getitem__, drawn):
        if taken < wanted and (len(own) == 1 or len(own) == len(dataset) or taken + len(own) <= OVER * wanted):
            val_groups.append(own)
            taken += len(own)
        else:
            train_groups.append(own)
    if groups is not None and abs(wanted - taken) > (OVER - 1) * wanted:
        _exchange(val_groups, train_groups, wanted - taken)
    val_rows, train_rows = ([row for own in part for row in own] for part in (val_groups, train_groups))
    if not (val_rows and train_rows):
        what = "training rows" if len(together) == len(dataset) else "different inputs"
        raise ValueError(
            f"val_fraction={val_fraction} of {len(dataset)} training rows leaves {len(train_rows)} for D_tr and "
            f"{len(val_rows)} for D_val, and both need examples. Give more {what} or another val_fraction."
        )
    return sorted(train_rows), sorted(val_rows)


def _exchange(val_groups: list, train_groups: list, lacking: int) -> None:
    """Exchange a group of one side for one of the other, or move one, in place, so that D_val comes next to its share;
    neither side ends empty, if there are two groups."""
    inside, outside = ({0: None, **{len(own): own for own in part}} for part in (val_groups, train_groups))
    least = 0 if val_groups else 1  # to come in
    pairs = [(gone, come) for gone in inside for come in outside if come >= least]
    pairs = [(gone, come) for gone, come in pairs if come or gone < sum(map(len, val_groups))]
    pairs = [(gone, come) for gone, come in pairs if gone or come < sum(map(len, train_groups))]
    gone, come = min(pairs, key=lambda pair: (abs(lacking + pair[0] - pair[1]), sum(pair)), default=(0, 0))
    for size, one, other, sizes in (
        (gone, val_groups, train_groups, inside),
        (come, train_groups, val_groups, outside),
    ):
        if size:
            one.remove(sizes[size])
            other.append(sizes[size])


def take(dataset, rows: list[int]):
    """Some rows of a data set."""
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows)


def split_three(dataset, val_fraction: float = 0.5, seed: int = 0, groups: Sequence | None = None):
    """(D_tr, rows of D_val that order, rows of D_val that judge the size); see `split_train` and `split_held_out`."""
    train_rows, val_rows = split_rows(dataset, val_fraction, seed, groups)
    own = None if groups is None else [groups[row] for row in val_rows]
    return take(dataset, train_rows), *split_held_out(take(dataset, val_rows), seed, own)


def split_held_out(val_dataset, seed: int = 0, groups: Sequence | None = None):
    """D_val in two halves: rows that order the components (and move α), and rows that judge the size; where all are of
    one group, they are divided all the same, and a warning says so.

    Raises:
        ValueError: If D_val cannot be divided.
    """
    if groups is not None and len(set(groups)) == 1 < len(groups):
        logger.warning(
            "all rows of D_val share an input: those that judge the size are no others than those that order"
        )
        groups = None
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
