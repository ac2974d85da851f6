"""The tables of a plan with budgets: scores at equal parameters, and the front of score against parameters."""

from benchmarks.lib.significance import ENOUGH, interval, markdown, mean_cell, paired_differences, smallest_detectable
from benchmarks.lib.words import WORDS


def label(method: str) -> str:
    return WORDS["front"].get(method, method)


def report(rows: list[dict], plan: dict) -> str:
    """Means per task, then differences paired by task and seed, with intervals."""
    budgets = sorted({row["budget"] for row in rows})
    methods = dict.fromkeys(["uniform", "random", "svd_cut", *plan["methods"]])
    methods = [name for name in methods if any(row["method"] == name for row in rows)]
    means, differences = [], []
    for budget in budgets:
        for method in methods:
            if own := [row for row in rows if (row["method"], row["budget"]) == (method, budget)]:
                scores = [[row["score"] for row in own if row["task"] == task] for task in plan["tasks"]]
                size = f"{own[0]['adapter_params']:,}"
                means.append([f"{label(method)}, rank {budget} on average", size, *map(mean_cell, scores)])
            for size in (budget, budgets[-1]) if budget < budgets[-1] else ():
                values = paired_differences(rows, method, "uniform", budget, size)
                if len(values) >= ENOUGH and (method, budget) != ("uniform", size):
                    low, high = interval(values)
                    name = f"{label(method)}, rank {budget} - uniform, rank {size}"
                    cells = [len(values), f"{values.mean():+.2f}", f"{low:+.2f} to {high:+.2f}"]
                    differences.append([name, *cells, f"{smallest_detectable(values):.2f}"])
    return "\n\n".join(
        [
            "Mean score on the dev split (95 % interval over seeds, number of seeds):",
            markdown(["method", "adapter parameters", *(task.upper() for task in plan["tasks"])], means),
            "Differences paired by task and seed, in points; the last column is what 80 % power would need:",
            markdown(["difference", "pairs", "mean", "95 % interval", "smallest detectable"], differences) + "\n",
        ]
    )
