"""What the benchmarks' tables say about their own noise: paired differences, intervals, detectable sizes."""

import functools
import itertools
import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, spearmanr, t, ttest_1samp

ENOUGH = 3  # values, for an interval to be shown


def interval(values, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean. Of a few values a percentile bootstrap is too narrow: of three it can only be
    their range, which holds the mean three times in four."""
    values = np.asarray(values, float)
    reach = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def p_value(values) -> float:
    """Two-sided, of a mean of zero, by Student's t; 1 where all values are zero."""
    values = np.asarray(values, float)
    return 1.0 if not values.any() else float(ttest_1samp(values, 0).pvalue)


def smallest_detectable(values, power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a two-sided t test at `level` finds with `power`, by the noncentral t distribution
    (Cohen 1988, §2)."""
    values = np.asarray(values, float)
    return _standard_errors(len(values), power, level) * values.std(ddof=1) / math.sqrt(len(values))


@functools.cache
def _standard_errors(count: int, power: float, level: float) -> float:
    critical = t.ppf(1 - level / 2, count - 1)
    excess = lambda shift: nct.sf(critical, count - 1, shift) - power  # the other tail is below 1e-5
    return brentq(excess, 0, 2 * critical + 2)


def rank_agreement(patterns, columns=None) -> float:
    """Mean Spearman correlation over all pairs of rank patterns, (runs, modules), on the given columns.

    A pattern that is constant on the columns has no order, and agrees with nothing: it counts zero.
    """
    patterns = np.asarray(patterns, float)
    patterns = patterns if columns is None else patterns[:, columns]
    return float(np.mean([spearman(a, b) for a, b in itertools.combinations(patterns, 2)]))


def cross_agreement(first, second, columns=None) -> float:
    """Mean Spearman correlation between every pattern of `first` and every one of `second`."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if columns is not None:
        first, second = first[:, columns], second[:, columns]
    return float(np.mean([spearman(a, b) for a in first for b in second]))


def spearman(a, b) -> float:
    """Spearman's rank correlation; 0 where one of the two is constant."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def mean_cell(scores) -> str:
    """Mean, and from three scores on its interval: two say too little of how they spread."""
    if len(scores) == 0:
        return "-"
    if len(scores) < ENOUGH:
        return f"{np.mean(scores):.2f} (n={len(scores)})"
    low, high = interval(scores)
    return f"{np.mean(scores):.2f} ({low:.2f} to {high:.2f}, n={len(scores)})"


def difference_cells(pairs) -> list[str]:
    """Mean of paired differences with its interval, and the smallest one that so many pairs would show."""
    if len(pairs) < ENOUGH:
        return [f"{np.mean(pairs):+.2f} (n={len(pairs)})" if len(pairs) else "-", "-"]
    low, high = interval(pairs)
    shown = f"{np.mean(pairs):+.2f} ({low:+.2f} to {high:+.2f}, n={len(pairs)})"
    return [shown, f"{smallest_detectable(pairs):.2f}"]


def markdown(header: list[str], body: list[list]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in [header, rule, *body])
