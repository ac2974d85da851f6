"""AutoLoRA less each of its rivals, paired by task and seed, from the committed rows; for report.py."""

import re
from collections.abc import Sequence

from scipy.stats import false_discovery_control

from benchmarks.lib.budgets import label
from benchmarks.lib.committed import COMPARED, command_of, join, plan_of, provenance, reported, rows_of
from benchmarks.lib.significance import ENOUGH, difference_cells, interval, markdown, middle_cells, p_value
from benchmarks.lib.significance import paired_differences as paired

PRIMARY = "uniform (core table)"  # the comparison that the plan was made for; all others explore


def verdict(values: Sequence[float]) -> str:
    """What an interval of a difference lets one say, and no more."""
    if len(values) < ENOUGH:
        return "too few pairs to say" if len(values) else "not measured yet"
    low, high = interval(values)
    if low <= 0 <= high:
        return "no difference is shown"
    return "AutoLoRA is ahead" if low > 0 else "AutoLoRA is behind"


def comparisons() -> dict[str, Sequence[float]]:
    """{AutoLoRA less what: differences paired by task and seed}, of the tables and of the front."""
    found = {}
    for name, place in COMPARED.items():
        own = reported(rows_of(name))
        rivals = [rival for rival in plan_of(f"plans/{name}")["methods"] if rival != "autolora"]
        values = {f"{rival} ({place})": paired(own, "autolora", rival, None) for rival in rivals}
        found |= {rival: pairs for rival, pairs in values.items() if name == "core" or len(pairs)}
    rows, plan = rows_of("front"), plan_of("plans/front")
    for budget, methods in sorted(plan["budgets"].items()):
        if "autolora" in methods:
            for rival in dict.fromkeys(["uniform", "random", "svd_cut", *methods]):
                if rival != "autolora":
                    name = f"{label(rival)}, both of rank {budget} (front)"
                    found[name] = paired(rows, "autolora", rival, budget)
            wide = plan["svd_cut"]["from"]
            name = f"uniform of rank {wide}, AutoLoRA of rank {budget} (front)"
            found[name] = paired(rows, "autolora", "uniform", budget, wide)
    return found


def counted(found: dict[str, Sequence[float]]) -> str:
    """How many of the comparisons with other methods show something, also when their number is allowed for."""
    own = re.compile("autolora|AutoLoRA," + "|" + re.escape(PRIMARY))
    others = [values for name, values in found.items() if len(values) >= ENOUGH and not own.match(name)]
    if not others:
        return ""
    adjusted = false_discovery_control([p_value(values) for values in others]) <= 0.05
    shown = [(verdict(values), held) for values, held in zip(others, adjusted)]
    ahead, behind = ([held for said, held in shown if said.endswith(word)] for word in ("ahead", "behind"))
    return (
        f"Of the {len(others)} comparisons with other methods beside the first, each taken by itself, AutoLoRA is "
        f"ahead in {len(ahead)} and behind in {len(behind)}; allowing for their number (Benjamini and Hochberg, 5 %), "
        f"in {sum(ahead)} and {sum(behind)}."
    )


def everywhere() -> str:
    """The table of all comparisons, how many of them hold, and where the rows come from."""
    found = comparisons()
    body = []
    for name, values in found.items():
        mean, detectable = difference_cells(values)
        body.append([name, mean, *middle_cells(values), detectable, verdict(values)])
    table = markdown(["AutoLoRA less", "mean", "median", "ahead in", "smallest detectable", "so"], body)
    names = [name for name in COMPARED if reported(rows_of(name))]
    rows = [row for name in names for row in reported(rows_of(name))] + rows_of("front")
    commands = [command_of(f"plans/{name}", name) for name in [*names, "front"]]
    return join(table, counted(found), provenance(rows, *commands))


def by_task() -> str:
    """The core table's differences one task at a time: pooled over tasks, the one that scatters most decides."""
    rows, plan = reported(rows_of("core")), plan_of("plans/core")
    if not rows:
        return ""
    body = []
    for rival in plan["methods"]:
        if rival != "autolora":
            own = [[row for row in rows if row["task"] == task] for task in plan["tasks"]]
            pairs = [paired(task_rows, "autolora", rival, None) for task_rows in own]
            body.append([rival, *(difference_cells(values)[0] for values in pairs)])
    return join("AutoLoRA less each of them, by task:", markdown(["AutoLoRA less", *plan["tasks"]], body))
