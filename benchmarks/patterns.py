"""What rank patterns say: which projections, which depth, and whether seeds and tasks agree.

A pattern is the list of ranks in a row: query and value of every block, from the first block to the last.
"""

import itertools
import statistics

import numpy as np

from autolora_trainer.ranks import LearnedRanks, ModuleRank
from benchmarks.ranks import DEFAULT_RULE
from benchmarks.significance import cross_agreement, markdown, rank_agreement

PROJECTIONS = ("query", "value")


def of_searches(rows: list[dict], shuffled: bool = False) -> dict[str, dict[int, list[int]]]:
    """{task: {seed: ranks}} of rows of ranks.py, by the default rule; or of those whose labels were shuffled."""
    found: dict[str, dict[int, list[int]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["shuffled"] == shuffled:
            found.setdefault(row["task"], {})[row["seed"]] = row["ranks"][DEFAULT_RULE]
    return found


def collect(trials: list[dict], searches: list[dict]) -> dict[str, dict[int, list[int]]]:
    """{task: {seed: ranks}}: of the runs of AutoLoRA's default, else of the searches alone."""
    found: dict[str, dict[int, list[int]]] = {}
    for row in sorted(trials, key=lambda row: row["seed"]):
        if row["method"] == "autolora" and row.get("kind") is None:
            found.setdefault(row["task"], {})[row["seed"]] = row["ranks"]
    return {**of_searches(searches), **found}


def first_runs(found: dict[str, dict[int, list[int]]]) -> dict[str, LearnedRanks]:
    """The first seed of every task, with names that say block and projection."""
    named = {}
    for task, runs in found.items():
        ranks = next(iter(runs.values()))
        modules = {f"layer.{i // 2}.{PROJECTIONS[i % 2]}": ModuleRank(rank) for i, rank in enumerate(ranks)}
        named[task] = LearnedRanks(modules)
    return named


def thirds(blocks: int) -> list[slice]:
    """The first, the middle and the last third of the blocks, as evenly as can be.

    Example:
        >>> [list(range(6))[part] for part in thirds(6)], [list(range(4))[part] for part in thirds(4)]
        ([[0, 1], [2, 3], [4, 5]], [[0], [1, 2], [3]])
    """
    edges = [round(blocks * part / 3) for part in range(4)]
    return [slice(start, end) for start, end in zip(edges, edges[1:])]


def describe(found: dict[str, dict[int, list[int]]]) -> str:
    """Two tables: means by projection and depth, and Spearman correlations between seeds and between tasks."""
    body = []
    for task, runs in found.items():
        grid = np.array([np.reshape(ranks, (-1, 2)) for ranks in runs.values()])  # (seeds, blocks, projections)
        means = [grid[:, :, i].mean() for i in range(2)] + [grid[:, part].mean() for part in thirds(grid.shape[1])]
        pairs = [rank_agreement(pair) for pair in itertools.combinations(list(runs.values()), 2)]
        agree = f"{statistics.mean(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})" if pairs else "-"
        body.append([task, ", ".join(map(str, runs)), *(f"{mean:.1f}" for mean in means), agree])
    header = [
        "task",
        "seeds",
        *PROJECTIONS,
        "first third",
        "middle",
        "last third",
        "between seeds (lowest to highest pair)",
    ]
    text = "Mean rank by projection and by depth, and Spearman correlation between seeds:\n\n" + markdown(header, body)
    lists = {task: list(runs.values()) for task, runs in found.items()}
    size = {task: len(runs[0]) for task, runs in lists.items()}
    body = [
        [a, *(f"{cross_agreement(lists[a], lists[b]):.2f}" if a != b and size[a] == size[b] else "-" for b in lists)]
        for a in lists
    ]
    if len(lists) > 1:
        text += "\n\nSpearman correlation between tasks, mean over their seeds:\n\n" + markdown(["task", *lists], body)
    return text
