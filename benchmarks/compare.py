"""Methods x tasks x seeds under the same conditions, from one YAML file to one table.

    python benchmarks/compare.py plan.yaml --data DATA --model FOLDER --output results/compare.jsonl
    python benchmarks/compare.py plan.yaml … --worker 0/2 & python benchmarks/compare.py plan.yaml … --worker 1/2
    python benchmarks/compare.py plan.yaml --output results/compare.jsonl --dry_run
    python benchmarks/compare.py plan.yaml --output results/compare.jsonl --report

A plan (`benchmarks/plans/*.yaml`):

    tasks: [mrpc, cola]
    seeds: 2
    settings: {max_train_samples: 2000, learning_rate: 2.0e-3, …}    # of every run
    task_settings: {cola: {max_seq_length: 48}}                      # of the runs of one task
    methods:                                                         # label: what differs from the settings
      uniform: {rank_budget: "lora:4"}                               # the label is the --method where none is given
      no constraint: {method: autolora, constraint: none}
    reference: uniform                # paired differences are to this one
    same_time: {as: autolora, method: uniform}   # one more row: this method, with the epochs that fit that one's time
    tuning: {learning_rate: [1.0e-3, 2.0e-3], val_fraction: 0.2, seed: 100}   # optional

With `tuning`, every method gets the learning rate that scores best on rows held out of the training file, one run per
rate and task, the same for all methods; the reported split takes no part. Finished trials with the same settings are
skipped, so the same command goes on after an interruption.
"""

import argparse
import os
import statistics
import sys
import time
import zlib

import yaml

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import trials  # noqa: E402
from benchmarks.significance import bootstrap_interval, markdown, smallest_detectable  # noqa: E402

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
    known = {"tasks", "seeds", "settings", "task_settings", "methods", "reference", "same_time", "tuning"}
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
    return {"seeds": 1, "settings": {}, "task_settings": {}, "reference": None, "tuning": None, **plan}


def trial_settings(plan: dict, trial: dict) -> dict:
    """The arguments of a trial, by name."""
    label = trial["method"]
    own = plan["methods"].get(label, {})
    settings = {"method": own.get("method", label), "task_name": trial["task"], **plan["settings"]}
    settings |= plan["task_settings"].get(trial["task"], {}) | own | trial.get("changes", {})
    return {**settings, "seed": trial["seed"]}


def planned(plan: dict, rows: list[dict]):
    """Every trial that can be run with the rows that are there: tuning first, and rows that need others last."""
    rates = (plan["tuning"] or {}).get("learning_rate", [])
    for task in plan["tasks"]:
        for label in plan["methods"]:
            for rate in rates:
                trial = {"task": task, "seed": plan["tuning"].get("seed", 100), "method": label, "kind": TUNING}
                yield {**trial, "changes": {"learning_rate": rate}}
    for seed in range(plan["seeds"]):
        for task in plan["tasks"]:
            for label in plan["methods"]:
                changes = tuned(plan, rows, task, label) if rates else {}
                if changes is not None:
                    yield {"task": task, "seed": seed, "method": label, "changes": changes}
    same = plan.get("same_time")
    for seed in range(plan["seeds"] if same else 0):
        for task in plan["tasks"]:
            seconds = {r["method"]: r for r in rows if (r["task"], r["seed"], r.get("kind")) == (task, seed, None)}
            if same["as"] in seconds and same["method"] in seconds:
                settings = plan["settings"] | plan["task_settings"].get(task, {}) | plan["methods"][same["method"]]
                epochs = float(settings.get("num_train_epochs", 3))
                ratio = seconds[same["as"]]["wall_seconds"] / seconds[same["method"]]["wall_seconds"]
                changes = {
                    "method": plan["methods"][same["method"]].get("method", same["method"]),
                    **plan["methods"][same["method"]],
                    **((tuned(plan, rows, task, same["method"]) or {}) if rates else {}),
                    "num_train_epochs": round(epochs * ratio, 2),
                }
                yield {"task": task, "seed": seed, "method": SAME_TIME.format(**same), "changes": changes}


def tuned(plan: dict, rows: list[dict], task: str, label: str) -> dict | None:
    """The best rate of a method on a task; None while its tuning is unfinished."""
    rates = plan["tuning"]["learning_rate"]
    own = [r for r in rows if (r["task"], r["method"], r.get("kind")) == (task, label, TUNING)]
    scores = {rate: r["score"] for r in own for rate in rates if f"--learning_rate={rate}" in r["settings"]}
    return {"learning_rate": max(scores, key=scores.get)} if len(scores) == len(rates) else None


def key(row: dict) -> tuple:
    return row["task"], row["seed"], row["method"], row.get("kind"), tuple(row["settings"])


# ---- running them


def split_for_tuning(plan: dict, options, task: str, folder: str) -> list[str]:
    """Files with the first `max_train_samples` training rows, divided at random; the arguments that name them."""
    import random

    path = next(word.split("=", 1)[1] for word in trials.places(options.data, options.model, task) if "train" in word)
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]
    limit = (plan["settings"] | plan["task_settings"].get(task, {})).get("max_train_samples")
    lines = lines[: limit or len(lines)]
    random.Random(plan["tuning"].get("seed", 100)).shuffle(lines)
    held_out = round(plan["tuning"].get("val_fraction", 0.2) * len(lines))
    os.makedirs(folder, exist_ok=True)
    typed = [f"--model_name_or_path={options.model}"] if options.model else []
    for split, part in (("train", lines[held_out:]), ("validation", lines[:held_out])):
        target = os.path.join(folder, f"{split}.jsonl")
        with open(target, "w", encoding="utf-8") as file:
            file.writelines(part)
        typed.append(f"--{split}_file={target}")
    return typed


def work(options, plan: dict) -> None:
    """Run what is left of the plan. New trials may become possible as rows come in, so the plan is read again."""
    index, count = (int(part) for part in options.worker.split("/"))
    tried = set()
    while True:
        rows = trials.read_rows(options.output)
        finished = {key(row) for row in rows} | tried
        left = [(t, trials.arguments(trial_settings(plan, t))) for t in planned(plan, rows)]
        left = [(t, s) for t, s in left if zlib.crc32(repr((t["task"], s)).encode()) % count == index]
        left = [(t, s) for t, s in left if key({**t, "settings": s}) not in finished]
        if not left:
            return
        trial, settings = left[0]
        tried.add(key({**trial, "settings": settings}))
        started = time.perf_counter()
        folder, script = trials.scratch_folder(options.scratch), trials.script_of(trial["task"])
        if trial.get("kind") == TUNING:
            where = split_for_tuning(plan, options, trial["task"], f"{folder}-rows")
        else:
            where = trials.places(options.data, options.model, trial["task"])
        head = {name: value for name, value in trial.items() if name != "changes"}
        try:
            results = trials.run(script, [*settings, *where, f"--output_dir={folder}"], options.isolate)
        except Exception as error:  # one method that fails must not take the others with it
            print(*head.values(), "FAILED:", " ".join(str(error).split()), file=sys.stderr, flush=True)
            continue
        trials.append_row(options.output, trials.row_of(head, settings, results, folder, script))
        print(
            *head.values(),
            trials.score_of(trial["task"], results),
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )


def dry_run(plan: dict, rows: list[dict]) -> str:
    """What would run, and how long it would take by the rows that are there."""
    done = {key(row) for row in rows}
    lines, total, unknown = [], 0.0, 0
    for trial in planned(plan, rows):
        settings = trials.arguments(trial_settings(plan, trial))
        if key({**trial, "settings": settings}) in done:
            continue
        seconds = expected_seconds(rows, trial)
        total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        shown = f"{seconds:.0f} s" if seconds else "unknown"
        lines.append(f"{shown:>8}  python {trials.script_of(trial['task'])}.py {' '.join(settings)}")
    left = len(lines)
    if plan["tuning"] and not all(tuned(plan, rows, t, m) for t in plan["tasks"] for m in plan["methods"]):
        lines.append("          … and the reported runs, once their rates are known")
    summary = f"{len(done)} trials are finished, {left} are left: about {total / 60:.0f} minutes of one worker"
    if unknown:
        summary += f", and {unknown} trials of which no like has run yet (run one of each task to know more)"
    return "\n".join([*lines, summary])


def expected_seconds(rows: list[dict], trial: dict) -> float | None:
    """Mean wall time of the closest kind of trial that has finished: same task and method, else same task."""
    same_task = [r for r in rows if r["task"] == trial["task"]]
    same = [r for r in same_task if r["method"] == trial["method"]] or same_task
    return statistics.mean(r["wall_seconds"] for r in same) if same else None


# ---- the table


def report(rows: list[dict], plan: dict) -> str:
    """Means with intervals, paired differences to the reference, sizes and costs.

    Costs are ratios to LoRA (`lora`, else the reference) and to AdaLoRA of the same table, as medians over the pairs
    (task, seed) that both have: seconds of machines that were differently busy do not compare otherwise.
    """
    rows = [row for row in rows if row.get("kind") is None]
    labels = list(dict.fromkeys([*plan["methods"], *(row["method"] for row in rows)]))
    by = {(r["method"], r["task"], r["seed"]): r for r in rows}
    base = "lora" if any(r["method"] == "lora" for r in rows) else plan["reference"]
    header = ["method", *(task for task in plan["tasks"]), "difference to " + str(plan["reference"]), "detectable"]
    header += ["adapter", "head", f"time / {base}", "time / adalora", f"passes / {base}", "peak MiB"]
    body = []
    for label in labels:
        own = [r for r in rows if r["method"] == label]
        if not own:
            continue
        cells = [label]
        for task in plan["tasks"]:
            scores = [r["score"] for r in own if r["task"] == task]
            cells.append(_mean(scores))
        pairs = [r["score"] - by[k]["score"] for r in own if (k := (plan["reference"], r["task"], r["seed"])) in by]
        if label == plan["reference"] or len(pairs) < 2:
            cells += ["-" if label == plan["reference"] else _signed(pairs), "-"]
        else:
            low, high = bootstrap_interval(pairs)
            cells += [f"{statistics.mean(pairs):+.2f} ({low:+.2f} to {high:+.2f}, n={len(pairs)})"]
            cells += [f"{smallest_detectable(pairs):.2f}"]
        cells += [_sizes(own, "adapter_params"), _sizes(own, "head_params")]
        cells += [_ratio(own, by, base, "wall_seconds"), _ratio(own, by, "adalora", "wall_seconds")]
        cells += [_ratio(own, by, base, "passes"), f"{statistics.median(r['peak_memory_mb'] for r in own):,.0f}"]
        body.append(cells)
    text = (
        "Score on the dev split in points: mean (95 % bootstrap interval over seeds, number of seeds). Differences "
        "are paired by task and seed and pooled; `detectable` is the difference that 80 % power would find with so "
        "many pairs. Time and passes: median ratio over the same pairs.\n\n"
    )
    return text + markdown(header, body) + "\n"


def _mean(scores: list[float]) -> str:
    if not scores:
        return "-"
    if len(scores) < 2:
        return f"{scores[0]:.2f} (n=1)"
    low, high = bootstrap_interval(scores)
    return f"{statistics.mean(scores):.2f} ({low:.2f}-{high:.2f}, n={len(scores)})"


def _signed(pairs: list[float]) -> str:
    return f"{pairs[0]:+.2f} (n=1)" if pairs else "-"


def _sizes(own: list[dict], name: str) -> str:
    sizes = sorted({r[name] for r in own})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}-{sizes[-1]:,}"


def _ratio(own: list[dict], by: dict, base: str, name: str) -> str:
    ratios = [r[name] / by[k][name] for r in own if (k := (base, r["task"], r["seed"])) in by]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="YAML file; see above")
    trials.add_arguments(parser)
    parser.add_argument("--isolate", action="store_true", help="every trial in a process of its own")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and how long it would take")
    options = parser.parse_args()
    plan = load_plan(options.plan)
    if options.dry_run:
        print(dry_run(plan, trials.read_rows(options.output)))
        return
    if not options.report:
        if plan["tuning"] and not options.data:
            parser.error("tuning holds rows out of the training file, and so needs --data")
        work(options, plan)
    text = report(trials.read_rows(options.output), plan)
    if options.worker == "0/1" or options.report:
        with open(os.path.splitext(options.output)[0] + ".md", "w", encoding="utf-8") as file:
            file.write(text)
    print(text)


if __name__ == "__main__":
    main()
