"""What a machine can lack, and what a process can find around it; for reliability.py.

Each command is a process of its own with a time limit: it works, or ends with one line and its status.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.training.checkpoints import checkpoint_steps
from benchmarks.lib import trials
from benchmarks.lib.forked import Bench
from tests.helpers.hub_server import HubServer
from tests.helpers.rows import write_rows

SECONDS = 300  # of a command; without load it takes twenty
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
SHORT = {"search_max_steps": 4, "max_steps": 2, "save_strategy": "no", "hypergradient_interval": 1}
LORA = {**SHORT, "method": "lora", "search_max_steps": -1}
SEARCH = {**SHORT, "output_dir": "search", "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
FOUND = {"adapter_model.safetensors", "all_results.json"}
DRAWN = FOUND | {"rank_heatmap.png", "rank_curve.png", "search"}
NO_LAUNCHER = "so no launcher has started this. Type unset"


@dataclass(frozen=True)
class Around:
    """One command in its surroundings.

    Args:
        what: is around it.
        says: in the last line on stderr; None: it works; empty: it ends without a word.
        status: of the command.
        given: arguments of run_glue.py, or the words after `autolora`.
        shell: how it is started: `{}` is the command; its folder is the working one.
        environment: variables; None: not set.
        before: makes what it finds, of the folder.
        files: in the output folder, afterwards.
        warns: on stderr, besides.
    """

    what: str
    says: str | None = None
    status: int = 0
    given: dict | list = field(default_factory=lambda: LORA)
    shell: str = "{}"
    environment: dict = field(default_factory=dict)
    before: Callable = lambda folder: None
    files: set = frozenset()
    warns: str = ""
    script: str = "run_glue.py"


def _pipe(name: str) -> Callable:
    return lambda folder: os.mkfifo(folder / name)


def _ranks(folder: Path) -> None:
    modules = {f"h.{i}.{part}": ModuleRank(i) for i in range(8) for part in ("query", "value")}
    LearnedRanks(modules, base_model="org/base").save(folder / "ranks.json")


def _wide(folder: Path) -> None:
    (folder / "rows.csv").write_text(",".join(f"c{n}" for n in range(100_000)) + "\n")


def _kinds(count: int) -> Callable:
    def write(folder):
        made = [{"tokens": ["good", "film"], "tags": [f"B-Bl\u00e4ue{n % count}", "O"]} for n in range(max(count, 32))]
        for split in ("train", "validation"):
            write_rows(folder / f"{split}.jsonl", made)

    return write


def _file(name: str) -> Callable:
    def write(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a file")

    return write


NER = {"task_name": "ner", "train_file": "train.jsonl", "validation_file": "validation.jsonl", "hypergradient": None}
BOARD = {**LORA, "report_to": "tensorboard", "logging_steps": 1, "output_dir": "out"}
GONE = "mkdir gone && cd gone && rmdir ../gone && {}"
FULL = "mkdir -p out/runs && mount -t tmpfs -o size=4k tmpfs out/runs && {}; status=$?; umount out/runs; exit $status"
AROUND = [
    Around("nothing", given=SHORT, files=DRAWN),
    Around("--help, LC_ALL=C", given=["--help"], environment=ASCII, script="run_glue.py"),
    Around("--help, latin-1", given=["--help"], environment=LATIN, script="run_nlg.py"),
    Around("autolora --help, LC_ALL=C", given=["--help"], environment=ASCII, script="autolora"),
    Around("an umlaut in the output folder, LC_ALL=C", "Type PYTHONUTF8=1", 2, {**SHORT, "output_dir": "\u00f6ut"},
           environment=ASCII),
    Around("an umlaut in the output folder, latin-1", given={**LORA, "output_dir": "\u00f6ut"}, environment=LATIN,
           files=FOUND),
    Around("entities with umlauts, LC_ALL=C", given={**LORA, **NER}, environment=ASCII, before=_kinds(3), files=FOUND,
           script="run_ner.py"),
    Around("a grid of ranks, LC_ALL=C", given=["show", "ranks.json"], environment=ASCII, before=_ranks,
           script="autolora"),
    Around("show, which nobody reads", "", 141, ["show", "ranks.json"], "set -o pipefail; {} | true", before=_ranks,
           script="autolora"),
    Around("--help | head -1", None, 0, ["--help"], "set -o pipefail; {} | head -1 > /dev/null"),
    Around("a run | head -1", "", 141, SHORT, "set -o pipefail; {} | head -1 > /dev/null"),
    Around("no stdout", shell="{} >&-", files=FOUND),
    Around("a full stdout", "No space left on device", 1, ["show", "ranks.json"], "{} > /dev/full", before=_ranks,
           script="autolora"),
    Around("a working folder that is gone", "The working folder is gone", 1, shell=GONE),
    Around("a working folder that is gone, autolora", "The working folder is gone", 2, ["show", "ranks.json"], GONE,
           script="autolora"),
    Around("WORLD_SIZE left over", NO_LAUNCHER, 2, environment={"WORLD_SIZE": "2"}),
    Around("WORLD_SIZE and RANK left over", NO_LAUNCHER, 2, environment={"WORLD_SIZE": "2", "RANK": "0"}),
    Around("all but the port left over", "and no MASTER_PORT, so no launcher", 2, environment={
        "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}),
    Around("LOCAL_RANK left over", NO_LAUNCHER, 2, environment={"LOCAL_RANK": "0"}),
    Around("RANK left over", environment={"RANK": "1"}, files=FOUND),
    Around("WORLD_SIZE left over, find", NO_LAUNCHER, 2, ["find", "{model}", "{train}", "--output_dir", "{out}"],
           environment={"WORLD_SIZE": "2"}, script="autolora"),
    Around("MPLBACKEND=nosuch", given=SHORT, environment={"MPLBACKEND": "nosuch"}, files=DRAWN),
    Around("a place for fonts that cannot be", given=SHORT, environment={"MPLCONFIGDIR": "/dev/null/x"}, files=DRAWN),
    Around("32 files", shell="ulimit -n 32; {}", files=FOUND),
    Around("5 files", "ulimit -n 1024", 1, shell="ulimit -n 5; {}"),
    Around("python -O", shell="PYTHONOPTIMIZE=1 {}", files=FOUND),
    Around("python -OO", "without -OO", 1, shell="PYTHONOPTIMIZE=2 {}"),
    Around("no HOME", environment={"HOME": None, "USER": None}, files=FOUND),
    Around("a HOME that cannot be", environment={"HOME": "/dev/null", "HF_HOME": "/dev/null/hf"}, files=FOUND),
    Around("a folder for temporary files that is not there", environment={"TMPDIR": "/nowhere"}, files=FOUND),
    Around("Ctrl-C that is for others", shell="trap '' INT; {}", files=FOUND),
    Around("TensorBoard's folder is a file", given=BOARD, before=_file("out/runs"), files=FOUND,
           warns="TensorBoard failed, and the training goes on without it"),
    Around("TensorBoard's folder is full", given=BOARD, shell=FULL, files=FOUND,
           warns="TensorBoard failed, and the training goes on without it"),
    Around("TensorBoard's folder is deleted", given={**BOARD, "max_steps": 400}, files=FOUND, shell=(
        "{} & run=$!; while [ ! -d out/runs ]; do sleep 0.01; done; sleep 0.3; rm -rf out/runs; wait $run")),
    Around("a pipe of rows", "it is a pipe (FIFO), not a file", 2, {**LORA, "train_file": "rows.jsonl"},
           before=_pipe("rows.jsonl")),
    Around("a pipe of settings", "it is a pipe (FIFO), not a file", 2, {**LORA, "config": "settings.yaml"},
           before=_pipe("settings.yaml")),
    Around("a pipe of ranks", "it is a pipe (FIFO), not a file", 2, {**SHORT, "ranks": "ranks.json"},
           before=_pipe("ranks.json")),
    Around("a device of rows", "it is a device, not a file", 2, {**LORA, "train_file": "rows.jsonl"},
           before=lambda folder: os.symlink("/dev/zero", folder / "rows.jsonl")),
    Around("100,000 columns", "has 100,000 columns", 2, {**LORA, "train_file": "rows.csv"}, before=_wide),
    Around("100,000 columns, find", "has 100,000 columns", 2, ["find", "{model}", "rows.csv", "--output_dir", "{out}"],
           before=_wide, script="autolora"),
    Around("10,000 kinds of entities", "name 10,000 kinds of entities", 2, {**LORA, **NER}, before=_kinds(10_000),
           script="run_ner.py"),
    Around("1,000 kinds of entities", given={**LORA, **NER}, before=_kinds(1000), files=FOUND, script="run_ner.py"),
    Around("an output folder called search", given=SEARCH, files=DRAWN),
    Around("it, resumed by a relative path", given={**SEARCH, "resume_from_checkpoint": "search/checkpoint-2"},
           before=lambda folder: (folder / "search" / "all_results.json").unlink(), files=DRAWN),
]  # fmt: skip


def surroundings(bench: Bench, count: int):
    """Every one of `AROUND`, or the first `count`; then servers that ask for a day or send without an end, a clock
    that was set back, and disks with too little room."""
    for around in bench.left(AROUND[: count or None]):
        fault = _judge(bench, around, *_run(bench, around))
        yield fault and f"{around.what}: {fault}"
    if not count:
        for check in (_servers, _clock, _disks):
            yield from check(bench)


def _run(bench: Bench, around: Around, folder: Path | None = None) -> tuple[int | None, str, Path]:
    """(status, None if it took too long; what it said on stderr; its output folder)."""
    again = around.what.startswith("it, ")  # in the folder of the one before
    folder = folder or bench.path(f"around-{AROUND.index(around) - again}")
    folder.mkdir(exist_ok=True)
    around.before(folder)
    output = folder / "out"
    if isinstance(around.given, list):
        places = {"model": bench.path("model"), "train": bench.path("train.jsonl"), "out": output}
        words = [word.format(**places) for word in around.given]
    else:
        words = bench.argv("out", **{"output_dir": output, **around.given})
        output = folder / around.given.get("output_dir", "out")
    program = (
        ["-m", "autolora_trainer.commands.cli"] if around.script == "autolora" else [f"{trials.ROOT}/{around.script}"]
    )
    command = " ".join(map(_quoted, [sys.executable, *program, *words]))
    known = {**os.environ, "PYTHONPATH": trials.ROOT, **around.environment}
    environment = {name: value for name, value in known.items() if value is not None}
    typed = ["bash", "-c", around.shell.format(command)]
    process = subprocess.Popen(typed, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    try:
        said = process.communicate(timeout=SECONDS)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[1].decode("utf-8", "replace"), output
    return process.returncode, said.decode("utf-8", "replace"), output


def _quoted(word: str) -> str:
    return "'" + str(word).replace("'", "'\\''") + "'"


def _judge(bench: Bench, around: Around, status: int | None, said: str, output: Path) -> str | None:
    lines = [line for line in said.strip().splitlines() if line and not line.startswith("bash: ")]
    last = lines[-1] if lines else ""
    if status != around.status:
        return f"status {status}, not {around.status}: {last or 'nothing said'}"
    if "Traceback" in said or "Exception ignored" in said:
        return f"a traceback, or its like: {said[-300:]}"
    if around.says == "" and lines:
        return f"it says {last}"
    if around.says and around.says not in last:
        return f"it says {last}"
    if around.warns not in said:
        return f"no warning {around.warns!r}"
    missing = around.files - set(os.listdir(output)) if around.files else None
    return f"no {', '.join(sorted(missing))}" if missing else None


def _servers(bench: Bench):
    """A Hub on this machine: waits of a day, and a body without an end."""
    for what, how, headers, says in (
        ("a wait of a day", 429, {"Retry-After": "86400"}, "429"),
        ("a body without an end", "endless", {}, "sent more than"),
    ):
        with HubServer() as server:
            server.repositories["me/ranks"] = {"ranks.json": b"{}"}
            server.fail("/ranks.json$", how, method="GET", headers=headers)
            environment = {
                "HF_ENDPOINT": server.endpoint,
                "HF_HUB_OFFLINE": "0",
                "HF_HOME": str(bench.path(f"hf-{how}")),
            }
            around = Around(what, says, 2, ["show", "me/ranks"], environment=environment, script="autolora")
            status, said, output = _run(bench, around, bench.path(f"server-{how}"))
            fault = _judge(bench, around, status, said, output)
            kept = sum(path.stat().st_size for path in bench.path(f"hf-{how}").rglob("*") if path.is_file())
            yield fault and f"{what}: {fault}" if fault or kept < 50e6 else f"{what}: {kept / 1e6:.0f} MB were kept"


def _clock(bench: Bench):
    """Set back by a year in the middle of a run: the newest checkpoints by step stay."""
    settings = {**LORA, "save_strategy": "steps", "save_steps": 1, "max_steps": 8}
    bench.run(bench.argv("clock", **settings, save_total_limit=4))
    for step in (7, 8):
        shutil.rmtree(bench.path("clock", f"checkpoint-{step}"))
    for path in [path for path in bench.path("clock").rglob("*") if "checkpoint-" in str(path)]:
        os.utime(path, (4e9, 4e9))
    bench.path("clock", "all_results.json").unlink()
    status = bench.run([*bench.argv("clock", **settings, save_total_limit=2), "--resume_from_checkpoint"])
    steps = checkpoint_steps(str(bench.path("clock")))
    yield None if status == 0 and steps == [7, 8] else f"a clock that was set back: status {status}, {steps} are left"


def _disks(bench: Bench):
    """File systems of so many kilobytes: every failure names the disk, and the run goes on when there is room."""
    for size in range(64, 1600, 64):
        place = bench.path(f"disk-{size}")
        place.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], capture_output=True
        ).returncode:
            return  # only root may
        try:
            settings = {**SHORT, "save_strategy": "steps", "save_steps": 1, "output_dir": place / "out"}
            status = bench.run(bench.argv("out", **settings))
            last = (bench.log().strip().splitlines() or [""])[-1]
            if status and not ("No space left on device" in last and "Free some space" in last and status == 1):
                yield f"a disk of {size} kB: status {status}: {last}"
                continue
            if status:
                subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
                status = bench.run([*bench.argv("out", **settings), "--resume_from_checkpoint"])
            yield None if status == 0 else f"a disk of {size} kB, with room: status {status}: {bench.log()[-200:]}"
        finally:
            with contextlib.suppress(OSError):
                subprocess.run(["umount", place], check=False)
