"""Methods x tasks x seeds under the same conditions, from one YAML file to one table.

    python benchmarks/compare.py plan.yaml --data DATA --model FOLDER --output results/compare.jsonl
    CUDA_VISIBLE_DEVICES=1 python benchmarks/compare.py plan.yaml …   # the same again: a worker that shares the plan
    python benchmarks/compare.py plan.yaml --output results/compare.jsonl --dry_run
    python benchmarks/compare.py plan.yaml --output results/compare.jsonl --report

A plan (`benchmarks/plans/*.yaml`):

    tasks: [mrpc, cola]
    seeds: 8
    task_seeds: {cola: 5}                                            # where a task has another number of seeds
    settings: {max_train_samples: 2000, learning_rate: 2.0e-3, …}    # of every run
    task_settings: {cola: {max_seq_length: 48}}                      # of the runs of one task
    methods:                                                         # label: what differs from the settings
      uniform: {rank_budget: "lora:4"}                               # the label is the --method where none is given
      no constraint: {method: autolora, constraint: none}
    reference: uniform                # paired differences are to this one
    same_time: {as: autolora, method: uniform}   # one more row: this method, with the epochs that fit that one's time
    tuning:                                                          # optional
      {learning_rate: [1.0e-3, 2.0e-3], method_learning_rate: {full: [1.0e-4]}, val_fraction: 0.2, seed: 100,
       settings: {max_train_samples: 2000}}                        # of tuning runs alone: fewer rows, fewer epochs

With `tuning`, every method gets the learning rate that scores best on rows held out of the training file (of equal
scores, that of the lower loss there), one run per rate and task; the rates to choose from are the same for all methods
but those that `method_learning_rate` names (full fine-tuning diverges at the rates of LoRA). The reported split takes
no part. A task is tuned before its first seed, and trials go seed by seed, so early rows already compare. Finished
trials with the same settings are skipped, so the same command goes on after an interruption; trials that another
process of the same command runs are left to it.
"""

import argparse
import json
import os
import statistics
import sys
import time

import yaml

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import sharing, trials  # noqa: E402
from benchmarks.significance import difference_cells, markdown, mean_cell  # noqa: E402

TUNING = "tuning"
SAME_TIME = "{method}, given the time of {as}"


# ---- which trials


def load_plan(path: str) -> dict:
    """Read and check a plan.

    Raises:
        SystemExit: with one line, for a plan that cannot be run.
    """
    try:
        with open(path, encoding="utf-8") as file:
            plan = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        sys.exit(f"compare.py: error: {path} cannot be read: {' '.join(str(error).split())}")
    known = {
        "tasks",
        "seeds",
        "task_seeds",
        "settings",
        "task_settings",
        "methods",
        "reference",
        "same_time",
        "tuning",
    }
    problem = None
    if not isinstance(plan, dict) or not {"tasks", "methods"} <= plan.keys():
        problem = "needs tasks and methods"
    elif plan.keys() - known:
        problem = f"has {sorted(plan.keys() - known)[0]!r}; known are {', '.join(sorted(known))}"
    elif plan.get("reference") is not None and plan["reference"] not in plan["methods"]:
        problem = f"names the reference {plan['reference']!r}, which is none of its methods"
    if problem:
        sys.exit(f"compare.py: error: {path} {problem}. See the head of benchmarks/compare.py.")
    plan["methods"] = {label: settings or {} for label, settings in plan["methods"].items()}
    same = plan.get("same_time")
    if same and not {same.get("as"), same.get("method")} <= plan["methods"].keys():
        sys.exit(f"compare.py: error: {path}: same_time needs `as` and `method`, both among the methods.")
    for name, given, among in (
        ("task_seeds", plan.get("task_seeds") or {}, plan["tasks"]),
        ("task_settings", plan.get("task_settings") or {}, plan["tasks"]),
        ("method_learning_rate", (plan.get("tuning") or {}).get("method_learning_rate", {}), plan["methods"]),
    ):
        if given.keys() - set(among):
            unknown = sorted(given.keys() - set(among))[0]
            sys.exit(f"compare.py: error: {path}: {name} names {unknown!r}, which is none of {', '.join(among)}.")
    defaults = {"seeds": 1, "task_seeds": {}, "settings": {}, "task_settings": {}, "reference": None, "tuning": None}
    return {**defaults, **plan}


def seeds(plan: dict, task: str) -> int:
    """How many seeds a task has; they are 0, 1, …"""
    return plan["task_seeds"].get(task, plan["seeds"])


def trial_settings(plan: dict, trial: dict) -> dict:
    """The arguments of a trial, by name."""
    label = trial["method"]
    own = plan["methods"].get(label, {})
    settings = {"method": own.get("method", label), "task_name": trial["task"], **plan["settings"]}
    settings |= plan["task_settings"].get(trial["task"], {}) | own | trial.get("changes", {})
    return {**settings, "seed": trial["seed"]}


def planned(plan: dict, rows: list[dict]):
    """Every trial that can be run with the rows that are there: seed by seed, a task's tuning before its first seed,
    and rows that need others last."""
    for seed in range(max(seeds(plan, task) for task in plan["tasks"])):
        for task in plan["tasks"]:
            if seed == 0 and plan["tuning"]:
                yield from tuning_trials(plan, task)
            for label in plan["methods"] if seed < seeds(plan, task) else ():
                changes = tuned(plan, rows, task, label) if plan["tuning"] else {}
                if changes is not None:
                    yield {"task": task, "seed": seed, "method": label, "changes": changes}
    same = plan.get("same_time")
    for task in plan["tasks"] if same else ():
        for seed in range(seeds(plan, task)):
            seconds = {r["method"]: r for r in rows if (r["task"], r["seed"], r.get("kind")) == (task, seed, None)}
            if same["as"] in seconds and same["method"] in seconds:
                settings = plan["settings"] | plan["task_settings"].get(task, {}) | plan["methods"][same["method"]]
                epochs = float(settings.get("num_train_epochs", 3))
                ratio = seconds[same["as"]]["wall_seconds"] / seconds[same["method"]]["wall_seconds"]
                changes = {
                    "method": plan["methods"][same["method"]].get("method", same["method"]),
                    **plan["methods"][same["method"]],
                    **((tuned(plan, rows, task, same["method"]) or {}) if plan["tuning"] else {}),
                    "num_train_epochs": round(epochs * ratio, 2),
                }
                yield {"task": task, "seed": seed, "method": SAME_TIME.format(**same), "changes": changes}


def rates(plan: dict, label: str) -> list:
    """The learning rates that a method may choose from."""
    return plan["tuning"].get("method_learning_rate", {}).get(label, plan["tuning"]["learning_rate"])


def tuning_trials(plan: dict, task: str):
    """One run per method and rate on rows held out of the task's training file."""
    tuning = plan["tuning"]
    shared = {"task": task, "seed": tuning.get("seed", 100), "kind": TUNING}
    shared["val_fraction"] = tuning.get("val_fraction", 0.2)
    for label in plan["methods"]:
        for rate in rates(plan, label):
            changes = {**tuning.get("settings", {}), "learning_rate": rate}
            yield {**shared, "method": label, "changes": changes}


def tuned(plan: dict, rows: list[dict], task: str, label: str) -> dict | None:
    """The rate of a method's best score on a task, of equal scores that of the lowest loss; None while its tuning is
    unfinished."""
    own = [r for r in rows if (r["task"], r["method"], r.get("kind")) == (task, label, TUNING)]
    wanted = rates(plan, label)
    scores = {
        rate: (r["score"], -(r.get("eval_loss") or 0))
        for r in own
        for rate in wanted
        if f"--learning_rate={rate}" in r["settings"]
    }
    return {"learning_rate": max(scores, key=scores.get)} if len(scores) == len(wanted) else None


def without_rate(plan: dict, rows: list[dict]) -> int:
    """How many reported runs have no learning rate yet."""
    pairs = [(task, label) for task in plan["tasks"] for label in plan["methods"]] if plan["tuning"] else []
    return sum(seeds(plan, task) for task, label in pairs if tuned(plan, rows, task, label) is None)


def key(row: dict) -> tuple:
    return row["task"], row["seed"], row["method"], row.get("kind"), tuple(row["settings"])


# ---- running them


def split_for_tuning(options, trial: dict, settings: list[str], folder: str) -> list[str]:
    """Files with the first or the drawn training rows, divided at random; the arguments that name them."""
    import random

    where = trials.places(options.data, options.model, trial["task"])
    with open(trials.value_of(where, "train_file"), encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]
    if (drawn_by := trials.value_of(settings, "sample_seed")) is not None:
        random.Random(int(drawn_by)).shuffle(lines)
    lines = lines[: int(trials.value_of(settings, "max_train_samples") or len(lines))]
    random.Random(trial["seed"]).shuffle(lines)
    held_out = round(trial["val_fraction"] * len(lines))
    os.makedirs(folder, exist_ok=True)
    typed = [f"--model_name_or_path={options.model}"] if options.model else []
    inputs = {given_input(line) for line in lines[:held_out]} - {None}
    kept = [line for line in lines[held_out:] if given_input(line) not in inputs]
    for split, part in (("train", kept), ("validation", lines[:held_out])):
        target = os.path.join(folder, f"{split}.jsonl")
        with open(target, "w", encoding="utf-8") as file:
            file.writelines(part)
        typed.append(f"--{split}_file={target}")
    return typed


def given_input(line: str) -> str | None:
    """What a text is to be written from, where several rows may have the same (E2E); None for other rows."""
    row = json.loads(line)
    return next((repr(row[name]) for name in ("meaning_representation", "triples") if name in row), None)


def run_trial(options, trial: dict, settings: list[str]) -> dict:
    """Run one trial; its row.

    Args:
        options: `data`, `model`, `scratch` and `isolate` of the command line.
        trial: task, seed, method; `kind` and `val_fraction` of tuning.
        settings: the arguments of the script, without places.
    """
    script = trials.script_of(trial["task"])
    with trials.scratch_folder(options.scratch) as folder:
        if trial.get("kind") == TUNING:
            where = split_for_tuning(options, trial, settings, f"{folder}-rows")
        else:
            where = trials.places(options.data, options.model, trial["task"])
        results = trials.run(script, [*settings, *where, f"--output_dir={folder}"], options.isolate)
        head = {name: value for name, value in trial.items() if name != "changes"}
        return trials.row_of(head, settings, results, folder, script)


def unfinished(plan: dict, rows: list[dict]) -> list[tuple[dict, list[str]]]:
    """Trials that can be run with the rows that are there, and have no row: (trial, arguments of its script)."""
    finished = {key(row) for row in rows}
    typed = [(trial, trials.arguments(trial_settings(plan, trial))) for trial in planned(plan, rows)]
    return [(trial, settings) for trial, settings in typed if key({**trial, "settings": settings}) not in finished]


def work(options, plan: dict) -> int:
    """Run what is left of the plan, beside other processes of the same command; how many trials failed."""

    def left():
        found = unfinished(plan, trials.read_rows(options.output))
        return [(repr(key({**trial, "settings": settings})), (trial, settings)) for trial, settings in found]

    def run(found) -> None:
        started = time.perf_counter()
        row = run_trial(options, *found)
        trials.append_row(options.output, row)
        print(shown(found), row["score"], f"{time.perf_counter() - started:.0f} s", flush=True)

    def shown(found) -> str:
        return " ".join(str(found[0][name]) for name in ("task", "seed", "method", "kind") if name in found[0])

    failed = sharing.work_off(options.output, left, run, shown)
    if later := without_rate(plan, trials.read_rows(options.output)):
        print(
            f"compare.py: {later} runs have no learning rate, as tuning failed (see above). Type the same command "
            "again to try it once more.",
            file=sys.stderr,
        )
    return failed


def dry_run(plan: dict, rows: list[dict]) -> str:
    """What would run, and how long it would take by the rows that are there."""
    done = {key(row) for row in rows}
    lines, total, unknown = [], 0.0, 0
    for trial, settings in unfinished(plan, rows):
        seconds = expected_seconds(rows, trial)
        total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        shown = f"{seconds:.0f} s" if seconds else "unknown"
        lines.append(f"{shown:>8}  python {trials.script_of(trial['task'])}.py {' '.join(settings)}")
    left = len(lines)
    if later := without_rate(plan, rows):
        lines.append(f"          … and {later} reported runs, once their rates are known")
    summary = f"{len(done)} trials are finished, {left} are left: about {total / 60:.0f} minutes of one worker"
    if unknown:
        summary += f", and {unknown} trials of which no like has run yet (run one of each task to know more)"
    return "\n".join([*lines, summary])


def expected_seconds(rows: list[dict], trial: dict) -> float | None:
    """Mean wall time of the closest kind of trial that has finished: same task and method, else same task."""
    same_task = [r for r in rows if r["task"] == trial["task"] and r["wall_seconds"]]
    same = [r for r in same_task if r["method"] == trial["method"]] or same_task
    return statistics.mean(r["wall_seconds"] for r in same) if same else None


# ---- the table


def report(rows: list[dict], plan: dict) -> str:
    """The table with what its columns mean."""
    text = (
        "Score on the dev split in points: mean (95 % interval over seeds, number of seeds). Differences are paired "
        "by task and seed and pooled; `detectable` is the true difference that a test of so many pairs would find "
        f"four times in five. Passes: median ratio over the pairs. {timed_on(trials.reported(rows))}\n\n"
    )
    return text + markdown(*table(rows, plan)) + "\n"


def timed_together(rows: list[dict]) -> set[tuple]:
    """The (task, seed) at which every method has seconds of one machine; methods without any are left aside. Seconds
    of differently busy machines do not compare, nor do medians over different tasks."""
    places: dict[str, set] = {}
    for row in rows:
        if row["wall_seconds"]:  # those that were measured wrongly are null
            places.setdefault(row["method"], set()).add((row["task"], row["seed"], row.get("machine")))
    return {(task, seed) for task, seed, _ in set.intersection(*places.values())} if places else set()


def timed_on(rows: list[dict]) -> str:
    """What the columns of time stand on."""
    places = timed_together(rows)
    if not places:
        return "No run has seconds of every method on one machine."
    tasks = ", ".join(sorted({task for task, _ in places}))
    return f"Time: median ratio over the {len(places)} runs of {tasks} of which every method has seconds."


def table(rows: list[dict], plan: dict) -> tuple[list[str], list[list[str]]]:
    """Means with intervals, paired differences to the reference, sizes and costs; dashes where no row is.

    Costs are ratios to LoRA (`lora`, else the reference) and to AdaLoRA of the same table, as medians: of passes over
    the pairs (task, seed) that both have, of seconds over those that all have (`timed_together`).

    Returns:
        (header, a line per method of the plan and of the rows)
    """
    rows = trials.reported(rows)  # a plan may have given a trial other settings since, such as another rate
    by = {(r["method"], r["task"], r["seed"]): r for r in rows}
    together = timed_together(rows)
    labels = list(dict.fromkeys([*plan["methods"], *(row["method"] for row in rows)]))
    base = "lora" if any(r["method"] == "lora" for r in rows) else plan["reference"]
    header = ["method", *(task for task in plan["tasks"]), "difference to " + str(plan["reference"]), "detectable"]
    header += ["adapter", "head", f"time / {base}", "time / adalora", f"passes / {base}", "peak MiB"]
    body = []
    for label in labels:
        own = sorted((r for r in rows if r["method"] == label), key=lambda r: (r["task"], r["seed"]))
        if not own:
            body.append([label] + ["-"] * (len(header) - 1))
            continue
        cells = [label]
        for task in plan["tasks"]:
            cells.append(mean_cell([r["score"] for r in own if r["task"] == task]))
        pairs = [r["score"] - by[k]["score"] for r in own if (k := (plan["reference"], r["task"], r["seed"])) in by]
        cells += ["-", "-"] if label == plan["reference"] else difference_cells(pairs)
        cells += [sizes_cell(own, "adapter_params"), sizes_cell(own, "head_params")]
        timed = [r for r in own if (r["task"], r["seed"]) in together]
        cells += [_ratio(timed, by, base, "wall_seconds"), _ratio(timed, by, "adalora", "wall_seconds")]
        cells += [_ratio(own, by, base, "passes"), memory_cell(own)]
        body.append(cells)
    return header, body


def sizes_cell(own: list[dict], name: str) -> str:
    sizes = sorted({r[name] for r in own})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}-{sizes[-1]:,}"


def memory_cell(own: list[dict]) -> str:
    """Median peaks; apart for CPUs, where it is the process, and GPUs, where it is what the allocator gave out."""
    found = {}
    for row in own:
        found.setdefault("CPU" if row.get("machine", "CPU").startswith("CPU") else "GPU", []).append(row)
    peaks = {kind: f"{statistics.median(r['peak_memory_mb'] for r in rows):,.0f}" for kind, rows in found.items()}
    return ", ".join(f"{peak} {kind}" if len(peaks) > 1 else peak for kind, peak in sorted(peaks.items()))


def _ratio(own: list[dict], by: dict, base: str, name: str) -> str:
    pairs = [(r[name], by[k][name]) for r in own if (k := (base, r["task"], r["seed"])) in by]
    ratios = [value / unit for value, unit in pairs if value and unit]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="YAML file; see above")
    trials.add_arguments(parser)
    parser.add_argument("--isolate", action="store_true", help="every trial in a process of its own")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and how long it would take")
    options = parser.parse_args()
    plan = load_plan(options.plan)
    if options.dry_run:
        print(dry_run(plan, trials.read_rows(options.output)))
        return 0
    failed = 0
    if not options.report:
        if plan["tuning"] and not options.data:
            parser.error("tuning holds rows out of the training file, and so needs --data")
        failed = work(options, plan)
    text = report(trials.read_rows(options.output), plan)
    with open(os.path.splitext(options.output)[0] + ".md", "w", encoding="utf-8") as file:
        file.write(text)
    print(text)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
