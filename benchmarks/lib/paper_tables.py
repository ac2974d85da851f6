"""The paper's tables beside ours; for report.py. The paper's numbers are those of `benchmarks/paper/numbers.yaml`."""

import json
import statistics
from pathlib import Path

import yaml

from autolora_trainer.search.arguments import SEARCH_STEPS
from benchmarks.lib import comparison, plans, trials
from benchmarks.lib.committed import command_of, join, not_measured, plan_of, progress, provenance, rows_of
from benchmarks.lib.significance import difference_cells, markdown, mean_cell
from benchmarks.lib.trials import reported

SAME = {"lora": "uniform"}  # the paper's LoRA is uniform LoRA of the scripts
TABLES = {  # of the paper: our rows of it, the first with the reference, and the plan at the paper's scale
    1: (("core", "adapters"), "paper/table1_roberta_base"),
    2: (("e2e", "webnlg"), "paper/table2_gpt2_medium"),
    3: (("ner",), "paper/table3_bionlp"),
    4: (("ablations",), "paper/table4_ablations"),
}
COMPARISON = (
    "Ours compared: differences are paired by task and seed and pooled, with a 95 % interval; `detectable` is the "
    "true difference that a test of so many pairs would find four times in five. Passes (forward and backward): "
    "median ratio over the pairs."
)
RATES = (
    "Learning rates chosen on held-out training rows, by one run each; in bold at an end of the range, where the "
    "best rate may lie beyond."
)


def numbers() -> dict:
    return yaml.safe_load(Path(trials.ROOT, "benchmarks", "paper", "numbers.yaml").read_text(encoding="utf-8"))


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
    """Our lines, in the order of the paper's methods and then the rest, and the paper's numbers in a table below."""
    columns, known = paper["columns"], [SAME.get(key, key) for key in paper["methods"]]
    ours = []
    for label in sorted(labels, key=lambda own: known.index(own) if own in known else len(known)):
        own = [row for row in rows if row["method"] == label]
        size = comparison.sizes_cell(own, "adapter_params") if own else "-"
        ours.append([label, size, *(score_cell(own, column, columns) for column in columns)])
    theirs = [[line["name"], line.get("parameters", "-"), *line["scores"]] for line in paper["methods"].values()]
    heads = ["method", "parameters", *columns]
    return join(markdown(heads, ours), f"The paper, {paper['caption']}:", markdown(heads, theirs))


def chosen_rates(plan: dict, rows: list[dict]) -> str:
    """The learning rates that tuning chose, of a plan that tunes; those at an end of their range in bold."""
    if not plan["tuning"] or not any(row.get("kind") == plans.TUNING for row in rows):
        return ""
    body = []
    for label in plan["methods"]:
        span, shown = plans.rates(plan, label), []
        for task in plan["tasks"]:
            rate = (plans.tuned(plan, rows, task, label) or {}).get("learning_rate")
            text = "-" if rate is None else f"{rate:g}"
            shown.append(f"**{text}**" if rate in (min(span), max(span)) else text)
        body.append([label, ", ".join(f"{rate:g}" for rate in span), *shown])
    return join(RATES, markdown(["method", "range", *plan["tasks"]], body))


def block(paper: dict, sources: dict[str, str]) -> str:
    """The paper's numbers beside ours, and ours compared. `sources`: {plan: its rows}; the first has the reference."""
    found = {path: plan_of(path) for path in sources}
    plan = {**next(iter(found.values())), "methods": {k: v for p in found.values() for k, v in p["methods"].items()}}
    rows = {path: reported(rows_of(name)) for path, name in sources.items()}
    whole = [row for own in rows.values() for row in own]
    text = [beside(paper, whole, list(plan["methods"]))]
    if whole:
        commands = [command_of(path, name) for path, name in sources.items() if rows[path]]
        table = markdown(*comparison.table(whole, {**plan, "tasks": []}))
        text += [f"{COMPARISON} {comparison.timed_on(whole)}", table, provenance(whole, *commands)]
    text += [chosen_rates(found[path], rows_of(name)) for path, name in sources.items()]
    return join(*text, *(progress(rows[path], found[path], command_of(path, name)) for path, name in sources.items()))


def paper_table(number: int) -> str:
    """One of the paper's tables beside ours, and at the paper's scale where `results/table<number>.jsonl` has rows."""
    (names, scale), name = TABLES[number], f"table{number}"
    paper = numbers()[name]
    large = block(paper, {scale: name}) if rows_of(name) else at_scale(scale, name)
    return join(block(paper, {f"plans/{own}": own for own in names}), large)


def at_scale(scale: str, name: str, more: str = "") -> str:
    """Our rows of a plan at the paper's scale, or how to get them."""
    rows, plan, command = rows_of(name), plan_of(scale), command_of(scale, name) + more
    if not rows:
        what = f"{plan['settings']['model_name_or_path']}, {plan['seeds']} seed{'s' * (plan['seeds'] > 1)}"
        return not_measured(command, f"At the paper's scale ({what}) not measured yet")
    return join(comparison.report(rows, plan), provenance(reported(rows), command), progress(rows, plan, command))


def wall_ratios(rows: list[dict], method: str) -> list[float]:
    """Wall time of whole runs in units of AdaLoRA's of the same round."""
    place = lambda row: (row["machine"], row["task"], row["round"])
    unit = {place(row): row["wall_seconds"] for row in rows if row["method"] == "adalora"}
    return [row["wall_seconds"] / unit[place(row)] for row in rows if row["method"] == method and place(row) in unit]


def table5() -> str:
    """Whole runs on the most training rows; smaller ones show how cost grows, once each."""
    paper, body = numbers()["table5"], []
    rows = [row for row in rows_of("cost") if row["task"] != "steps"]
    most = max((row["train_rows"] for row in rows), default=None)
    for key, line in paper["methods"].items():
        body.append([f"**{line['name']}, paper**", *line["scores"], "-"])
        ratios = wall_ratios([row for row in rows if row["train_rows"] == most], key)
        excess = difference_cells([ratio - 1 for ratio in ratios])[1] if key != "adalora" else "-"
        body.append([f"{key}, here", mean_cell(ratios), excess])
    table = markdown(["method", "wall time, AdaLoRA = 1", "smallest detectable difference to 1"], body)
    return join(table, runs_from_steps(), at_scale("paper/table5_cost", "table5", " --isolate"))


def runs_from_steps(steps: int = 10_000, grid: int = 16) -> str:
    """Table 5 at the sizes that a GPU's steps were measured at: what a training of so many steps would take, by the
    medians under Cost. Loading, evaluation and saving, which all of them have, are left out."""
    groups, found = {}, {}
    for row in rows_of("cost"):
        if row["task"] == "steps" and row["settings"]["device"] == "cuda" and row["wall_seconds"]:
            groups.setdefault((row["machine"], json.dumps(row["settings"])), {})[row["method"]] = row["wall_seconds"]
    for (machine, settings), seconds in groups.items():
        if {"LoRA r=8", "AdaLoRA 6->4", "search, defaults"} <= seconds.keys():
            training, unit = steps * seconds["LoRA r=8"], steps * seconds["AdaLoRA 6->4"]
            ours = SEARCH_STEPS * seconds["search, defaults"] + training
            label = "{shape}, {dtype}, ".format(**json.loads(settings)) + machine
            found.setdefault(label, []).append((grid * training / unit, ours / unit))
    if not found:
        return ""
    shown = lambda own: [" and ".join(f"{x:.2f}" for x in column) for column in zip(*own)]
    body = [[label, "1", *shown(own)] for label, own in found.items()]
    text = (
        f"A training of {steps:,} steps, computed from the steps that were measured under Cost: AutoLoRA is "
        f"{SEARCH_STEPS} steps of search and the training, the grid {grid} trainings. AdaLoRA is PEFT's. Two values "
        "are two measurements."
    )
    return join(text, markdown(["shape", "AdaLoRA", "LoRA + grid search", "AutoLoRA"], body))
