"""The paper's tables beside ours; for report.py. The paper's numbers are those of `benchmarks/paper/numbers.yaml`."""

import json
import statistics

from autolora_trainer.arguments import SEARCH_STEPS
from benchmarks import compare, trials
from benchmarks.committed import (
    command_of,
    join,
    not_measured,
    plan_of,
    progress,
    provenance,
    reported,
    rows_of,
    yaml_of,
)
from benchmarks.significance import difference_cells, markdown, mean_cell

SAME = {"lora": "uniform"}  # the paper's LoRA is uniform LoRA of the scripts
COMPARISON = (
    "Ours compared: differences are paired by task and seed and pooled, with a 95 % interval; `detectable` is the "
    "true difference that a test of so many pairs would find four times in five. Passes (forward and backward): "
    "median ratio over the pairs."
)


def score_cell(rows: list[dict], column: str, columns: list[str]) -> str:
    """Mean and interval of a task's score, or of one of its metrics (`e2e nist`); `average`: of all the columns."""
    if column == "average":
        means = [[row["score"] for row in rows if row["task"] == task] for task in columns if task != "average"]
        return f"{statistics.mean(map(statistics.mean, means)):.2f}" if all(means) else "-"
    task, _, metric = column.partition(" ")
    rows = [row for row in rows if row["task"] == task]
    if not metric:
        return mean_cell([row["score"] for row in rows])
    factor = trials.METRICS[task][1]
    values = [row["scores"].get(f"predict_{metric}", row["scores"].get(f"eval_{metric}")) for row in rows]
    return mean_cell([factor * value for value in values if value is not None])


def beside(paper: dict, rows: list[dict], labels: list[str]) -> str:
    """The paper's lines, each followed by ours of the same method, then the rest of ours."""
    body, left, columns = [], dict.fromkeys(labels), paper["columns"]
    for key, line in [*paper["methods"].items(), (None, None)]:
        if line is not None:
            body.append([f"**{line['name']}, paper**", line.get("parameters", "-"), *line["scores"]])
        for label in [label for label in left if key is None or label in (key, SAME.get(key))]:
            own = [row for row in rows if row["method"] == label]
            size = compare.sizes_cell(own, "adapter_params") if own else "-"
            body.append([f"{label}, here", size, *(score_cell(own, column, columns) for column in columns)])
            del left[label]
    return markdown(["method", "parameters", *columns], body)


def odd_averages(paper: dict) -> str:
    """Which of the paper's averages are not the means of its columns, by more than rounding."""
    if paper["columns"][-1] != "average":
        return ""
    means = {
        line["name"]: (statistics.mean(line["scores"][:-1]), line["scores"][-1]) for line in paper["methods"].values()
    }
    odd = [
        f"{name} has {mean:.1f}, printed {shown}" for name, (mean, shown) in means.items() if abs(mean - shown) > 0.051
    ]
    return f"Not every average of the paper is the mean of its line: {'; '.join(odd)}." if odd else ""


def chosen_rates(plan: dict, rows: list[dict]) -> str:
    """The learning rates that tuning chose, of a plan that tunes; those at an end of their range in bold."""
    if not plan["tuning"] or not any(row.get("kind") == compare.TUNING for row in rows):
        return ""
    body = []
    for label in plan["methods"]:
        found = [compare.tuned(plan, rows, task, label) for task in plan["tasks"]]
        rates, ends = compare.rates(plan, label), (min(compare.rates(plan, label)), max(compare.rates(plan, label)))
        shown = ["-" if rate is None else f"{rate['learning_rate']:g}" for rate in found]
        shown = [f"**{text}**" if rate and rate["learning_rate"] in ends else text for text, rate in zip(shown, found)]
        body.append([label, ", ".join(f"{rate:g}" for rate in rates), *shown])
    text = (
        "Learning rates chosen on held-out training rows, by one run each; in bold at an end of the range, where the "
        "best rate may lie beyond.\n\n"
    )
    return text + markdown(["method", "range", *plan["tasks"]], body)


def block(paper: dict, sources: dict[str, str]) -> str:
    """The paper's numbers beside ours, and ours compared. `sources`: {plan: its rows}; the first has the reference."""
    plans = {path: plan_of(path) for path in sources}
    plan = {**next(iter(plans.values())), "methods": {k: v for p in plans.values() for k, v in p["methods"].items()}}
    rows = {path: reported(rows_of(name)) for path, name in sources.items()}
    whole = [row for own in rows.values() for row in own]
    left = [progress(rows[path], plans[path], command_of(path, name)) for path, name in sources.items()]
    text = [beside(paper, whole, list(plan["methods"])), odd_averages(paper)]
    if whole:
        commands = [command_of(path, name) for path, name in sources.items() if rows[path]]
        table = markdown(*compare.table(whole, {**plan, "tasks": []}))
        text += [f"{COMPARISON} {compare.timed_on(whole)}", table, provenance(whole, *commands)]
    text += [chosen_rates(plans[path], rows_of(name)) for path, name in sources.items()]
    return join(*text, *left)


def paper_table(number: int, sources: dict[str, str], scale: str, differs: str) -> str:
    """One of the paper's tables beside ours, and at the paper's scale where `results/table<number>.jsonl` has rows."""
    name = f"table{number}"
    paper = yaml_of("paper/numbers")[name]
    large = block(paper, {scale: name}) if rows_of(name) else at_scale(scale, name)
    return join(f"## Table {number}: {paper['caption']}", differs, block(paper, sources), large)


def at_scale(scale: str, name: str, more: str = "") -> str:
    """Our rows of a plan at the paper's scale, or how to get them."""
    rows, plan, command = rows_of(name), plan_of(scale), command_of(scale, name) + more
    if not rows:
        what = f"{plan['settings']['model_name_or_path']}, {plan['seeds']} seed{'s' * (plan['seeds'] > 1)}"
        return not_measured(command, f"At the paper's scale ({what}) not measured yet")
    return join(compare.report(rows, plan), provenance(reported(rows), command), progress(rows, plan, command))


def largest_runs() -> list[dict]:
    """Rows of whole runs on the most training rows; smaller ones show how cost grows, once each."""
    rows = [row for row in rows_of("cost") if row["task"] != "steps"]
    most = max((row["train_rows"] for row in rows), default=None)
    return [row for row in rows if row["train_rows"] == most]


def wall_ratios(rows: list[dict], method: str) -> list[float]:
    """Wall time of whole runs in units of AdaLoRA's of the same round."""
    place = lambda row: (row["machine"], row["task"], row["round"])
    unit = {place(row): row["wall_seconds"] for row in rows if row["method"] == "adalora"}
    return [row["wall_seconds"] / unit[place(row)] for row in rows if row["method"] == method and place(row) in unit]


def runs_from_steps(steps: int = 10_000, trials: int = 16) -> str:
    """Table 5 at the sizes that a GPU's steps were measured at: what a training of so many steps would take, by the
    medians under Cost. Loading, evaluation and saving, which all of them have, are left out."""
    groups, found = {}, {}
    for row in rows_of("cost"):
        if row["task"] == "steps" and row["settings"]["device"] == "cuda" and row["wall_seconds"]:
            place = (row["machine"], row["settings"]["dtype"], json.dumps(row["settings"]))
            groups.setdefault(place, {})[row["method"]] = row["wall_seconds"]
    for (machine, dtype, settings), seconds in groups.items():
        if {"LoRA r=8", "AdaLoRA 6->4", "search, defaults"} <= seconds.keys():
            unit = steps * seconds["AdaLoRA 6->4"]
            ours = SEARCH_STEPS * seconds["search, defaults"] + steps * seconds["LoRA r=8"]
            grid = trials * steps * seconds["LoRA r=8"]
            shape = json.loads(settings)["shape"]
            found.setdefault(f"{shape}, {dtype}, {machine}", []).append((grid / unit, ours / unit))
    if not found:
        return ""
    cells = {label: [" and ".join(f"{x:.2f}" for x in column) for column in zip(*own)] for label, own in found.items()}
    body = [[label, "1", *values] for label, values in cells.items()]
    text = (
        f"A training of {steps:,} steps, computed from the steps that were measured under Cost: AutoLoRA is "
        f"{SEARCH_STEPS} steps of search and the training, the grid {trials} trainings. AdaLoRA is PEFT's. Two values "
        "are two measurements."
    )
    return join(text, markdown(["shape", "AdaLoRA", "LoRA + grid search", "AutoLoRA"], body))


def table5() -> str:
    paper, scale, body = yaml_of("paper/numbers")["table5"], "paper/table5_cost", []
    rows = largest_runs()
    for key, line in paper["methods"].items():
        body.append([f"**{line['name']}, paper**", *line["scores"], "-"])
        ratios = wall_ratios(rows, key)
        excess = difference_cells([ratio - 1 for ratio in ratios])[1] if key != "adalora" else "-"
        body.append([f"{key}, here", mean_cell(ratios), excess])
    table = markdown(["method", "wall time, AdaLoRA = 1", "smallest detectable difference to 1"], body)
    tasks = ", ".join(dict.fromkeys(f"{row['train_rows']:,} rows of {row['task']}" for row in rows))
    differs = f"Here {tasks or 'nothing yet'}, MiniLM: whole runs with their start, paired by round. Rows: see Cost."
    large = at_scale(scale, "table5", " --isolate")
    return join(f"## Table 5: {paper['caption']}", differs, table, runs_from_steps(), large)
