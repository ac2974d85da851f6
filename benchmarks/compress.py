"""What is left of a trained adapter of rank 16 when it is made smaller, and at which size nothing is lost.

    python benchmarks/compress.py --data $DATA --models gpt2=FOLDER minilm=FOLDER \\
        --output benchmarks/results/compress.jsonl
    python benchmarks/compress.py --output benchmarks/results/compress.jsonl --report

Trained on four fifths of the rows of a task of `allocation.py`, cut on the rest, scored on test rows that neither has
seen: by `compress`, by the leading singular directions of every module, by singular values over all modules, by PEFT's
`convert_to_lora` with a share of the energy; then healed, and beside an adapter of the size from scratch. Trials whose
rows are there are not run again; several processes of the command share the work.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.lib import compress_report, sharing, trials  # noqa: E402

TASKS, SEEDS, FEW = ("e2e", "jnlpba"), (11, 12, 13, 14, 15), 3
SCRATCH = ("1/8", "1/4")


def plan() -> list[dict]:
    """All trials, in their order: the real LLM, once, last."""
    cuts = [{"kind": "cuts", "task": task, "seed": seed} for seed in SEEDS for task in TASKS]
    scratch = [
        {"kind": "scratch", "task": task, "seed": seed, "size": size}
        for seed in SEEDS[:FEW] for task in TASKS for size in SCRATCH
    ]  # fmt: skip
    return [*cuts, *scratch, {"kind": "cuts", "task": "smollm2", "seed": SEEDS[0]}]


def key(trial: dict) -> str:
    """What tells a trial from others, of a trial or of its row."""
    return " ".join(str(trial[name]) for name in ("kind", "task", "seed", "size") if name in trial)


def work(options) -> int:
    """Run what is left, beside other processes of the same command; how many trials failed."""
    from benchmarks.lib import compress_run  # here: a report needs no training

    def left():
        done = set(map(key, trials.read_rows(options.output)))
        return [(key(trial), trial) for trial in plan() if key(trial) not in done and trial["task"] in options.tasks]

    def run(trial) -> None:
        row = compress_run.run(trial, options)
        trials.append_row(options.output, row)
        print(key(trial), f"{row['seconds']} s", flush=True)

    return sharing.work_off(options.output, left, run, key)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = sharing.parse_arguments(parser, TASKS)
    failed = 0 if options.report else work(options)
    trials.write_table(options.output, compress_report.report(trials.read_rows(options.output)))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
