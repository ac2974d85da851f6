"""A trial is one run of a script, exactly as its row's command says; a row is what is kept of it.

Arguments of a trial, running in this process or in one of its own, the row and what it says of its place and time, and
the files of rows, with the table beside each.
"""

import contextlib
import datetime
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version

import torch

from autolora_trainer.ranks.learned import LearnedRanks
from benchmarks.lib import sharing

DEFAULTS = "contributions"  # the package's, by their rank rule; rows without it are of commit cd59859 and before
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPTS = {"jnlpba": "run_ner", "ner": "run_ner", "e2e": "run_nlg", "webnlg": "run_nlg", "nlg": "run_nlg"}
GLUE_METRICS = {"cola": ("matthews_correlation", 100), "stsb": ("spearmanr", 100)}
METRICS = {**GLUE_METRICS, "jnlpba": ("f1", 100), "e2e": ("bleu", 1), "webnlg": ("bleu", 1)}  # and factors to points
QUIET = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}  # of a Trainer


def script_of(task: str) -> str:
    """`run_glue`, `run_ner` or `run_nlg`."""
    return SCRIPTS.get(task, "run_glue")


def arguments(settings: dict) -> list[str]:
    """{"min_rank": 0} -> ["--min_rank=0"]; lists become words of their own."""
    typed = []
    for name, value in settings.items():
        if isinstance(value, list):
            typed += [f"--{name}", *map(str, value)]
        elif value is not None:
            typed.append(f"--{name}={value}")
    return typed


def places(data: str | None, model: str | None, task: str) -> list[str]:
    """Where model and rows lie, which depends on the machine; `data` holds a folder per task. Without it the rows come
    from the Hub, without a model it is the one of the settings."""
    typed = [f"--model_name_or_path={model}"] if model else []
    for split in ("train", "validation", "test") if data else ():
        names = (f"{split}_multiref.jsonl", f"{split}.jsonl")  # all references of an input in one row, where there are
        found = [path for path in (os.path.join(data, task, name) for name in names) if os.path.exists(path)]
        if found and (split != "test" or script_of(task) != "run_glue"):  # GLUE keeps the labels of its test rows
            typed.append(f"--{split}_file={found[0]}")
    return typed


def value_of(typed: list[str], name: str) -> str | None:
    """["--seed=1"], "seed" -> "1"; None if it is not there."""
    return next((word.partition("=")[2] for word in typed if word.startswith(f"--{name}=")), None)


def read_rows(path: str) -> list[dict]:
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]  # a killed writer may leave half a line


def reported(rows: list[dict]) -> list[dict]:
    """Rows whose scores count: not those that chose a learning rate, and of several of one task, seed and method the
    latest alone."""
    place = lambda row: (row["task"], row["seed"], row["method"])
    return list({place(row): row for row in rows if row.get("kind") is None}.values())


def append_row(path: str, row: dict) -> None:
    """One line, in one write: an interruption leaves it whole, or a beginning of it that the next row replaces."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    open(path, "ab").close()
    with sharing.lock(path, "rows"), open(path, "rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
        file.seek(whole)
        file.write(json.dumps(row).encode() + b"\n")


def write_table(output: str, text: str) -> None:
    """Print a table, and write it beside its rows."""
    with open(os.path.splitext(output)[0] + ".md", "w", encoding="utf-8") as file:
        file.write(text)
    print(text)


def versions(*more: str) -> dict[str, str | None]:
    """Of the libraries that numbers depend on, and of `more`; None for what is not installed."""
    found = {}
    for name in ("torch", "transformers", "peft", "accelerate", *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(device: str | None = None) -> str:
    """What bits and seconds depend on. `device`: cpu or cuda; default: what a script would take."""
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def origin() -> dict:
    """What a row says of the place and time of its run."""
    return {
        "versions": versions(),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "defaults": DEFAULTS,
    }


def run(script: str, typed: list[str], isolate: bool = False) -> dict:
    """Run a script; its all_results.json. The output folder is the `--output_dir` among `typed`. `isolate`: in a
    process of its own, which has a clean peak of memory, at the price of the start."""
    if isolate:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])}
        argv = [sys.executable, os.path.join(ROOT, f"{script}.py"), *typed]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "the script failed").splitlines()[-1])
        with open(os.path.join(value_of(typed, "output_dir"), "all_results.json"), encoding="utf-8") as file:
            return json.load(file)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return importlib.import_module(script).main(typed)


@contextlib.contextmanager
def scratch_folder(parent: str | None):
    """Yields a folder that one trial will make, in a place of its own that goes when the row is there."""
    if parent:
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as place:
        yield os.path.join(place, "trial")


def row_of(head: dict, settings: list[str], results: dict, folder: str, script: str) -> dict:
    """What is kept of a trial. `head`: task, seed, method, and whatever tells this trial from others. The score is the
    task's own metric in points, on the test rows where those were scored, else on the dev split; the command has names
    in place of this machine's folders."""
    with open(os.path.join(folder, "cost.json"), encoding="utf-8") as file:
        cost = json.load(file)
    ranks_path, total = os.path.join(folder, "ranks.json"), cost["total"]
    timing = re.compile("runtime|per_second|samples|preparation")
    name, factor = METRICS.get(head["task"], ("accuracy", 100))
    splits = ("train", "validation") if script == "run_glue" else ("train", "validation", "test")
    files = " ".join(f"--{split}_file $DATA/{head['task']}/{split}.jsonl" for split in splits)
    return {
        **head,
        "score": round(factor * results.get(f"predict_{name}", results.get(f"eval_{name}")), 3),
        "scores": {k: v for k, v in results.items() if re.match("eval_|predict_", k) and not timing.search(k)},
        "eval_loss": round(results["eval_loss"], 5) if "eval_loss" in results else None,
        **{name: results[name] for name in ("adapter_params", "head_params")},
        "ranks": list(LearnedRanks.load(ranks_path).ranks.values()) if os.path.exists(ranks_path) else None,
        "wall_seconds": total["wall_seconds"],
        "search_seconds": cost.get("search", {}).get("wall_seconds", 0.0),
        **{name: total[name] for name in ("passes", "peak_memory_mb")},
        "settings": settings,
        **origin(),
        "command": f"python {script}.py {' '.join(settings)} --model_name_or_path MODEL {files}",
    }
