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
import random
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.lib import comparison, plans, sharing, trials  # noqa: E402


def split_for_tuning(options, trial: dict, settings: list[str], folder: str) -> list[str]:
    """Files with the first or the drawn training rows, divided at random; the arguments that name them."""
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
    # what a text is to be written from, where several rows may have the same (E2E)
    given = lambda line: tuple(repr(json.loads(line).get(name)) for name in ("meaning_representation", "triples"))
    inputs = {given(line) for line in lines[:held_out]} - {("None", "None")}
    kept = [line for line in lines[held_out:] if given(line) not in inputs]
    for split, part in (("train", kept), ("validation", lines[:held_out])):
        target = os.path.join(folder, f"{split}.jsonl")
        with open(target, "w", encoding="utf-8") as file:
            file.writelines(part)
        typed.append(f"--{split}_file={target}")
    return typed


def run_trial(options, trial: dict, settings: list[str]) -> dict:
    """Run one trial; its row. `options`: data, model, scratch and isolate of the command line. `settings`: the
    arguments of the script, without places."""
    script = trials.script_of(trial["task"])
    with trials.scratch_folder(options.scratch) as folder:
        if trial.get("kind") == plans.TUNING:
            where = split_for_tuning(options, trial, settings, f"{folder}-rows")
        else:
            where = trials.places(options.data, options.model, trial["task"])
        results = trials.run(script, [*settings, *where, f"--output_dir={folder}"], options.isolate)
        head = {name: value for name, value in trial.items() if name != "changes"}
        return trials.row_of(head, settings, results, folder, script)


def work(options, plan: dict) -> int:
    """Run what is left of the plan, beside other processes of the same command; how many trials failed."""

    def left():
        found = plans.unfinished(plan, trials.read_rows(options.output))
        return [(repr(plans.key({**trial, "settings": settings})), (trial, settings)) for trial, settings in found]

    def run(found) -> None:
        started, (trial, settings) = time.perf_counter(), found
        row = run_trial(options, trial, settings)
        trials.append_row(options.output, row)
        print(shown(found), row["score"], f"{time.perf_counter() - started:.0f} s", flush=True)

    names = ("task", "seed", "method", "kind")
    shown = lambda found: " ".join(str(found[0][name]) for name in names if name in found[0])
    failed = sharing.work_off(options.output, left, run, shown)
    if later := plans.without_rate(plan, trials.read_rows(options.output)):
        text = f"compare.py: {later} runs have no learning rate, as tuning failed (see above). Type the same command "
        print(text + "again to try it once more.", file=sys.stderr)
    return failed


def dry_run(plan: dict, rows: list[dict]) -> str:
    """What would run, and how long it would take by the rows that are there."""
    done = {plans.key(row) for row in rows}
    lines, total, unknown = [], 0.0, 0
    for trial, settings in plans.unfinished(plan, rows):  # as the closest kind: same task and method, else same task
        like = [row for row in rows if row["task"] == trial["task"] and row["wall_seconds"]]
        like = [row for row in like if row["method"] == trial["method"]] or like
        seconds = statistics.mean(row["wall_seconds"] for row in like) if like else None
        total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        shown = f"{seconds:.0f} s" if seconds else "unknown"
        lines.append(f"{shown:>8}  python {trials.script_of(trial['task'])}.py {' '.join(settings)}")
    left = len(lines)
    if later := plans.without_rate(plan, rows):
        lines.append(f"          … and {later} reported runs, once their rates are known")
    summary = f"{len(done)} trials are finished, {left} are left: about {total / 60:.0f} minutes of one worker"
    if unknown:
        summary += f", and {unknown} trials of which no like has run yet (run one of each task to know more)"
    return "\n".join([*lines, summary])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="YAML file; see above")
    parser.add_argument("--data", help="folder with a folder per task: train.jsonl, …; default: the Hub")
    parser.add_argument("--model", help="folder of the base model; default: the plan's")
    parser.add_argument("--output", required=True, help="JSON rows; read, and appended to")
    parser.add_argument("--scratch", help="folder for the runs; default: a temporary one")
    parser.add_argument("--report", action="store_true", help="write the table beside --output, and run nothing")
    parser.add_argument("--isolate", action="store_true", help="every trial in a process of its own")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and how long it would take")
    options = parser.parse_args()
    plan = plans.load_plan(options.plan)
    if options.dry_run:
        print(dry_run(plan, trials.read_rows(options.output)))
        return 0
    failed = 0
    if not options.report:
        if plan["tuning"] and not options.data:
            parser.error("tuning holds rows out of the training file, and so needs --data")
        failed = work(options, plan)
    trials.write_table(options.output, comparison.report(trials.read_rows(options.output), plan))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
