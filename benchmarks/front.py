"""Scores at equal parameters, and the front of score against parameters, through the real scripts.

    python benchmarks/front.py plan.yaml --data DATA --model FOLDER --output benchmarks/results/front.jsonl
    CUDA_VISIBLE_DEVICES=1 python benchmarks/front.py plan.yaml …   # the same again: a worker that shares the plan
    python benchmarks/front.py plan.yaml --output benchmarks/results/front.jsonl --report

A plan (see `benchmarks/plans/front.yaml`) names tasks, seeds, methods and budgets; a method's label is its `--method`
where its settings have none. A trial is one run of `run_glue.py` in this process, exactly as its row's command says; a
finished trial is skipped, an interrupted one starts again. The post-hoc SVD cut needs no training of its own: the
adapter of uniform rank k is cut to every budget by its largest singular values over all modules, and evaluated as it
is.

Every row: see `trials.row_of`; `budget` is the uniform rank of the same size.
"""

import argparse
import os
import sys
import time

import yaml

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer.cut import copy_cut, cut_to_ranks  # noqa: E402
from autolora_trainer.methods.svd import ranks_by_singular_values  # noqa: E402
from autolora_trainer.pipeline import count_parameters  # noqa: E402
from autolora_trainer.ranks import LearnedRanks, ModuleRank  # noqa: E402
from autolora_trainer.retrain import build_adapter  # noqa: E402
from benchmarks import sharing, trials  # noqa: E402
from benchmarks.significance import (  # noqa: E402
    ENOUGH,
    interval,
    markdown,
    mean_cell,
    paired_differences,
    smallest_detectable,
)


def planned(plan: dict):
    """Every (task, seed, method, budget) of the plan, once: group by group, and in it seed by seed, so that early rows
    already compare."""
    seen = set()
    for group in plan["groups"]:
        for seed in range(group["seeds"]):
            for task in plan["tasks"]:
                for method in group["methods"]:
                    for budget in group["budgets"]:
                        trial = (task, seed, method, budget)
                        if trial not in seen:
                            seen.add(trial)
                            yield dict(zip(("task", "seed", "method", "budget"), trial))


def arguments(plan: dict, trial: dict) -> list[str]:
    """The arguments of run_glue.py for a trial, without what depends on the machine."""
    settings = {**plan["settings"], **plan.get("task_settings", {}).get(trial["task"], {})}
    settings |= plan["methods"].get(trial["method"], {})
    typed = [f"--{name}={value}" for name, value in settings.items()]
    return typed + [f"--task_name={trial['task']}", f"--seed={trial['seed']}", f"--rank_budget=lora:{trial['budget']}"]


def with_method(trial: dict, settings: list[str]) -> list[str]:
    """The settings with the script's method: the plan's `method` where it has one, else the label of the trial."""
    return settings if trials.value_of(settings, "method") else [f"--method={trial['method']}", *settings]


def key(row: dict) -> tuple:
    return row["task"], row["seed"], row["method"], row["budget"], tuple(row["settings"])


def finished(path: str) -> dict[tuple, dict]:
    return {key(row): row for row in trials.read_rows(path)}


def row_of(trial: dict, settings: list[str], results: dict, folder: str) -> dict:
    row = trials.row_of(trial, settings, results, folder, "run_glue")
    return {**row, "command": trials.shown_command("run_glue", with_method(trial, settings), trial["task"])}


def svd_cuts(options, plan, trial, folder, results, rows) -> None:
    """From the uniform adapter of the largest rank in `folder`: one evaluated cut for every budget of the plan."""
    from peft import AutoPeftModelForSequenceClassification, LoraConfig
    from transformers import AutoModelForSequenceClassification

    with open(os.path.join(folder, "cost.json"), encoding="utf-8") as file:
        cost = file.read()
    labels = 3 if trial["task"] == "mnli" else 2
    for budget in plan["svd_cut"]["budgets"]:
        cut = {**trial, "method": "svd_cut", "budget": budget}
        settings = arguments(plan, {**trial, "method": "uniform"})
        if key({**cut, "settings": settings}) in rows:
            continue
        wide = AutoPeftModelForSequenceClassification.from_pretrained(folder, is_trainable=True, num_labels=labels)
        pattern = ranks_by_singular_values(wide, f"lora:{budget}", min_rank=0)
        cut_to_ranks(wide, pattern)
        ranks = LearnedRanks(
            {name: ModuleRank(rank) for name, rank in pattern.items()},
            initial_rank=LearnedRanks.load(os.path.join(folder, "ranks.json")).initial_rank,
            rank_rule="svd_cut",
        )
        base = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=labels)
        alpha = plan["settings"].get("lora_alpha", 16)
        small = build_adapter(base, ranks, LoraConfig(task_type="SEQ_CLS", lora_alpha=alpha))
        copy_cut(wide, small)
        target = os.path.join(folder, f"cut-{budget}")
        small.save_pretrained(target)
        typed = [a for a in settings if not a.startswith("--rank_budget")]
        where = trials.places(options.data, options.model, trial["task"])
        scores = trials.run("run_glue", [*typed, "--do_eval", "--method=lora", *where, f"--output_dir={target}"])
        ranks.save(os.path.join(target, "ranks.json"))
        with open(os.path.join(target, "cost.json"), "w", encoding="utf-8") as file:
            file.write(cost)
        sizes = dict(zip(("adapter_params", "head_params"), count_parameters(small)))
        row = row_of(cut, settings, {**scores, **sizes}, target)
        row["command"] = (
            row["command"].replace("--method=svd_cut", "--method=uniform") + f" # then cut to lora:{budget}"
        )
        trials.append_row(options.output, row)


def work(options, plan: dict) -> int:
    """Run what is left of the plan, beside other processes of the same command; how many trials failed."""

    def left():
        rows = finished(options.output)
        keys = [(key({**trial, "settings": arguments(plan, trial)}), trial) for trial in planned(plan)]
        return [(repr(name), trial) for name, trial in keys if name not in rows]

    def run(trial: dict) -> None:
        settings, started = arguments(plan, trial), time.perf_counter()
        with trials.scratch_folder(options.scratch) as folder:
            where = [*trials.places(options.data, options.model, trial["task"]), f"--output_dir={folder}"]
            results = trials.run("run_glue", [*with_method(trial, settings), *where])
            cut = plan.get("svd_cut")
            if cut and trial["method"] == "uniform" and trial["budget"] == cut["from"]:
                svd_cuts(options, plan, trial, folder, results, finished(options.output))
            row = row_of(trial, settings, results, folder)
        trials.append_row(options.output, row)
        print(*trial.values(), row["score"], f"{time.perf_counter() - started:.0f} s", flush=True)

    return sharing.work_off(options.output, left, run, lambda trial: " ".join(map(str, trial.values())))


LABELS = {
    "autolora": "AutoLoRA",
    "uniform": "uniform",
    "random": "random pattern",
    "svd_cut": "post-hoc SVD cut",
    "autolora from scratch": "AutoLoRA, retrained from scratch",
    "uniform for as long": "uniform, with AutoLoRA's passes",
    "autolora, uniform ranks": "uniform ranks, from a search's weights",
}


def report(rows: list[dict], plan: dict) -> str:
    """Means per task, then differences paired by task and seed, with intervals."""
    budgets = sorted({row["budget"] for row in rows})
    methods = dict.fromkeys(["uniform", "random", "svd_cut", *plan["methods"]])
    methods = [name for name in methods if any(row["method"] == name for row in rows)]
    largest, body = max(budgets), []
    for budget in budgets:
        for method in methods:
            own = [r for r in rows if r["method"] == method and r["budget"] == budget]
            if not own:
                continue
            cells = [f"{LABELS.get(method, method)}, rank {budget} on average", f"{own[0]['adapter_params']:,}"]
            for task in plan["tasks"]:
                scores = [r["score"] for r in own if r["task"] == task]
                cells.append(mean_cell(scores))
            body.append(cells)
    text = "Mean score on the dev split (95 % interval over seeds, number of seeds):\n\n"
    text += markdown(["method", "adapter parameters", *(task.upper() for task in plan["tasks"])], body) + "\n\n"
    body = []
    for budget in budgets:
        for method in methods:
            for reference, size in (("uniform", budget), ("uniform", largest)):
                if (method, budget) == (reference, size) or (size == largest and budget == largest):
                    continue
                values = paired_differences(rows, method, reference, budget, size)
                if len(values) >= ENOUGH and not (method == "uniform" and size == budget):
                    low, high = interval(values)
                    body.append(
                        [
                            f"{LABELS.get(method, method)}, rank {budget} - uniform, rank {size}",
                            len(values),
                            f"{values.mean():+.2f}",
                            f"{low:+.2f} to {high:+.2f}",
                            f"{smallest_detectable(values):.2f}",
                        ]
                    )
    text += "Differences paired by task and seed, in points; the last column is what 80 % power would need:\n\n"
    return text + markdown(["difference", "pairs", "mean", "95 % interval", "smallest detectable"], body) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="YAML file with tasks, settings, methods and groups")
    trials.add_arguments(parser)
    options = parser.parse_args()
    with open(options.plan, encoding="utf-8") as file:
        plan = yaml.safe_load(file)
    if options.report:
        text = report(list(finished(options.output).values()), plan)
        with open(os.path.splitext(options.output)[0] + ".md", "w", encoding="utf-8") as file:
            file.write(text)
        print(text)
        return 0
    return int(work(options, plan) > 0)


if __name__ == "__main__":
    sys.exit(main())
