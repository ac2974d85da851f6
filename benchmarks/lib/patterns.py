"""What rank patterns say: which projections, which depth, and whether seeds and tasks agree.

A pattern is the list of ranks in a row, from the first block to the last: query and value of every block, or all
linear layers of GPT-2's.
"""

import itertools
import statistics

import numpy as np

from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from benchmarks.lib.significance import cross_agreement, markdown, rank_agreement

GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
LAYERS = {"e2e": GPT2, "webnlg": GPT2}  # of a block; query and value elsewhere


def layers_of(task: str) -> tuple[str, ...]:
    """The layers of a block that a task's plan searches, in the order of its patterns."""
    return LAYERS.get(task, ("query", "value"))


def collect(trials: list[dict]) -> dict[str, dict[int, list[int]]]:
    """{task: {seed: ranks}} of the runs of AutoLoRA's default."""
    found: dict = {}
    rows = [row for row in trials if row["method"] == "autolora" and row.get("kind") is None]
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row["task"], {})[row["seed"]] = row["ranks"]
    return found


def first_runs(found: dict[str, dict[int, list[int]]]) -> dict[str, LearnedRanks]:
    """The first seed of every task, with names that say block and projection."""
    named = {}
    for task, runs in found.items():
        ranks, layers = next(iter(runs.values())), layers_of(task)
        names = (f"layer.{i // len(layers)}.{layers[i % len(layers)]}" for i in range(len(ranks)))
        named[task] = LearnedRanks({name: ModuleRank(rank) for name, rank in zip(names, ranks)})
    return named


def figure3(found: dict) -> dict[str, dict]:
    """{picture: tasks in it}, at most four side by side, and only such as have the same layers in a block."""
    alike: dict[tuple, list] = {}
    for task, learned in first_runs(found).items():
        alike.setdefault(layers_of(task), []).append((task, learned))
    parts = [runs[start : start + 4] for runs in alike.values() for start in range(0, len(runs), 4)]
    return {f"figure3_{number}": dict(part) for number, part in enumerate(parts, start=1)}


def thirds(blocks: int) -> list[slice]:
    """The first, the middle and the last third of the blocks, as evenly as can be.

    Example:
        >>> [list(range(6))[part] for part in thirds(6)], [list(range(4))[part] for part in thirds(4)]
        ([[0, 1], [2, 3], [4, 5]], [[0], [1, 2], [3]])
    """
    edges = [round(blocks * part / 3) for part in range(4)]
    return [slice(start, end) for start, end in zip(edges, edges[1:])]


def describe(found: dict[str, dict[int, list[int]]]) -> str:
    """Where the ranks are, by layer and by depth, and Spearman correlations between seeds and between tasks."""
    texts = ["Mean rank by layer of a block and by depth, and Spearman correlation between seeds:"]
    for layers in dict.fromkeys(map(layers_of, found)):
        own = {task: runs for task, runs in found.items() if layers_of(task) == layers}
        texts.append(where_table(own, layers))
    texts.append(
        "Uniform: runs whose ranks are all equal, as the search saw no use in its update. Such a pattern has no "
        "order, and counts as an agreement of zero."
    )
    lists = {task: list(runs.values()) for task, runs in found.items()}
    alike = lambda a, b: a != b and layers_of(a) == layers_of(b) and len(lists[a][0]) == len(lists[b][0])
    body = [[a, *(f"{cross_agreement(lists[a], lists[b]):.2f}" if alike(a, b) else "-" for b in lists)] for a in lists]
    if len(lists) > 1:
        texts += ["Spearman correlation between tasks, mean over their seeds:", markdown(["task", *lists], body)]
    return "\n\n".join(texts)


def where_table(found: dict[str, dict[int, list[int]]], layers: tuple[str, ...]) -> str:
    """Markdown of mean ranks by layer and depth, of tasks with the same layers in a block."""
    body = []
    for task, runs in found.items():
        grid = np.array([np.reshape(ranks, (-1, len(layers))) for ranks in runs.values()])  # (seeds, blocks, layers)
        means = [grid[:, :, i].mean() for i in range(len(layers))]
        means += [grid[:, part].mean() for part in thirds(grid.shape[1])]
        pairs = [rank_agreement(pair) for pair in itertools.combinations(list(runs.values()), 2)]
        agree = f"{statistics.mean(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})" if pairs else "-"
        uniform = sum(len(set(ranks)) == 1 for ranks in runs.values())
        cells = [f"{mean:.1f}" for mean in means]
        body.append([task, ", ".join(map(str, runs)), *cells, f"{uniform} of {len(runs)}", agree])
    header = ["task", "seeds", *layers, "first third", "middle", "last third", "uniform"]
    return markdown([*header, "between seeds (lowest to highest pair)"], body)
