"""The same search again: repeated, on several processes, in other batches, and for long; for reliability.py.

A check takes a `Bench` and how often to make it, and yields None where the promise was kept, else what was wrong.
"""

import json
import os
import subprocess
import tempfile
import time

import torch
from transformers import TrainerCallback

from autolora_trainer.methods import search_phase as method
from benchmarks.lib import trials
from benchmarks.lib.forked import Bench

PLAIN = {  # no dropout; an epsilon above the rounding of sums in another order
    **{"lora_dropout": 0, "optim": "adamw_torch", "adam_epsilon": 1e-4, "save_strategy": "no"},
    **{"search_max_steps": 16, "max_steps": 2},
}


def determinism(bench: Bench, count: int):
    bits = bench.reference()
    for _ in range(count):
        yield None if bench.reference() == bits else "other bits"


def _same_search(bench: Bench, name: str, modules: dict) -> str | None:
    own = bench.read(name, "ranks.json")["modules"]
    pairs = [(modules[key], own[key]) for key in modules]
    gap = max(abs(a - b) for one, two in pairs for a, b in zip(one["selection"], two["selection"], strict=True))
    ranks = all(one["rank"] == two["rank"] for one, two in pairs)
    return None if ranks and gap <= 1e-5 else f"{name}: ranks {'equal' if ranks else 'differ'}, α differs by {gap:.1e}"


def _launch(launcher: str, count: int, argv: list[str]) -> str | None:
    """Run with several processes; what went wrong."""
    from tests.helpers.commands import launch_command

    command = [*launch_command(launcher, count), os.path.join(trials.ROOT, "run_glue.py"), *argv]
    environment = {**os.environ, "PYTHONPATH": trials.ROOT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stderr[-2000:] if done.returncode else None


def processes(bench: Bench, count: int):
    settings = {**PLAIN, "gradient_accumulation_steps": 1}
    bench = Bench(tempfile.mkdtemp(dir=bench.folder), dropout=0.0)
    bench.run(bench.argv("one", per_device_train_batch_size=16, **settings))
    modules = bench.read("one", "ranks.json")["modules"]
    for launcher in ("torchrun", "accelerate"):
        for number in (1, 2, 4):
            name = f"{launcher}-{number}"
            argv = bench.argv(name, per_device_train_batch_size=16 // number, **settings)
            fault = _launch(launcher, number, argv)
            yield f"{name}: {fault}" if fault else _same_search(bench, name, modules)


def processes_dropout(bench: Bench, count: int):
    for number in (2, 4):
        names = [f"dropout-{number}-{again}" for again in ("first", "second")]
        for name in names:
            if fault := _launch("torchrun", number, bench.argv(name, save_strategy="no", max_steps=4)):
                raise RuntimeError(fault)
        first, second = map(bench.bits, names)
        yield None if first == second else f"{number} processes: other bits"


def equivalence(bench: Bench, count: int):
    bench = Bench(tempfile.mkdtemp(dir=bench.folder), dropout=0.0)
    whole = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, **PLAIN}
    bench.run(bench.argv("whole", **whole))
    modules = bench.read("whole", "ranks.json")["modules"]
    variants = {
        "4 x 4": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        "8 x 2": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        "activation checkpointing": {"activation_checkpointing": True},
        "torch.compile": {"torch_compile": True},
    }
    for name, changes in variants.items():
        status = bench.run(bench.argv(name, **{**whole, **changes}))
        yield f"{name}: {status}: {bench.log()[-500:]}" if status else _same_search(bench, name, modules)


class Watch(TrainerCallback):
    """Memory after a tenth of the steps and at the end, and the median step in the first tenth and in the last."""

    def __init__(self, steps: int, path):
        self.steps, self.path, self.times, self.memory = steps, path, [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())
        if state.global_step in (self.steps // 10, self.steps):
            with open("/proc/self/status") as file:
                self.memory.append(next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024)

    def on_train_end(self, args, state, control, **kwargs):
        gaps, tenth = torch.tensor(self.times).double().diff(), self.steps // 10
        seconds = [part.median().item() for part in (gaps[100:tenth], gaps[-tenth:])]
        self.path.write_text(json.dumps({"memory": self.memory, "seconds": seconds}))


def long(bench: Bench, count: int):
    """10,000 steps: the resident set may grow by 1 % from the first tenth to the end, the median step by 10 %."""
    steps = 10_000

    def watch():
        build, own = method.AutoLoraTrainer, Watch(steps, bench.path("long.json"))
        method.AutoLoraTrainer = lambda *args, callbacks, **given: build(*args, callbacks=[*callbacks, own], **given)

    changes = {"search_max_steps": steps, "max_steps": 1, "save_strategy": "no", "gradient_accumulation_steps": 1}
    if bench.run(bench.argv("long", **changes), watch):
        yield bench.log()[-500:]
        return
    found = bench.read("long.json")
    (early, late), (first, last) = found["memory"], found["seconds"]
    text = f"{early:.0f} MiB at step 1,000, {late:.0f} MiB at step 10,000; "
    text += f"median step {1e3 * first:.2f} ms in the first tenth, {1e3 * last:.2f} ms in the last"
    print("   ", text, flush=True)
    yield None if late <= 1.01 * early else f"memory: {text}"
    yield None if last <= 1.1 * first else f"time: {text}"
