"""What the benchmarks' tables say about their own noise: paired differences, bootstrap intervals, detectable sizes."""

import itertools
import math

import numpy as np
from scipy.stats import norm, spearmanr

ENOUGH = 3  # values, for an interval to be shown


def paired_differences(rows: list[dict], method: str, reference: str, budget, reference_budget=None) -> np.ndarray:
    """Scores of `method` less those of `reference`, for every (task, seed) that has both."""
    reference_budget = budget if reference_budget is None else reference_budget
    score = {(r["task"], r["seed"], r["method"], r.get("budget")): r["score"] for r in rows}
    places = sorted({(r["task"], r["seed"]) for r in rows})
    pairs = [((*p, method, budget), (*p, reference, reference_budget)) for p in places]
    return np.array([score[a] - score[b] for a, b in pairs if a in score and b in score])


def bootstrap_interval(values, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean (Efron & Tibshirani 1993, §13.3)."""
    values = np.asarray(values, float)
    means = np.random.default_rng(seed).choice(values, (draws, len(values))).mean(axis=1)
    tail = 100 * (1 - level) / 2
    return tuple(np.percentile(means, [tail, 100 - tail]))


def smallest_detectable(values, power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a two-sided test at `level` finds with `power`:  (z_{1-a/2} + z_power) s / √n."""
    values = np.asarray(values, float)
    return (norm.ppf(1 - level / 2) + norm.ppf(power)) * values.std(ddof=1) / math.sqrt(len(values))


def rank_agreement(patterns, columns=None) -> float:
    """Mean Spearman correlation over all pairs of rank patterns, (runs, modules), on the given columns.

    A pattern that is constant on the columns has no order, and agrees with nothing: it counts zero.
    """
    patterns = np.asarray(patterns, float)
    patterns = patterns if columns is None else patterns[:, columns]
    return float(np.mean([_spearman(a, b) for a, b in itertools.combinations(patterns, 2)]))


def cross_agreement(first, second, columns=None) -> float:
    """Mean Spearman correlation between every pattern of `first` and every one of `second`."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if columns is not None:
        first, second = first[:, columns], second[:, columns]
    return float(np.mean([_spearman(a, b) for a in first for b in second]))


def _spearman(a, b) -> float:
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def mean_cell(scores) -> str:
    """Mean, and from three scores on its interval: two say too little of how they spread."""
    if len(scores) == 0:
        return "-"
    if len(scores) < ENOUGH:
        return f"{np.mean(scores):.2f} (n={len(scores)})"
    low, high = bootstrap_interval(scores)
    return f"{np.mean(scores):.2f} ({low:.2f} to {high:.2f}, n={len(scores)})"


def difference_cells(pairs) -> list[str]:
    """Mean of paired differences with its interval, and the smallest one that so many pairs would show."""
    if len(pairs) < ENOUGH:
        return [f"{np.mean(pairs):+.2f} (n={len(pairs)})" if len(pairs) else "-", "-"]
    low, high = bootstrap_interval(pairs)
    shown = f"{np.mean(pairs):+.2f} ({low:+.2f} to {high:+.2f}, n={len(pairs)})"
    return [shown, f"{smallest_detectable(pairs):.2f}"]


def markdown(header: list[str], body: list[list]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in [header, rule, *body])
