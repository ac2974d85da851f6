"""Folders from elsewhere that are meant to hang, fill the memory, or move a terminal; for reliability.py.

Each is shown, exported, compared and evaluated, in a process of its own that is held to some seconds of computing and
to some memory; what is refused is refused in one line.
"""

import json
import os
import resource
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy
from safetensors.numpy import save_file

import run_glue
from autolora_trainer.clean import CONTROL
from autolora_trainer.commands import cli
from autolora_trainer.errors import run_guarded
from benchmarks.lib.forked import Bench

SECONDS, MEGABYTES = 10, 1500  # of computing and of memory, beside what a command on a good folder takes
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ENDLESS = "(([a-z0-9._]+)+)+!"


@dataclass
class Told:
    """What a command said, and what it took."""

    status: int
    out: str
    err: str
    seconds: float
    megabytes: float


def told(bench: Bench, main, argv: list[str], program: str, before=None) -> Told:
    """Run a command in a fork, which the kernel ends where it takes far too much; `before` is called in it first."""
    process = os.fork()
    if not process:
        try:
            for name, descriptor in (("said.1", 1), ("said.2", 2)):
                os.dup2(os.open(bench.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            resource.setrlimit(resource.RLIMIT_CPU, (6 * SECONDS, 6 * SECONDS))
            if before is not None:
                before()
            os._exit(run_guarded(lambda: main(argv), program))
        finally:
            os._exit(70)
    _, status, used = os.wait4(process, 0)
    out, err = (bench.path(name).read_text(encoding="utf-8", errors="replace") for name in ("said.1", "said.2"))
    seconds, megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    return Told(os.waitstatus_to_exitcode(status), out, err, seconds, megabytes)


# ---- what is wrong with a folder


def config(**changes):
    """Fields of adapter_config.json."""
    return text(CONFIG, lambda old: json.dumps({**json.loads(old), **changes}))


def text(name: str, change):
    """The text of a file, changed, or put there."""

    def ruin(folder: Path) -> None:
        path = folder / name
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        path.unlink(missing_ok=True)
        path.write_text(change(old) if callable(change) else change, encoding="utf-8")

    return ruin


def place(name: str, make):
    """Something else in place of a file."""

    def ruin(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        make(path)

    return ruin


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**11)


def tensor(module: str, shape: tuple[int, ...]):
    values = numpy.zeros(shape, numpy.float32)
    return place(WEIGHTS, lambda path: save_file({f"base_model.model.{module}.lora_A.weight": values}, path))


def header(size: int, content: bytes = b"{}"):
    return place(WEIGHTS, lambda path: path.write_bytes(struct.pack("<Q", size) + content))


def ranks(modules: str, more: str = ""):
    return text("ranks.json", f'{{"format_version": 2, "modules": {{{modules}}}{more}}}')


def rows(names) -> str:
    return ",".join(f'"{name}": {{"rank": 1}}' for name in names)


CURVE = {"kept": 7, "decided": True, "tolerance": 0.01, "targets": 100}
POINTS = [{"components": i, "parameters": i, "loss": 2.0 - i, "error": 0.0} for i in range(2)]
LISTS = "[" + "[]," * 1_000_000 + "[]]"

FOLDERS = {
    "a rank of a billion": config(r=10**9),
    "a rank of 4096 beside weights of 2": config(r=4096),
    "a module's rank of a billion": config(rank_pattern={"query": 10**9}),
    "50,001 ranks": config(rank_pattern={f"x{i}": 1 for i in range(50_001)}),
    "10,000 patterns of ranks": config(rank_pattern={f"x{i}": 1 for i in range(10_000)}),
    "an endless key of ranks": config(rank_pattern={ENDLESS: 2}),
    "an endless key of scales": config(alpha_pattern={ENDLESS: 2}),
    "endless target_modules": config(target_modules=ENDLESS),
    "endless exclude_modules": config(exclude_modules=ENDLESS),
    "endless modules_to_save": config(modules_to_save=[ENDLESS]),
    "endless layers_pattern": config(layers_to_transform=[0], layers_pattern=[ENDLESS]),
    "a pattern of a megabyte": config(target_modules="(a|b)" * 200_000),
    "a pattern that is none": config(target_modules="(", alpha_pattern={"(": 1}),
    "a scale that is no number": config(lora_alpha=float("nan")),
    "a scale in words": config(lora_alpha="16"),
    "ranks in a list": config(rank_pattern=[1, 2]),
    "a billion copies of a layer": config(layer_replication=[[0, 10**9]]),
    "60,000 copies of a layer": config(layer_replication=[[0, 60_000]]),
    "a billion rounds of an initialization": config(init_lora_weights="pissa_niter_1000000000"),
    "a module of Python": config(megatron_config={"a": 1}, megatron_core="antigravity"),
    "a type that is an object": config(peft_type={"LORA": 1}),
    "a billion virtual tokens": config(peft_type="PREFIX_TUNING", num_virtual_tokens=10**9),
    "60,000 virtual tokens": config(peft_type="PREFIX_TUNING", num_virtual_tokens=60_000, token_dim=16),
    "a base that moves the cursor": config(base_model_name_or_path="\x1b[2J\x1b]0;x\x07"),
    "a base of four megabytes": config(base_model_name_or_path="x" * 4_000_000),
    "a config of 100 GB": place(CONFIG, sparse),
    "a config of brackets": text(CONFIG, "[" * 1_000_000),
    "a config of a million lists": text(CONFIG, LISTS),
    "a config that is a pipe": place(CONFIG, os.mkfifo),
    "a config that is a device": place(CONFIG, device),
    "weights that are a pipe": place(WEIGHTS, os.mkfifo),
    "weights that are a device": place(WEIGHTS, device),
    "a header without end": header(2**60),
    "a header of 90 MB": header(90_000_000, b"{" + b" " * 90_000_000),
    "a tensor of a billion rows of nothing": tensor("query", (10**9, 0)),
    "a tensor whose name moves the cursor": tensor("\x1b[2Jquery", (2, 2)),
    "ranks of 100,000 modules": ranks(rows(f"m{i}" for i in range(100_000))),
    "ranks of 40,000 by 40,000": ranks(
        rows([*(f"l.{i}.q" for i in range(40_000)), *(f"x{i}" for i in range(40_000))])
    ),
    "ranks of names of 250 parts": ranks(rows(".".join(["a"] * 240) + f".b{i}" for i in range(10_000))),
    "ranks of ten million lists": text("ranks.json", "[" + "[]," * 6_000_000 + "[]]"),
    "ranks that are a pipe": place("ranks.json", os.mkfifo),
    "ranks that are a device": place("ranks.json", device),
    "a curve that keeps what it has not": ranks(rows(["q"]), f', "curve": {json.dumps({**CURVE, "points": POINTS})}'),
    "results of 100 GB": place("all_results.json", sparse),
    "results that are a pipe": place("all_results.json", os.mkfifo),
    "results that move the cursor": text("all_results.json", json.dumps({"eval_\x1b[2J\u202ef1": 0.5, "eval_x": 1e9})),
    "results of 4,000 digits": text("all_results.json", '{"adapter_params": %s, "head_params": 1}' % ("9" * 4000)),
    "100,000 scores": text("all_results.json", json.dumps({f"eval_{i}": 0.5 for i in range(100_000)})),
    "costs in words": text("cost.json", '{"total": {"wall_seconds": "x", "passes": [1], "examples": 1e999}}'),
    "costs that are a pipe": place("cost.json", os.mkfifo),
    "a run.json of a million lists": text("run.json", LISTS),
    "a scale of 4,000 digits": text("run.json", '{"settings": {"lora_alpha": %s}}' % ("9" * 4000)),
    "kept components that are a pipe": place("search/kept_components.safetensors", os.mkfifo),
    "a bottleneck of 65,536": lambda folder: _bottleneck(folder, 65_536),
}  # fmt: skip
MODELS = {  # in a folder of a whole model
    "a million layers": {"num_hidden_layers": 10**6},
    "a billion words": {"vocab_size": 10**9},
    "a billion positions": {"max_position_embeddings": 10**9},
    "a billion labels": {"num_labels": 10**9},
    "a width of a billion": {"intermediate_size": 10**9},
}


def _bottleneck(folder: Path, size: int) -> None:
    """A description alone; the weights are another's."""
    modules = [f"roberta.encoder.layer.{i}.output.dense" for i in range(2)]
    content = {"format_version": 1, "size": size, "layer_norm": True, "modules": modules, "fresh_modules": []}
    (folder / "bottleneck_adapter.json").write_text(json.dumps(content))
    shutil.copyfile(folder / WEIGHTS, folder / "bottleneck_adapter.safetensors")


# ---- the check


def _commands(bench: Bench):
    """{what: (main, argv, program)} of everything that looks into the folder `bad`."""
    bad, good = str(bench.path("bad")), str(bench.path("good"))
    evaluation = [*bench.argv("bad"), "--do_eval", "--report_to", "none"]
    return {
        "show": (cli.main, ["show", bad], "autolora"),
        "export": (cli.main, ["export", bad, "--format", "axolotl"], "autolora"),
        "start": (cli.main, ["export", bad, "--format", "adapter", "--output", str(bench.path("start"))], "autolora"),
        "diff": (cli.main, ["diff", good, bad], "autolora"),
        "do_eval": (run_glue.main, evaluation, "run_glue.py"),
    }


def _fault(said: Told, usual: Told) -> str | None:
    lines = said.err.splitlines()
    if said.status not in (0, 2):
        return f"status {said.status}: {said.err[-200:]}"
    if said.status == 2 and (len(lines) != 1 or len(lines[0]) > 5000):
        return f"{len(lines)} lines of error: {said.err[:200]}"
    if found := CONTROL.search(said.out + said.err):
        return f"prints {found[0]!r}"
    if said.seconds > usual.seconds + SECONDS:
        return f"{said.seconds:.1f} s"
    return f"{said.megabytes:.0f} MB" if said.megabytes > usual.megabytes + MEGABYTES else None


def hostile(bench: Bench, count: int):
    """Every folder, under every command that looks into it; a fault for each that one of them meets."""
    for name, method in (("good", "lora"), ("whole", "full")):
        own = {"lora_r": 2} if method == "lora" else {}
        argv = bench.argv(name, method=method, max_steps=1, save_strategy="no", **own)
        if bench.run(argv):
            raise RuntimeError(bench.log())
    cases = [("good", what, ruin) for what, ruin in FOLDERS.items()]
    cases += [("whole", what, text("config.json", _changed(changes))) for what, changes in MODELS.items()]
    usual = {}
    for source in ("good", "whole"):
        for command, typed in _try(bench, source, lambda folder: None).items():
            usual[source, command] = typed
    for source, what, ruin in bench.left(cases[: count or None]):
        faults = {c: _fault(said, usual[source, c]) for c, said in _try(bench, source, ruin).items()}
        found = "; ".join(f"{command}: {fault}" for command, fault in faults.items() if fault)
        yield f"{what}: {found}" if found else None


def _changed(changes: dict):
    return lambda old: json.dumps({**json.loads(old), **changes})


def _try(bench: Bench, source: str, ruin) -> dict[str, Told]:
    found = {}
    for command, typed in _commands(bench).items():
        for name in ("bad", "start"):
            shutil.rmtree(bench.path(name), ignore_errors=True)
        shutil.copytree(bench.path(source), bench.path("bad"))
        ruin(bench.path("bad"))
        found[command] = told(bench, *typed)
    return found
