"""What a training step and a whole run cost, as ratios, measured interleaved in one process of measuring.

    python benchmarks/cost.py --table steps --shape roberta-base --device cpu --output outputs/cost.jsonl
    python benchmarks/cost.py --table steps --shape roberta-large --device cuda --dtype bf16 --attn sdpa
    python benchmarks/cost.py --table steps --model FOLDER --variants first_order finite_difference
    python benchmarks/cost.py --table total --task_name mrpc --model FOLDER --train_file train.jsonl
        --validation_file dev.jsonl --num_train_epochs 3 --rounds 3 --rows 1000 2000 --output outputs/cost.jsonl
        --extra "paper search=--method autolora --preset paper"

* `steps`: the time of a weight step (median over rounds; in a round every variant trains in turn, in rotated order),
  passes in a weight step, and peak memory. Every figure of a Trainer comes from its own `train()`, between two of its
  callbacks, after `--warmup` steps. Peak memory: CUDA's allocator, or on a CPU the resident set of a process that runs
  that variant alone (interpreter and libraries included). AdaLoRA is measured over its three phases in their shares.
  EVA is an initialisation: its cost is one-off, in LoRA steps, and depends on the data, here random.
  `step / passes` is the step's time over its passes times plain LoRA's step: 1 means that only passes cost.
* `total`: runs of run_glue.py, timed around the process, with the same data and epochs, a seed per round; adapters of
  one budget (`--rank`). `--rows` repeats one round on the first N training rows.

Rows are appended to `--output` as JSON lines, and the tables to the file beside it that ends in .md.
`betty` needs `pip install --no-deps betty-ml`; nothing else of the package does.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer.errors import one_line, run_guarded  # noqa: E402
from autolora_trainer.hub import public_command  # noqa: E402
from autolora_trainer.report import format_score, format_table  # noqa: E402
from autolora_trainer.tasks.glue import GLUE_TASKS  # noqa: E402
from benchmarks.lib import trials  # noqa: E402
from benchmarks.lib.steps import CYCLE, REFERENCE, SHAPES, VARIANTS, Bench  # noqa: E402


def rotated(names: list, turn: int) -> list:
    turn %= len(names)
    return names[turn:] + names[:turn]


def attempt(reasons: dict[str, str], name: str, action):
    """`action()`, or None and the reason why not: what cannot run here leaves the others to be measured."""
    try:
        return action()
    except Exception as error:
        reasons[name] = f"{type(error).__name__}: {one_line(error)[:300]}"
        print(f"{name}: not measured, {reasons[name]}", flush=True)


def failures(reasons: dict[str, str]) -> list[str]:
    return [f"{name}: not measured, {reason}" for name, reason in reasons.items()]


def number(value, places=2, scale=1.0) -> str:
    return "-" if value is None else f"{value * scale:,.{places}f}"


# ---- table `steps`


def chosen_variants(parts) -> list[str]:
    """The reference, and the variants whose names contain one of `parts`."""
    return [name for name in VARIANTS if name == REFERENCE or not parts or any(part in name for part in parts)]


def memory_alone(name: str) -> float:
    """Peak memory of a variant in a process of its own."""
    argv = [sys.executable, __file__, *sys.argv[1:], "--measure", name, "--warmup", str(CYCLE), "--steps", "3"]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(one_line(done.stderr.strip().splitlines()[-1]))
    return json.loads(done.stdout.strip().splitlines()[-1])["peak_memory_mb"]


def table_steps(arguments) -> tuple[list[dict], list[str]]:
    bench, names = Bench(arguments), chosen_variants(arguments.variants)
    figures, reasons = {name: [] for name in names}, {}
    try:
        for turn in range(arguments.rounds):
            for name in rotated(names, turn):
                if name not in reasons and (measured := attempt(reasons, name, lambda: bench.measure(name))):
                    figures[name].append(measured)
                    print(f"round {turn + 1}, {name}: {json.dumps(measured)}", flush=True)
    except KeyboardInterrupt:  # what was measured is kept; every row says how many rounds it has
        reasons |= {name: "interrupted before its first round" for name in names if not figures[name]}
    rows = steps_rows(figures)
    for row in rows if arguments.device == "cpu" else ():
        row["peak_memory_mb"] = attempt(reasons, row["method"], lambda: memory_alone(row["method"]))
    rows = compared(rows)
    return rows, [steps_table(rows), *failures(reasons)]


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


def steps_table(rows: list[dict]) -> str:
    """Markdown of the rows of one measurement of steps."""
    columns = {  # key: (name, digits)
        "wall_seconds": ("ms a step", 1),
        "step_ratio": ("to LoRA", 2),
        "passes": ("passes", 2),
        "step_per_pass": ("step / passes", 2),
        "once_steps": ("once, LoRA steps", 1),
        "peak_memory_mb": ("peak MB", 0),
        "memory_ratio": ("to LoRA", 2),
    }
    scale = {"wall_seconds": 1000}
    cells = [[number(row.get(k), places, scale.get(k, 1)) for k, (_, places) in columns.items()] for row in rows]
    header = ["method", *(name for name, _ in columns.values())]
    return format_table(header, [[row["method"], *own] for row, own in zip(rows, cells)], markdown=True)


# ---- table `total`


def run_methods(arguments) -> dict[str, list[str]]:
    """{name: arguments of run_glue.py}; adapters of the same budget."""
    size = {"autolora": ["--rank_budget", f"lora:{arguments.rank}"]}
    plain = ["--lora_r", str(arguments.rank)]
    methods = {name: ["--method", name, *size.get(name, plain)] for name in arguments.methods}
    extra = (text.partition("=") for text in arguments.extra)
    return methods | {name: shlex.split(given) for name, _, given in extra}


def run_once(arguments, name: str, given: list[str], seed: int, train_rows: int | None = None) -> dict:
    """One run of run_glue.py in a process of its own: a row of the results."""
    settings = {"overwrite": True, "save_strategy": "no", "seed": seed}
    settings |= {"num_train_epochs": arguments.num_train_epochs, "task_name": arguments.task_name}
    settings |= {"model_name_or_path": arguments.model, "train_file": arguments.train_file}
    settings |= {"validation_file": arguments.validation_file}
    settings |= {"use_cpu": arguments.device == "cpu", "bf16": arguments.dtype == "bf16"}
    typed = [word for key, value in settings.items() if value is not None for word in (f"--{key}", str(value))]
    typed += [*shlex.split(arguments.script_arguments), *given]
    typed += [] if train_rows is None else ["--max_train_samples", str(train_rows)]
    with trials.scratch_folder(None) as place:
        folder = os.path.join(place, name.replace(" ", "-"))
        start = time.perf_counter()
        results = trials.run("run_glue", [*typed, f"--output_dir={folder}"], isolate=True)
        seconds = time.perf_counter() - start
        cost = json.loads(Path(folder, "cost.json").read_text(encoding="utf-8"))
    metric = GLUE_TASKS[arguments.task_name].reported_metric
    row = {"task": arguments.task_name, "seed": seed, "method": name, "score": results.get(f"eval_{metric}")}
    row |= {"metric": metric, "adapter_params": results["adapter_params"], "train_rows": results["train_samples"]}
    row |= {"wall_seconds": seconds, "passes": cost["total"]["passes"]}
    row |= {"search_seconds": cost.get("search", {}).get("wall_seconds")}
    row |= {"retrain_seconds": cost["retrain"]["wall_seconds"], "command": cost["command"]}
    print(f"{name}, {row['train_rows']} rows: {seconds:.1f} s, {metric} {format_score(row['score'])}", flush=True)
    return row


def table_total(arguments) -> tuple[list[dict], list[str]]:
    methods, rows, reasons = run_methods(arguments), [], {}
    turns = [(turn, None) for turn in range(arguments.rounds)] + list(enumerate(arguments.rows))
    for turn, count in turns:
        for name in rotated(list(methods), turn):
            once = lambda: run_once(arguments, name, methods[name], arguments.seed + turn, count)
            if name not in reasons and (row := attempt(reasons, name, once)):
                rows.append({**row, "round": turn + 1, "whole": count is None})
        if not rows:
            raise RuntimeError("no run ended: " + "; ".join(failures(reasons)))
    lines = [total_table([row for row in rows if row.pop("whole")])]
    lines += [GROWTH, growth_table(rows)] if arguments.rows else []
    return rows, lines + failures(reasons)


def unit_of(rows: list[dict]) -> str:
    """The method whose wall time is 1: AdaLoRA, as in Table 5, else the first."""
    methods = [row["method"] for row in rows]
    return "adalora" if "adalora" in methods else methods[0]


GROWTH = "Wall seconds by training rows (in brackets: the ratio), one run each but for the most rows:"


def growth_table(rows: list[dict]) -> str:
    """Markdown of wall time by training rows: medians of each size, and their ratios to `unit_of(rows)`."""
    methods, against, body = list(dict.fromkeys(row["method"] for row in rows)), unit_of(rows), []
    for count in sorted({row["train_rows"] for row in rows}):
        own = [row for row in rows if row["train_rows"] == count]
        wall = {name: average(own, name, "wall_seconds") for name in methods}
        base = wall[against] or float("nan")
        cells = ["-" if seconds is None else f"{seconds:.1f} ({seconds / base:.2f})" for seconds in wall.values()]
        body.append([f"{count:,}", *cells])
    return format_table(["training rows", *methods], body, markdown=True)


def average(rows: list[dict], method: str, key: str, kind=np.median) -> float | None:
    values = [row[key] for row in rows if row["method"] == method and row[key] is not None]
    return float(kind(values)) if values else None


def total_table(rows: list[dict]) -> str:
    """Markdown of the rows of whole runs: medians over the rounds, and the mean score of their seeds."""
    against, body = unit_of(rows), []
    for name in dict.fromkeys(row["method"] for row in rows):
        wall = average(rows, name, "wall_seconds")
        cells = [format_score(average(rows, name, "score", np.mean)), number(average(rows, name, "adapter_params"), 0)]
        cells += [number(wall, 1), number(wall / average(rows, against, "wall_seconds"))]
        cells += [number(average(rows, name, f"{phase}_seconds"), 1) for phase in ("search", "retrain")]
        body.append([name, *cells, number(average(rows, name, "passes"), 0)])
    header = ["mean score", "adapter parameters", "wall s", f"to {against}", "search s", "retrain s", "passes"]
    return format_table(["method", *header], body, markdown=True)


# ---- both


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=("steps", "total"), required=True)
    parser.add_argument("--output", type=Path, help="append rows to this .jsonl, and the table to the .md beside it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--model", help="folder or Hub id; total: run_glue.py's model_name_or_path")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--shape", choices=SHAPES, default="roberta-base", help="where there is no --model")
    steps.add_argument("--weights", choices=("fp32", "bf16"), default="fp32", help="of the frozen weights")
    steps.add_argument("--attn", choices=("eager", "sdpa"), default="eager", help="exact needs eager on CUDA")
    steps.add_argument("--compile", action="store_true", help="torch.compile in every variant")
    steps.add_argument("--batch_size", type=int, default=16)
    steps.add_argument("--length", type=int, default=128, help="tokens in a row")
    steps.add_argument("--dropout", type=float, default=0.1, help="of the model and before lora_A")
    steps.add_argument("--warmup", type=int, default=CYCLE, help=f"steps before the clock starts, {CYCLE} times N")
    steps.add_argument("--steps", type=int, default=2 * CYCLE, help=f"steps that are measured, {CYCLE} times N")
    steps.add_argument("--variants", nargs="+", metavar="PART", help="only those whose name contains a PART")
    steps.add_argument("--measure", metavar="NAME", help="one variant, once: print its figures as one line of JSON")
    total = parser.add_argument_group("total")
    total.add_argument("--task_name", choices=GLUE_TASKS, default="sample")
    total.add_argument("--train_file")
    total.add_argument("--validation_file")
    total.add_argument("--num_train_epochs", type=float, default=3.0)
    total.add_argument("--rank", type=int, default=4, help="every method's budget, as the rank of a uniform LoRA")
    total.add_argument("--methods", nargs="*", default=["lora", "adalora", "autolora"])
    total.add_argument("--extra", action="append", default=[], metavar="NAME=ARGUMENTS", help="one more variant")
    total.add_argument("--script_arguments", default="", help="arguments of run_glue.py for every run")
    total.add_argument("--rows", type=int, nargs="*", default=[], help="also with the first N training rows")
    arguments = parser.parse_args()
    foreign = {"steps": total, "total": steps}[arguments.table]
    arguments.foreign = [action.dest for action in foreign._group_actions]  # of the other table
    if arguments.table == "steps" and not arguments.measure and (arguments.warmup % CYCLE or arguments.steps % CYCLE):
        parser.error(f"--warmup and --steps must be multiples of {CYCLE}, so that they hold whole cycles of a search")
    if min(arguments.warmup, arguments.steps, arguments.rounds) < 1:
        parser.error("--warmup, --steps and --rounds must be at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    if arguments.measure:
        print(json.dumps(Bench(arguments).measure(arguments.measure)))
        return
    rows, lines = (table_steps if arguments.table == "steps" else table_total)(arguments)
    hidden = ["output", "measure", "table", "model", "train_file", "validation_file", "foreign", *arguments.foreign]
    settings = {name: value for name, value in vars(arguments).items() if name not in hidden}
    settings["model"] = Path(arguments.model).name if arguments.model else None
    if arguments.model:
        settings.pop("shape", None)
    shared = {"seed": arguments.seed, "settings": settings, "machine": trials.machine(arguments.device)}
    shared["versions"] = {"python": platform.python_version(), **trials.versions("betty-ml", "autolora_trainer")}
    shared["command"] = public_command(sys.argv).replace("cost.py", "benchmarks/cost.py", 1)
    text = f"## {shared['command']}\n\n{shared['machine']}\n\n" + "\n\n".join(lines) + "\n"
    print("\n" + text)
    for row in rows if arguments.output else ():
        trials.append_row(str(arguments.output), {**shared, **row})
    if arguments.output:
        with arguments.output.with_suffix(".md").open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(run_guarded(main, os.path.basename(__file__)))
