"""The reliability checks that take minutes, each with its count; the fast ones run here too, as their tests.

    python benchmarks/reliability.py --output benchmarks/results/reliability.jsonl
    python benchmarks/reliability.py --checks kill damage --output …      # some of them
    python benchmarks/reliability.py --report --output …                  # the table, from the rows

| check | what is counted |
| --- | --- |
| kill | runs killed with SIGKILL at a random moment of search and retrain, and resumed to the same bits |
| write | the same, killed in the middle of writing a file of a checkpoint, or between two of its files |
| terminate | the same with SIGTERM: status 143, and the resumed run has gone on from that very step |
| damage | files of the newest checkpoint that were cut, had a byte flipped or were deleted: the one before is used |
| determinism | the same command again, and in another process: the same bits |
| processes | torchrun and accelerate launch with 1, 2, 4 processes: the same ranks, α within 1e-5 |
| processes-dropout | the same command with dropout, again, for 2 and 4 processes: the same bits |
| equivalence | batch 16 x 1 against 4 x 4, activation checkpointing, torch.compile: the same ranks, α within 1e-5 |
| long | 10,000 search steps: memory and step time at the end against the start |
| tests | tests of non-finite numbers, bad input, offline, a broken Hub, files and secrets |

A run is `run_glue.py` on a RoBERTa of two layers with dropout 0.1, gradient accumulation and shuffling; α, ranks and
adapter are compared byte for byte. Runs are forked from a process that has imported everything, so that 50 of them
take minutes; they are processes of their own, and SIGKILL is SIGKILL.
"""

import argparse
import builtins
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait for each other

import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import autolora_trainer.trainer as trainer_module  # noqa: E402
import run_glue  # noqa: E402
from autolora_trainer.checkpoints import MANIFEST, newest_checkpoint  # noqa: E402
from autolora_trainer.errors import run_guarded  # noqa: E402
from benchmarks.lib import trials  # noqa: E402
from benchmarks.lib.significance import markdown  # noqa: E402
from tests.tiny import as_argv, sentences, tiny_checkpoint, write_rows  # noqa: E402

RESULTS = ("ranks.json", "adapter_model.safetensors")  # compared byte for byte; ranks.json holds α
TESTS = {
    "non-finite": ["tests/test_finite.py"],
    "bad input": ["tests/test_bad_input.py"],
    "offline": ["tests/test_offline.py"],
    "broken Hub": ["tests/test_hub_server.py"],
    "safe files": ["tests/test_safe_files.py"],
}


class Bench:
    """A folder with a tiny checkpoint and rows, and runs on them."""

    def __init__(self, folder: str, dropout: float = 0.1):
        self.folder = folder
        tiny_checkpoint(
            os.path.join(folder, "model"), hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
        )
        for name, count, seed in (("train", 64, 0), ("validation", 16, 1)):
            write_rows(Path(folder) / f"{name}.jsonl", sentences(count, seed=seed))

    def argv(self, name: str, **changes) -> list[str]:
        settings = {
            "task_name": "sst2",
            "model_name_or_path": os.path.join(self.folder, "model"),
            "train_file": os.path.join(self.folder, "train.jsonl"),
            "validation_file": os.path.join(self.folder, "validation.jsonl"),
            "output_dir": self.path(name),
            "learning_rate": 2e-2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "initial_rank": 4,
            "hypergradient": "finite_difference",
            "hypergradient_interval": 2,
            "search_max_steps": 12,
            "search_patience": 0,
            "max_steps": 12,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 3,
            "use_cpu": True,
        }
        return as_argv({**settings, **changes})

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)

    def start(self, argv: list[str], before=None) -> int:
        """Fork a run; `before` is called in it first. Returns its process id; its output lies in `log`."""
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process:
            return process
        try:
            log = os.open(self.path("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if before is not None:
                before()
            os._exit(run_guarded(lambda: run_glue.main(argv), "run_glue.py"))
        finally:
            os._exit(70)

    def run(self, argv: list[str], before=None) -> int:
        """Run to the end; returns the exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(argv, before), 0)[1])

    def log(self) -> str:
        with open(self.path("log"), encoding="utf-8") as file:
            return file.read()

    def bits(self, name: str) -> list[str]:
        """Hashes of what a run has learned."""
        hashes = []
        for result in RESULTS:
            with open(self.path(name, result), "rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        return hashes

    def results(self, name: str) -> dict:
        with open(self.path(name, "all_results.json"), encoding="utf-8") as file:
            return json.load(file)

    def reference(self, **changes) -> list[str]:
        """The bits of a run that nothing happened to."""
        argv = self.argv("reference", **changes)
        if self.run([*argv, "--overwrite"]):
            raise RuntimeError(self.log())
        return self.bits("reference")

    def goes_on(self, argv, name: str, bits, before: str = "") -> str | None:
        """Resume a run that has ended early. None if it went on from a checkpoint to the same bits, else what is
        wrong."""
        if os.path.exists(self.path(name, "all_results.json")):
            return f"{before}: it had finished"
        status = self.run([*argv, "--resume_from_checkpoint"])
        if status:
            return f"{before}: resuming ended with {status}: {self.log().strip().splitlines()[-1]}"
        origin = self.results(name)["resumed_from"]
        if origin is None:
            return f"{before}: started over"
        return None if self.bits(name) == bits else f"{before}: resumed from {origin} to other bits"


def first_seal(bench: Bench, name: str, deadline: float = 120) -> None:
    """Wait until a run has a whole checkpoint."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if os.path.exists(bench.path(name, "search", "checkpoint-1", MANIFEST)):
            return
        time.sleep(0.002)
    raise RuntimeError(f"no checkpoint: {bench.log()}")


def kill(bench: Bench, count: int):
    """Moments drawn uniformly between the first whole checkpoint of the search and the end of the retrain."""
    bits, argv, generator = bench.reference(), bench.argv("killed"), random.Random(0)
    process = bench.start([*argv, "--overwrite"])
    first_seal(bench, "killed")
    started = time.monotonic()
    while not os.path.exists(bench.path("killed", "train_results.json")):
        time.sleep(0.002)
    length = time.monotonic() - started
    os.waitpid(process, 0)
    while count:
        shutil.rmtree(bench.path("killed"))
        process, moment = bench.start(argv), generator.uniform(0, length)
        first_seal(bench, "killed")
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if os.path.exists(bench.path("killed", "all_results.json")):
            continue  # this run was faster than the one that was timed: draw another moment
        count -= 1
        yield bench.goes_on(argv, "killed", bits, f"killed after {moment:.2f} s of {length:.2f} s")


def write(bench: Bench, count: int):
    """Killed inside the writing of a checkpoint: before, in the middle of, or after its n-th call to open a file for
    writing, to `torch.save` or to rename one."""
    bits, argv, generator = bench.reference(), bench.argv("killed"), random.Random(1)
    log = bench.path("events")

    def watch(last: int | None):
        """Count the events that change files of checkpoints; die at number `last`."""
        seen = 0

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

        original_open, original_replace = builtins.open, os.replace
        torch.save = half(torch.save, 1)
        safetensors.torch.save_file = trainer_module.save_file = half(safetensors.torch.save_file, 1)

        def counted_open(file, mode="r", *args, **kwargs):
            if isinstance(mode, str) and set(mode) & set("wax+"):
                die_or_note("open", file)
            return original_open(file, mode, *args, **kwargs)

        def counted_replace(source, target, *args, **kwargs):
            die_or_note("rename", target)
            return original_replace(source, target, *args, **kwargs)

        builtins.open, os.replace = counted_open, counted_replace

    status = bench.run([*argv, "--overwrite"], lambda: watch(None))
    if status:
        raise RuntimeError(bench.log())
    with open(log, encoding="utf-8") as file:
        events = file.read().splitlines()
    late = [n for n, event in enumerate(events, 1) if "search/checkpoint-1/" not in event]
    for number in generator.sample(late, count):
        shutil.rmtree(bench.path("killed"))
        status = bench.run(argv, lambda: watch(number))
        what = events[number - 1].replace(bench.path("killed"), "")
        if status != -signal.SIGKILL:
            yield f"{what}: not killed, but {status}"
        else:
            yield bench.goes_on(argv, "killed", bits, f"killed at {what}")


def terminate(bench: Bench, count: int):
    """SIGTERM after a random step of either phase, checkpoints otherwise far apart."""
    settings = {"save_steps": 1000}
    bits, argv, generator = bench.reference(**settings), bench.argv("killed", **settings), random.Random(2)
    for _ in range(count):
        shutil.rmtree(bench.path("killed"), ignore_errors=True)
        phase, step = generator.choice(["search", "retrain"]), generator.randrange(1, 12)

        def warn():
            from autolora_trainer.termination import TerminationCallback

            original = TerminationCallback.on_step_end

            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == step and args.output_dir.endswith("search") == (phase == "search"):
                    os.kill(os.getpid(), signal.SIGTERM)
                return original(self, args, state, control, **kwargs)

            TerminationCallback.on_step_end = on_step_end

        status = bench.run(argv, warn)
        if status != 143:
            yield f"{phase} {step}: status {status}"
            continue
        fault = bench.goes_on(argv, "killed", bits, f"terminated at {phase} {step}")
        if fault is None and bench.results("killed")["resumed_from"] != {"phase": phase, "step": step}:
            fault = f"went on from {bench.results('killed')['resumed_from']}, not from {phase} {step}"
        yield fault


def _cut(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def _flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))


DAMAGES = {"cut": _cut, "flipped": _flip, "missing": os.remove}


def damage(bench: Bench, count: int):
    """Every file of the newest checkpoint of the search and of the retrain, ruined in three ways."""
    bits = bench.reference()
    for phase in ("search", "retrain"):

        def stop():
            from autolora_trainer.finite import FiniteStepMixin

            original = FiniteStepMixin._get_grad_norm

            def dying(self, *args, **kwargs):
                if self.args.output_dir.endswith("search") == (phase == "search") and self.state.global_step == 7:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, *args, **kwargs)

            FiniteStepMixin._get_grad_norm = dying

        bench.run(bench.argv("stopped", overwrite=True), stop)
        folder = ("search",) if phase == "search" else ()
        newest, _ = newest_checkpoint(bench.path("stopped", *folder))
        for name in sorted(os.listdir(newest)):
            for what, ruin in DAMAGES.items():
                shutil.rmtree(bench.path("killed"), ignore_errors=True)
                shutil.copytree(bench.path("stopped"), bench.path("killed"))
                ruin(bench.path("killed", *folder, os.path.basename(newest), name))
                label = f"{phase}, {name} {what}"
                fault = bench.goes_on(bench.argv("killed"), "killed", bits, label)
                if fault is None:
                    named = f"passed over: {bench.path('killed', *folder, os.path.basename(newest))}" in bench.log()
                    step = bench.results("killed")["resumed_from"]["step"]
                    fault = None if named and step == 6 else f"{label}: resumed from step {step}, named: {named}"
                yield fault
        shutil.rmtree(bench.path("stopped"))


def determinism(bench: Bench, count: int):
    bits = bench.reference()
    for _ in range(count):
        yield None if bench.reference() == bits else "other bits"


def _ranks(bench: Bench, name: str) -> dict:
    with open(bench.path(name, "ranks.json"), encoding="utf-8") as file:
        return json.load(file)["modules"]


def _same_search(bench: Bench, name: str, modules: dict) -> str | None:
    own = _ranks(bench, name)
    gap = max(
        abs(a - b) for key in modules for a, b in zip(modules[key]["selection"], own[key]["selection"], strict=True)
    )
    ranks = all(modules[key]["rank"] == own[key]["rank"] for key in modules)
    return None if ranks and gap <= 1e-5 else f"{name}: ranks {'equal' if ranks else 'differ'}, α differs by {gap:.1e}"


PLAIN = {  # no dropout; an epsilon above the rounding of sums in another order
    "lora_dropout": 0,
    "optim": "adamw_torch",
    "adam_epsilon": 1e-4,
    "save_strategy": "no",
    "search_max_steps": 16,
    "max_steps": 2,
}


def _launch(bench: Bench, launcher: str, count: int, argv: list[str]) -> None:
    from tests.test_distributed import launch_command

    command = [*launch_command(launcher, count), os.path.join(trials.ROOT, "run_glue.py"), *argv]
    environment = {**os.environ, "PYTHONPATH": trials.ROOT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def processes(bench: Bench, count: int):
    settings = {**PLAIN, "gradient_accumulation_steps": 1}
    bench = Bench(tempfile.mkdtemp(dir=bench.folder), dropout=0.0)
    bench.run(bench.argv("one", per_device_train_batch_size=16, **settings))
    modules = _ranks(bench, "one")
    for launcher in ("torchrun", "accelerate"):
        for number in (1, 2, 4):
            name = f"{launcher}-{number}"
            try:
                argv = bench.argv(name, per_device_train_batch_size=16 // number, **settings)
                _launch(bench, launcher, number, argv)
                yield _same_search(bench, name, modules)
            except RuntimeError as error:
                yield f"{name}: {error}"


def processes_dropout(bench: Bench, count: int):
    for number in (2, 4):
        bits = []
        for again in ("first", "second"):
            name = f"dropout-{number}-{again}"
            argv = bench.argv(name, save_strategy="no", max_steps=4)
            _launch(bench, "torchrun", number, argv)
            bits.append(bench.bits(name))
        yield None if bits[0] == bits[1] else f"{number} processes: other bits"


def equivalence(bench: Bench, count: int):
    bench = Bench(tempfile.mkdtemp(dir=bench.folder), dropout=0.0)
    whole = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, **PLAIN}
    bench.run(bench.argv("whole", **whole))
    modules = _ranks(bench, "whole")
    variants = {
        "4 x 4": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        "8 x 2": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        "activation checkpointing": {"activation_checkpointing": True},
        "torch.compile": {"torch_compile": True},
    }
    for name, changes in variants.items():
        status = bench.run(bench.argv(name, **{**whole, **changes}))
        yield f"{name}: {status}: {bench.log()[-500:]}" if status else _same_search(bench, name, modules)


def long(bench: Bench, count: int):
    """10,000 steps: the resident set may grow by 1 % from the first tenth to the end, the median step by 10 %."""
    steps = 10_000

    def watch():
        from transformers import TrainerCallback

        import autolora_trainer.methods.autolora as method

        class Watch(TrainerCallback):
            def __init__(self):
                self.times, self.memory = [], {}

            def on_step_end(self, args, state, control, **kwargs):
                self.times.append(time.perf_counter())
                if state.global_step in (steps // 10, steps):
                    with open("/proc/self/status") as file:
                        size = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
                    self.memory[state.global_step] = size / 1024

            def on_train_end(self, args, state, control, **kwargs):
                gaps = torch.tensor(self.times).double().diff()
                first, last = (part.median().item() for part in (gaps[100 : steps // 10], gaps[-steps // 10 :]))
                with open(bench.path("long.json"), "w") as file:
                    json.dump({"memory": list(self.memory.values()), "seconds": [first, last]}, file)

        build = method.AutoLoraTrainer

        def watched(*args, callbacks, **kwargs):
            return build(*args, callbacks=[*callbacks, Watch()], **kwargs)

        method.AutoLoraTrainer = watched

    changes = {"search_max_steps": steps, "max_steps": 1, "save_strategy": "no", "gradient_accumulation_steps": 1}
    status = bench.run(bench.argv("long", **changes), watch)
    if status:
        yield bench.log()[-500:]
        return
    with open(bench.path("long.json"), encoding="utf-8") as file:
        found = json.load(file)
    (early, late), (first, last) = found["memory"], found["seconds"]
    text = f"{early:.0f} MiB at step 1,000, {late:.0f} MiB at step 10,000; median step {1e3 * first:.2f} ms in the "
    text += f"first tenth, {1e3 * last:.2f} ms in the last"
    print("   ", text, flush=True)
    yield None if late <= 1.01 * early else f"memory: {text}"
    yield None if last <= 1.1 * first else f"time: {text}"


def tests(bench: Bench, count: int):
    for name, files in TESTS.items():
        typed = [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider", *files]
        done = subprocess.run(typed, cwd=trials.ROOT, capture_output=True, text=True)
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
        passed = counts.pop("passed", 0)
        print(f"    {name}: {passed}/{passed + sum(counts.values())}", flush=True)
        yield from [None] * passed
        yield from [f"{name}: {done.stdout[-500:]}"] * (sum(counts.values()) or (done.returncode != 0))


CHECKS = {
    "kill": (kill, 50),
    "write": (write, 25),
    "terminate": (terminate, 10),
    "damage": (damage, 0),
    "determinism": (determinism, 10),
    "processes": (processes, 0),
    "processes-dropout": (processes_dropout, 0),
    "equivalence": (equivalence, 0),
    "long": (long, 0),
    "tests": (tests, 0),
}


def report(rows: list[dict]) -> str:
    latest = {row["check"]: row for row in rows}
    body = [
        [name, f"{latest[name]['passed']}/{latest[name]['count']}", f"{latest[name]['seconds']:.0f} s"]
        for name in CHECKS
        if name in latest
    ]
    return markdown(["check", "held", "time"], body) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--count", type=int, help="how many kills, signals or repetitions; default: the check's own")
    parser.add_argument("--output", required=True, help="JSON rows, appended to")
    parser.add_argument("--report", action="store_true", help="write the table beside --output, and check nothing")
    options = parser.parse_args()
    failed = 0
    for name in [] if options.report else options.checks:
        check, count = CHECKS[name]
        print(name, flush=True)
        started, faults = time.monotonic(), []
        with tempfile.TemporaryDirectory() as folder:
            for fault in check(Bench(folder), options.count or count):
                faults.append(fault)
                if fault:
                    print("   ", fault, flush=True)
        passed = faults.count(None)
        failed += len(faults) - passed
        print(f"{name}: {passed}/{len(faults)}", flush=True)
        row = {"check": name, "passed": passed, "count": len(faults), "seconds": round(time.monotonic() - started, 1)}
        row["faults"] = [fault[:500] for fault in faults if fault]
        row["command"] = f"python benchmarks/reliability.py --checks {name}"
        trials.append_row(options.output, {**row, **trials.origin()})
    text = report(trials.read_rows(options.output))
    with open(os.path.splitext(options.output)[0] + ".md", "w", encoding="utf-8") as file:
        file.write(text)
    print(text)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
