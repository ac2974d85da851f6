"""Several processes work off one plan: the same command, started once per core or GPU.

A process claims a trial by an exclusive file lock in `OUTPUT.claims`. The operating system frees the lock of a process
that dies, so a killed trial is simply free again. Between machines this needs a shared file system that has locks.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable

from filelock import FileLock, Timeout

from autolora_trainer.errors import Terminated

WAIT_SECONDS = 2.0


def lock(output: str, what: str) -> FileLock:
    """The lock of `what` among the processes that write to `output`; held by `with`."""
    folder = f"{output}.claims"
    os.makedirs(folder, exist_ok=True)
    return FileLock(os.path.join(folder, hashlib.sha256(what.encode()).hexdigest()[:16]))


@contextlib.contextmanager
def claim(output: str, what: str):
    """Yields whether `what` is this process's to run; False while another one runs it."""
    held = lock(output, what)
    try:
        held.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def work_off(
    output: str,
    left: Callable[[], Iterable[tuple[str, object]]],
    run: Callable[[object], None],
    shown: Callable[[object], str],
) -> int:
    """Run trials until none is left, one at a time, none twice and none that another process runs. A trial that fails
    is reported on stderr, and does not take the others with it; how many failed. After SIGTERM and Ctrl-C,
    which mean this process and not its trial, `SystemExit` with status 143 or 130.

    Args:
        output: the file of rows.
        left: reads the rows, and gives (name, trial) of what has none yet, in the order in which it should run. It is
            asked again before every trial: rows of other processes come in, and may make more trials possible.
        run: runs a trial and appends its row. A trial that leaves no row is not run again by this process.
        shown: a trial in a few words.
    """
    tried, failed = set(), 0
    while waiting := [(name, trial) for name, trial in left() if name not in tried]:
        for name, trial in waiting:
            with claim(output, name) as mine:
                if mine and name in dict(left()):  # its row may have come in since
                    tried.add(name)
                    try:
                        run(trial)
                    except Terminated as stop:
                        sys.exit(stop.status)
                    except Exception as error:
                        print(shown(trial), "FAILED:", " ".join(str(error).split()), file=sys.stderr, flush=True)
                        failed += 1
                    break
        else:
            time.sleep(WAIT_SECONDS)
    return failed


def parse_arguments(parser: argparse.ArgumentParser, tasks) -> argparse.Namespace:
    """The command line of a plan over tasks and models, beside what `parser` has of its own."""
    parser.add_argument("--data", help="folder with a folder per task")
    parser.add_argument("--models", nargs="+", default=[], help="gpt2=FOLDER minilm=FOLDER")
    parser.add_argument("--output", required=True, help="JSON rows; read, and appended to")
    parser.add_argument("--tasks", nargs="+", default=tasks, help=f"only these tasks; default: {' '.join(tasks)}")
    parser.add_argument("--report", action="store_true", help="write the tables beside --output, and run nothing")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 autocast; held-out losses stay in fp32")
    parser.add_argument("--scratch", help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    options.models = dict(model.split("=", 1) for model in options.models)
    return options
