"""Do learned ranks beat uniform ranks of the same size, and is the size that is found enough? One plan, its tables.

    python benchmarks/allocation.py --data $DATA --models gpt2=FOLDER minilm=FOLDER \\
        --output benchmarks/results/allocation.jsonl
    python benchmarks/allocation.py --output benchmarks/results/allocation.jsonl --report

The plan is `lib/allocation_plan.py`, the tasks `lib/allocation_tasks.py`. Trials whose rows are there are not run
again, so the same command goes on after an interruption, and several processes of it share the work. `$DATA` has a
folder per task with train.jsonl, validation.jsonl and test.jsonl, and text/novels.txt.xz. On a GPU that is lent for
eight minutes, a real LLM, with decoding:

    python benchmarks/allocation.py --data $DATA --models smollm2=FOLDER --bf16 --tasks gsm8k smollm2 --seconds 400 \\
        --output benchmarks/results/allocation.jsonl
"""

import argparse
import math
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.lib import allocation_plan, allocation_report, sharing, trials  # noqa: E402


def work(options) -> int:
    """Run what the plan has left, beside other processes of the same command; how many trials failed."""
    from benchmarks.lib import allocation_run  # here: a report needs no training

    started = time.monotonic()

    def left():
        if time.monotonic() - started > options.seconds:
            return []
        rows = trials.read_rows(options.output)
        chosen = [t for t in allocation_plan.left(rows) if t["task"] in options.tasks and t["kind"] in options.kinds]
        return [(allocation_plan.key(trial), (trial, rows)) for trial in chosen]

    def run(found) -> None:
        row = allocation_run.run(found[0], options, found[1])
        trials.append_row(options.output, row)
        print(shown(found), row.get("loss"), row.get("score"), f"{row['seconds']} s", flush=True)

    shown = lambda found: " ".join(str(value) for value in found[0].values())
    return sharing.work_off(options.output, left, run, shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=allocation_plan.TRIALS, help="only trials of these kinds")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no trial after so many")
    options = sharing.parse_arguments(parser, allocation_plan.ON_CPU)
    failed = 0 if options.report else work(options)
    trials.write_table(options.output, allocation_report.report(trials.read_rows(options.output)))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
