"""Processes that talk over gloo, forked from one that has imported everything: what a launcher does, without its
imports. That real launchers do the same, `test_two_processes_learn_the_ranks_of_one` knows."""

import gc
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from autolora_trainer.errors import run_guarded

PRELOADED = [
    "run_glue",
    "run_ner",
    "run_nlg",
    "autolora_trainer.commands.cli",
    "torch._dynamo",
    "tests.helpers.models",
]
SECONDS = 300


def in_processes(folder: Path, main: Callable, *given, status: int = 0, number: int = 2) -> list[tuple[str, str]]:
    """Call `main(*given)`, importable, in every process; [(standard output, standard error)] by rank."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = [(folder / f"stdout.{rank}", folder / f"stderr.{rank}") for rank in range(number)]
    running = [
        forks.Process(target=_process, args=(rank, number, port, *own, main, given), daemon=True)
        for rank, own in enumerate(said)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(SECONDS)
        process.kill()
    found = [tuple(path.read_text(encoding="utf-8") for path in own) for own in said]
    assert [process.exitcode for process in running] == [status] * number, found
    return found


def _process(rank: int, number: int, port: int, stdout: Path, stderr: Path, main: Callable, given: tuple) -> None:
    if number > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    gc.freeze()  # what was imported is no garbage, and every Trainer looks through it when it begins
    try:
        status = run_guarded(lambda: main(*given), main.__module__)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
