"""The same rank everywhere, at a given size: what a learned pattern of that size has to beat.

Scale and training are the retrain's, so that only the ranks differ.
"""

from autolora_trainer.methods.common import Built, build_pattern, check_pattern


def uniform_ranks(costs: dict[str, int], parameters: int) -> dict[str, int]:
    """Equal ranks within `parameters`; what is left buys one more component for modules evenly spread over the depth.

    Args:
        costs: {module: parameters of one component}.
        parameters: adapter parameters to spend.
    Example:
        >>> uniform_ranks({"a": 10, "b": 10, "c": 10, "d": 10}, 60)
        {'a': 1, 'b': 2, 'c': 1, 'd': 2}
    """
    names = list(costs)
    ranks = dict.fromkeys(names, parameters // sum(costs.values()))
    left = parameters - sum(ranks[name] * costs[name] for name in names)
    extra = min(len(names) - 1, left * len(names) // sum(costs.values()))
    order = [names[(2 * i + 1) * len(names) // (2 * extra)] for i in range(extra)]
    for name in order + [name for name in names if name not in order]:
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def check(run) -> None:
    check_pattern(run, uniform_ranks)


def build(run) -> Built:
    return build_pattern(run, "uniform", uniform_ranks)
