"""What a training step costs, as ratios, measured interleaved in one process of measuring.

    python benchmarks/cost.py --table steps --shape roberta-base --device cpu --output outputs/cost.jsonl
    python benchmarks/cost.py --table steps --shape roberta-large --device cuda --dtype bf16 --attn sdpa
    python benchmarks/cost.py --table steps --model FOLDER --variants first_order finite_difference

The time of a weight step (median over rounds; in a round every variant trains in turn, in rotated order), passes in a
weight step, and peak memory. Every figure of a Trainer comes from its own `train()`, between two of its callbacks,
after `--warmup` steps. Peak memory: CUDA's allocator, or on a CPU the resident set of a process that runs that variant
alone (interpreter and libraries included). AdaLoRA is measured over its three phases in their shares. EVA is an
initialisation: its cost is one-off, in LoRA steps, and depends on the data, here random.
`step / passes` is the step's time over its passes times plain LoRA's step: 1 means that only passes cost.

Rows are appended to `--output` as JSON lines, and the table to the file beside it that ends in .md. Whole runs are
timed by `compare.py --isolate`. `betty` needs `pip install --no-deps betty-ml`; nothing else of the package does.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer.errors import one_line, run_guarded  # noqa: E402
from autolora_trainer.hub.public import public_command  # noqa: E402
from benchmarks.lib import trials  # noqa: E402
from benchmarks.lib.cost_tables import steps_table  # noqa: E402
from benchmarks.lib.steps import CYCLE, REFERENCE, SHAPES, VARIANTS, Bench  # noqa: E402


def attempt(reasons: dict[str, str], name: str, action):
    """`action()`, or None and the reason why not: what cannot run here leaves the others to be measured."""
    try:
        return action()
    except Exception as error:
        reasons[name] = f"{type(error).__name__}: {one_line(error)[:300]}"
        print(f"{name}: not measured, {reasons[name]}", flush=True)


def memory_alone(name: str) -> float:
    """Peak memory of a variant in a process of its own."""
    argv = [sys.executable, __file__, *sys.argv[1:], "--measure", name, "--warmup", str(CYCLE), "--steps", "3"]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(one_line(done.stderr.strip().splitlines()[-1]))
    return json.loads(done.stdout.strip().splitlines()[-1])["peak_memory_mb"]


def table_steps(arguments) -> tuple[list[dict], list[str]]:
    bench, parts = Bench(arguments), arguments.variants
    names = [name for name in VARIANTS if name == REFERENCE or not parts or any(part in name for part in parts)]
    figures, reasons = {name: [] for name in names}, {}
    try:
        for turn in range(arguments.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if name not in reasons and (measured := attempt(reasons, name, lambda: bench.measure(name))):
                    figures[name].append(measured)
                    print(f"round {turn + 1}, {name}: {json.dumps(measured)}", flush=True)
    except KeyboardInterrupt:  # what was measured is kept; every row says how many rounds it has
        reasons |= {name: "interrupted before its first round" for name in names if not figures[name]}
    rows = steps_rows(figures)
    for row in rows if arguments.device == "cpu" else ():
        row["peak_memory_mb"] = attempt(reasons, row["method"], lambda: memory_alone(row["method"]))
    rows = compared(rows)
    return rows, [steps_table(rows), *(f"{name}: not measured, {reason}" for name, reason in reasons.items())]


def steps_rows(figures: dict[str, list[dict]]) -> list[dict]:
    """A row of each variant that was measured: medians of its rounds, and the peak of their memory."""
    rows = []
    for name, measured in figures.items():
        if measured:
            row = {"method": name, **measured[-1], "rounds": len(measured)}
            for key in {"step_seconds", "once_seconds"} & row.keys():
                row[key] = float(np.median([figures[key] for figures in measured]))
            rows.append({**row, "peak_memory_mb": max(figures["peak_memory_mb"] for figures in measured)})
    return rows


def compared(rows: list[dict]) -> list[dict]:
    """The rows with their ratios to plain LoRA, which has to be the first of them."""
    if not rows or rows[0]["method"] != REFERENCE:
        raise RuntimeError(f"{REFERENCE}, to which everything is compared, was not measured.")
    step, memory = rows[0]["step_seconds"], rows[0]["peak_memory_mb"]
    for row in rows:
        seconds = row.pop("step_seconds", None)
        row["task"], row["wall_seconds"], row["score"] = "steps", seconds, None
        if seconds is not None:
            row["step_ratio"], row["step_per_pass"] = seconds / step, seconds / (row["passes"] * step)
        else:
            row["once_steps"] = row["once_seconds"] / step
        if memory and row["peak_memory_mb"]:
            row["memory_ratio"] = row["peak_memory_mb"] / memory
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", choices=("steps",), default="steps", help="what is measured; whole runs: compare.py"
    )
    parser.add_argument("--output", type=Path, help="append rows to this .jsonl, and the table to the .md beside it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base", help="where there is no --model")
    parser.add_argument("--weights", choices=("fp32", "bf16"), default="fp32", help="of the frozen weights")
    parser.add_argument("--attn", choices=("eager", "sdpa"), default="eager", help="exact needs eager on CUDA")
    parser.add_argument("--compile", action="store_true", help="torch.compile in every variant")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens in a row")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the model and before lora_A")
    parser.add_argument("--warmup", type=int, default=CYCLE, help=f"steps before the clock starts, {CYCLE} times N")
    parser.add_argument("--steps", type=int, default=2 * CYCLE, help=f"steps that are measured, {CYCLE} times N")
    parser.add_argument("--variants", nargs="+", metavar="PART", help="only those whose name contains a PART")
    parser.add_argument("--measure", metavar="NAME", help="one variant, once: print its figures as one line of JSON")
    arguments = parser.parse_args()
    if not arguments.measure and (arguments.warmup % CYCLE or arguments.steps % CYCLE):
        parser.error(f"--warmup and --steps must be multiples of {CYCLE}, so that they hold whole cycles of a search")
    if min(arguments.warmup, arguments.steps, arguments.rounds) < 1:
        parser.error("--warmup, --steps and --rounds must be at least 1")
    logging.set_verbosity_error()
    if arguments.measure:
        print(json.dumps(Bench(arguments).measure(arguments.measure)))
        return
    rows, lines = table_steps(arguments)
    hidden = ("output", "measure", "table", "model", *(["shape"] if arguments.model else []))
    settings = {name: value for name, value in vars(arguments).items() if name not in hidden}
    settings["model"] = Path(arguments.model).name if arguments.model else None
    shared = {"seed": arguments.seed, "settings": settings, "machine": trials.machine(arguments.device)}
    shared["versions"] = {"python": platform.python_version(), **trials.versions("betty-ml", "autolora_trainer")}
    shared["command"] = public_command(sys.argv).replace("cost.py", "benchmarks/cost.py", 1)
    text = f"## {shared['command']}\n\n{shared['machine']}\n\n" + "\n\n".join(lines) + "\n"
    print("\n" + text)
    if arguments.output:
        for row in rows:
            trials.append_row(str(arguments.output), {**shared, **row})
        with arguments.output.with_suffix(".md").open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(run_guarded(main, os.path.basename(__file__)))
