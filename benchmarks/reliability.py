"""The reliability checks that take minutes, each with its count; the fast ones run here too, as their tests.

    python benchmarks/reliability.py --output benchmarks/results/reliability.jsonl
    python benchmarks/reliability.py --checks kill damage --output …      # some of them
    python benchmarks/reliability.py --report --output …                  # the table, from the rows

| check | what is counted |
| --- | --- |
| kill | runs killed with SIGKILL at a random moment of search and retrain, and resumed to the same bits |
| write | the same, killed in the middle of writing a file of a checkpoint, or between two of its files |
| terminate | the same with SIGTERM or Ctrl-C: status 143 or 130, and the resumed run has gone on from that very step |
| damage | files of the newest checkpoint that were cut, had a byte flipped or were deleted: the one before is used |
| determinism | the same command again, and in another process: the same bits |
| processes | torchrun and accelerate launch with 1, 2, 4 processes: the same ranks, α within 1e-5 |
| parity | 20 random numbers of rows, with 2 and 4 processes: ranks, α, contributions and updates of one |
| processes-dropout | the same command with dropout, again, for 2 and 4 processes: the same bits |
| equivalence | batch 16 x 1 against 4 x 4, activation checkpointing, torch.compile: the same ranks, α within 1e-5 |
| long | 10,000 search steps: memory and step time at the end against the start |
| late | settings that fail after the parser, over a finished run: it is there to the byte |
| pairs | two runs in one folder, the second at a random moment of the first: one run's files in the end |
| changes | other settings, rows, weights, versions before a resume: refused, or the same bits |
| secrets | ways to leak a token or a password, held against all that is said and every byte that is written |
| hostile | folders from elsewhere under show, export, diff and --do_eval: in seconds, in bounds, in one line |
| no number | ways in which a loss, a weight, a prediction or a score is NaN or infinite: no result, one line |
| surroundings | locales, pipes, leftovers, servers, clocks and disks around a process: it works, or one line |
| tests | tests of non-finite numbers, bad input, offline, a broken Hub, files and secrets |

A run is `run_glue.py` on a RoBERTa of two layers with dropout 0.1, gradient accumulation and shuffling; α, ranks and
adapter are compared byte for byte (`lib/forked.py`).
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait for each other

from benchmarks.lib import trials  # noqa: E402
from benchmarks.lib.forked import Bench  # noqa: E402
from benchmarks.lib.hostile import hostile  # noqa: E402
from benchmarks.lib.interruptions import damage, kill, terminate, write  # noqa: E402
from benchmarks.lib.leaks import secrets  # noqa: E402
from benchmarks.lib.numberless import no_number  # noqa: E402
from benchmarks.lib.parity import parity  # noqa: E402
from benchmarks.lib.repetitions import determinism, equivalence, long, processes, processes_dropout  # noqa: E402
from benchmarks.lib.replaced import changes, late, pairs  # noqa: E402
from benchmarks.lib.significance import markdown  # noqa: E402
from benchmarks.lib.surroundings import surroundings  # noqa: E402

TESTS = {
    "non-finite": ["tests/training/test_finite.py"],
    "bad input": ["tests/scripts/test_bad_input.py"],
    "offline": ["tests/scripts/test_offline.py"],
    "broken Hub": ["tests/hub/test_hub_server.py"],
    "safe files": [
        "tests/scripts/test_safe_files.py",
        "tests/scripts/test_safe_code.py",
        "tests/ranks/test_safe_ranks.py",
        "tests/ranks/test_safe_adapters.py",
        "tests/runs/test_record.py",
        "tests/ground/test_clean.py",
        "tests/ground/test_files.py",
    ],
}


def tests(bench: Bench, count: int):
    for name, files in TESTS.items():
        typed = [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider", *files]
        done = subprocess.run(typed, cwd=trials.ROOT, capture_output=True, text=True)
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
        passed = counts.pop("passed", 0)
        print(f"    {name}: {passed}/{passed + sum(counts.values())}", flush=True)
        yield from [None] * passed
        yield from [f"{name}: {done.stdout[-500:]}"] * (sum(counts.values()) or (done.returncode != 0))


CHECKS = {  # and how often
    **{"kill": (kill, 50), "write": (write, 25), "terminate": (terminate, 50), "damage": (damage, 0)},
    **{"determinism": (determinism, 10), "processes": (processes, 0), "processes-dropout": (processes_dropout, 0)},
    **{"late": (late, 0), "pairs": (pairs, 100), "changes": (changes, 0)},
    **{"parity": (parity, 20), "equivalence": (equivalence, 0), "long": (long, 0)},
    **{"secrets": (secrets, 0), "hostile": (hostile, 0)},
    **{"no number": (no_number, 0), "surroundings": (surroundings, 0), "tests": (tests, 0)},
}


def report(rows: list[dict]) -> str:
    latest = {row["check"]: row for row in rows}
    found = [latest[name] for name in CHECKS if name in latest]
    body = [[row["check"], f"{row['passed']}/{row['count']}", f"{row['seconds']:.0f} s"] for row in found]
    return markdown(["check", "held", "time"], body) + "\n"


def tried(name: str, count: int, path: str, add: bool) -> int:
    """Make a check, or go on with one that was interrupted; its row is written also where this one is. How many
    promises were broken."""
    check, own = CHECKS[name][0], [row for row in trials.read_rows(path) if row["check"] == name]
    latest = own[-1] if own else {}
    start = latest.get("items", 0)  # done by one that was interrupted
    before = latest if start or add else {}
    started, outcomes, total = time.monotonic(), [], before.get("count", 0)
    print(name, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench, done = Bench(folder, skipped=start, earlier=total), False
        try:
            for fault in check(bench, count):
                outcomes.append(fault)
                if fault:
                    print("   ", fault, flush=True)
            done = True
        finally:
            faults = [*before.get("faults", []), *(fault[:500] for fault in outcomes if fault)]
            count, seconds = total + len(outcomes), before.get("seconds", 0) + time.monotonic() - started
            row = {"check": name, "passed": count - len(faults), "count": count, "seconds": round(seconds, 1)}
            command = f"python benchmarks/reliability.py --checks {name}"
            row |= {} if done else {"items": bench.done}
            trials.append_row(path, {**row, "faults": faults, "command": command, **trials.origin()})
            print(f"{name}: {count - len(faults)}/{count}", flush=True)
    return len(faults)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--count", type=int, help="how many kills, signals or repetitions; default: the check's own")
    parser.add_argument("--output", required=True, help="JSON rows, appended to; an interrupted check goes on")
    parser.add_argument("--add", action="store_true", help="to what was counted before, with other random draws")
    parser.add_argument("--report", action="store_true", help="write the table beside --output, and check nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets it be ignored in the background
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broken = 0
    for name in [] if options.report else options.checks:
        broken += tried(name, options.count or CHECKS[name][1], options.output, options.add)
    trials.write_table(options.output, report(trials.read_rows(options.output)))
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
