"""`autolora diff`: where two patterns differ."""

from scipy.stats import spearmanr

from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.tables import format_table


def diff(first: LearnedRanks, second: LearnedRanks) -> str:
    """Where two patterns differ: a line a module, then how far they agree."""
    names = list(dict.fromkeys([*first.modules, *second.modules]))
    a, b = ([ranks.ranks.get(name) for name in names] for ranks in (first, second))
    rows = [[name, _rank(x), _rank(y), _change(x, y)] for name, x, y in zip(names, a, b) if x != y]
    shared = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
    lines = [format_table(["module", "first", "second", "change"], rows)] if rows else []
    lines.append(f"{len(rows)} of {len(names)} modules differ; total rank {first.total_rank} and {second.total_rank}")
    xs, ys = zip(*shared) if shared else ((), ())
    if len(set(xs)) > 1 and len(set(ys)) > 1:
        lines.append(f"Spearman correlation over {len(shared)} shared modules: {spearmanr(xs, ys).statistic:.2f}")
    return "\n".join(lines)


def _rank(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def _change(first: int | None, second: int | None) -> str:
    return "-" if first is None or second is None else f"{second - first:+d}"
