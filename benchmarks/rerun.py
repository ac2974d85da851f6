"""Run a committed row again, and compare the score.

    python benchmarks/rerun.py benchmarks/results/core.jsonl 17 --data DATA --model FOLDER

The number is the row's line in the file, from 1. Exit status 0 if the score is met within the tolerance, else 1.

Tolerance, on the machine of the row with its versions of the libraries: 0.05 points, as the same bits are expected.
Elsewhere other rounding is as good as another seed: 2.8 times the standard deviation between the seeds of that task
and method in the file, which 95 % of the differences of two runs keep (ISO 5725's repeatability limit, 1.96 √2 s), and
at least 0.05 points. With fewer than three seeds it is unknown, and `--tolerance POINTS` has to be given.
Rows without a score of their own (planted ranks, sizes, reliability) are rerun whole, by the commands of
RESULTS.md.
"""

import argparse
import math
import os
import shlex
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.compare import run_trial  # noqa: E402
from benchmarks.lib import trials  # noqa: E402

EXACT = 0.05  # points
REPEATABILITY = 1.96 * math.sqrt(2)  # times the standard deviation: 95 % of the differences of two runs
PLACES = ("--model_name_or_path", "--train_file", "--validation_file", "--test_file", "--output_dir")
HEAD = ("task", "seed", "method", "kind", "val_fraction")


def tolerance(row: dict, rows: list[dict], machine: str, versions: dict) -> tuple[float | None, str]:
    """Points by which a row's score may differ on a machine, and why; None if the rows of its file cannot tell."""
    if row.get("machine") == machine and versions.items() <= row["versions"].items():
        return EXACT, "the same machine and versions"
    like = list({r.get("seed"): r["score"] for r in rows if _kind(r) == _kind(row)}.values())  # the latest of a seed
    if len(like) < 3:
        return None, f"another machine or other versions, and {len(like)} rows of this kind"
    limit = REPEATABILITY * statistics.stdev(like)
    return max(EXACT, limit), f"another machine or other versions: 95 % of the differences between {len(like)} seeds"


def has_score(row: dict) -> bool:
    """Whether a row is one run of a script, with a score of its own."""
    return row.get("score") is not None and "method" in row and "settings" in row


def in_points(row: dict) -> dict:
    """A row whose score is in points; those of cost.py have fractions, and name their metric."""
    return {**row, "score": 100 * row["score"]} if "metric" in row and row["score"] is not None else row


def _kind(row: dict) -> tuple:
    """What rows that differ in their seed alone share."""
    rate = trials.value_of(row["settings"], "learning_rate") if isinstance(row["settings"], list) else None
    return row["task"], row["method"], row.get("kind"), row.get("train_rows"), rate


def rerun(row: dict, options) -> float:
    """The score of a row's run, now; `ValueError` for a row that has no score of its own."""
    if not has_score(row):
        raise ValueError("this row is rerun with its whole table. RESULTS.md has the command.")
    if row.get("defaults") != trials.DEFAULTS:
        raise ValueError(
            "this row is of the defaults before contributions (rule adaptive, query and value). Type git checkout "
            "cd59859, and rerun it there."
        )
    if isinstance(row["settings"], list):
        trial = {name: row[name] for name in HEAD if name in row}
        return run_trial(options, trial, row["settings"])["score"]
    words = shlex.split(row["command"])  # of cost.py: it is whole
    for place in PLACES:
        if place in words:
            del words[words.index(place) : words.index(place) + 2]
    where = trials.places(options.data, options.model, row["task"])
    with trials.scratch_folder(options.scratch) as folder:
        typed = [*words[2:], *where, f"--output_dir={folder}"]
        results = trials.run(words[1].removesuffix(".py"), typed, options.isolate)
    return 100 * results[f"eval_{row['metric']}"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help="a file of rows")
    parser.add_argument("line", type=int, help="which of them, from 1")
    parser.add_argument("--data", help="folder with a folder per task; default: the Hub")
    parser.add_argument("--model", help="folder of the base model; default: the row's")
    parser.add_argument("--scratch", help="folder for the run; default: a temporary one")
    parser.add_argument("--isolate", action="store_true", help="in a process of its own")
    parser.add_argument("--tolerance", type=float, help="points, instead of the rule's")
    options = parser.parse_args(argv)
    rows = [in_points(row) for row in trials.read_rows(options.rows)]
    if not 1 <= options.line <= len(rows):
        parser.error(f"{options.rows} has {len(rows)} rows, got {options.line}. Give a line from 1 to {len(rows)}.")
    row = rows[options.line - 1]
    allowed, why = options.tolerance, "--tolerance"
    if allowed is None and has_score(row):
        allowed, why = tolerance(row, rows, trials.machine(), trials.versions())
        if allowed is None:
            parser.error(f"{why}: the tolerance is unknown. Give it with --tolerance POINTS.")
    try:
        score = rerun(row, options)
    except ValueError as error:
        parser.error(f"{options.rows}, line {options.line}: {' '.join(str(error).split())}")
    gap = abs(score - row["score"])
    verdict = "met" if gap <= allowed else "NOT met"
    print(f"{row['score']:.3f} in the row, {score:.3f} now: {verdict} within {allowed:.3f} points ({why})")
    return int(gap > allowed)


if __name__ == "__main__":
    sys.exit(main())
