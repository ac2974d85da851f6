"""Runs that are killed, terminated or find their checkpoints damaged, and go on; for reliability.py.

A check takes a `Bench` and how often to make it, and yields None where the promise was kept, else what was wrong.
"""

import builtins
import os
import random
import shutil
import signal
import time

import safetensors.torch
import torch

from autolora_trainer.search import state
from autolora_trainer.training.callbacks import TerminationCallback
from autolora_trainer.training.checkpoints import MANIFEST, newest_checkpoint
from autolora_trainer.training.finite import FiniteStepMixin
from benchmarks.lib.forked import Bench


def first_seal(bench: Bench, deadline: float = 120) -> None:
    """Wait until a run has a whole checkpoint."""
    end = time.monotonic() + deadline
    while not bench.path("killed", "search", "checkpoint-1", MANIFEST).exists():
        if time.monotonic() > end:
            raise RuntimeError(f"no checkpoint: {bench.log()}")
        time.sleep(0.002)


def kill(bench: Bench, count: int):
    """Moments drawn uniformly between the first whole checkpoint of the search and the end of the retrain."""
    bits, argv, generator = bench.reference(), bench.argv("killed"), random.Random(bench.earlier)
    process = bench.start([*argv, "--overwrite"])
    first_seal(bench)
    started = time.monotonic()
    while not bench.path("killed", "train_results.json").exists():
        time.sleep(0.002)
    length = time.monotonic() - started
    os.waitpid(process, 0)
    count -= bench.skipped
    while count > 0:
        shutil.rmtree(bench.path("killed"))
        process, moment = bench.start(argv), generator.uniform(0, length)
        first_seal(bench)
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if bench.path("killed", "all_results.json").exists():
            continue  # this run was faster than the one that was timed: draw another moment
        count, bench.done = count - 1, bench.done + 1
        yield bench.goes_on(argv, bits, f"killed after {moment:.2f} s of {length:.2f} s")


def _watch_files(log, last: int | None) -> None:
    """Note the events that change files of checkpoints in `log`; die at number `last`, where there is one."""
    seen, original_open, original_replace = 0, builtins.open, os.replace

    def die_or_note(event, path):
        nonlocal seen
        if "checkpoint-" not in str(path):
            return
        seen += 1
        if last is None:
            with original_open(log, "a") as file:
                file.write(f"{event} {path}\n")
        elif seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def half(function, position):
        def write_half(*args, **kwargs):
            target = kwargs.get("filename", args[position] if len(args) > position else None)
            before = seen
            die_or_note("before", target)
            result = function(*args, **kwargs)
            if seen != before and last == seen + 1 and os.path.isfile(target):  # as a writer cut off leaves it
                os.truncate(target, os.path.getsize(target) // 2)
            die_or_note("half", target)
            return result

        return write_half

    def counted_open(file, mode="r", *args, **kwargs):
        if isinstance(mode, str) and set(mode) & set("wax+"):
            die_or_note("open", file)
        return original_open(file, mode, *args, **kwargs)

    def counted_replace(source, target, *args, **kwargs):
        die_or_note("rename", target)
        return original_replace(source, target, *args, **kwargs)

    torch.save = half(torch.save, 1)
    safetensors.torch.save_file = state.save_file = half(safetensors.torch.save_file, 1)
    builtins.open, os.replace = counted_open, counted_replace


def write(bench: Bench, count: int):
    """Killed inside the writing of a checkpoint: before, in the middle of, or after its n-th call to open a file for
    writing, to `torch.save` or to rename one."""
    bits, argv, generator = bench.reference(), bench.argv("killed"), random.Random(bench.earlier)
    if bench.run([*argv, "--overwrite"], lambda: _watch_files(bench.path("events"), None)):
        raise RuntimeError(bench.log())
    events = bench.path("events").read_text(encoding="utf-8").splitlines()
    late = [n for n, event in enumerate(events, 1) if "search/checkpoint-1/" not in event]
    for number in bench.left(generator.sample(late, count)):
        shutil.rmtree(bench.path("killed"))
        status = bench.run(argv, lambda: _watch_files(bench.path("events"), number))
        what = events[number - 1].replace(str(bench.path("killed")), "")
        killed = status == -signal.SIGKILL
        yield bench.goes_on(argv, bits, f"killed at {what}") if killed else f"{what}: not killed, but {status}"


def _signal_at(step: int, phase: str, number: int, state, args) -> None:
    """Send this process a signal at a step of a phase."""
    if state.global_step == step and args.output_dir.endswith("search") == (phase == "search"):
        os.kill(os.getpid(), number)


def terminate(bench: Bench, count: int):
    """So many SIGTERMs and as many Ctrl-Cs, each after a random step of either phase, checkpoints far apart."""
    settings = {"save_steps": 1000}
    bits, argv, generator = bench.reference(**settings), bench.argv("killed", **settings), random.Random(bench.earlier)
    for number, ends in bench.left([(signal.SIGTERM, 143), (signal.SIGINT, 130)] * count):
        shutil.rmtree(bench.path("killed"), ignore_errors=True)
        phase, step = generator.choice(["search", "retrain"]), generator.randrange(1, 12)

        def warn():
            original = TerminationCallback.on_step_end

            def on_step_end(self, args, state, control, **kwargs):
                _signal_at(step, phase, number, state, args)
                return original(self, args, state, control, **kwargs)

            TerminationCallback.on_step_end = on_step_end

        status = bench.run(argv, warn)
        if status != ends:
            yield f"{phase} {step}: status {status}, not {ends}"
            continue
        if fault := bench.goes_on(argv, bits, f"{signal.Signals(number).name} at {phase} {step}"):
            yield fault
            continue
        origin = bench.read("killed", "all_results.json")["resumed_from"]
        right = origin == {"phase": phase, "step": step}
        yield None if right else f"went on from {origin}, not from {phase} {step}"


def _flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


DAMAGES = {"cut": lambda path: os.truncate(path, os.path.getsize(path) // 2), "flipped": _flip, "missing": os.remove}


def damage(bench: Bench, count: int):
    """Every file of the newest checkpoint of the search and of the retrain, ruined in three ways."""
    bits = bench.reference()
    for phase, folder in (("search", ("search",)), ("retrain", ())):

        def stop():
            original = FiniteStepMixin._get_grad_norm

            def dying(self, *args, **kwargs):
                _signal_at(7, phase, signal.SIGKILL, self.state, self.args)
                return original(self, *args, **kwargs)

            FiniteStepMixin._get_grad_norm = dying

        bench.run(bench.argv("stopped", overwrite=True), stop)
        newest = os.path.basename(newest_checkpoint(str(bench.path("stopped", *folder)))[0])
        ruined = bench.path("killed", *folder, newest)
        for name in sorted(os.listdir(bench.path("stopped", *folder, newest))):
            for what, ruin in DAMAGES.items():
                shutil.rmtree(bench.path("killed"), ignore_errors=True)
                shutil.copytree(bench.path("stopped"), bench.path("killed"))
                ruin(ruined / name)
                label = f"{phase}, {name} {what}"
                fault = bench.goes_on(bench.argv("killed"), bits, label)
                if fault is None:
                    named = f"passed over: {ruined}" in bench.log()
                    step = bench.read("killed", "all_results.json")["resumed_from"]["step"]
                    fault = None if named and step == 6 else f"{label}: resumed from step {step}, named: {named}"
                yield fault
        shutil.rmtree(bench.path("stopped"))
