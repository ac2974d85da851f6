"""Tables of RESULTS.md that say in a few lines what a page of their own has in full; for report.py."""

import json
import re
import statistics

from benchmarks import planted
from benchmarks.lib.allocation_plan import LONG
from benchmarks.lib.allocation_sizes import DEFAULT_K
from benchmarks.lib.claims import NAMES
from benchmarks.lib.comparison import sizes_cell
from benchmarks.lib.paper_tables import numbers
from benchmarks.lib.significance import markdown

CONTROLS = ("control-linear", "control-transformer", "shuffled-linear")  # where nothing is planted
KINDS = {  # checks of reliability.py, by what they promise
    "a run stopped at any moment, or in the middle of a file, goes on to the same bits": (
        "kill",
        "write",
        "terminate",
    ),
    "each file of a checkpoint cut, flipped or missing: the one before is used": ("damage",),
    "the same command, several processes, other batches: the same numbers": (
        *("determinism", "processes", "processes-dropout", "parity", "equivalence"),
    ),
    "late failures, two runs in one folder, other settings before a resume: nothing is lost": (
        *("late", "pairs", "changes"),
    ),
    "10,000 steps: memory and step time do not grow": ("long",),
    "tokens, hostile folders, numbers that are none, odd surroundings: refused in one line": (
        *("secrets", "hostile", "no number", "surroundings", "tests"),
    ),
}


def planted_short(rows: list[dict]) -> str:
    """How many modules and totals come out exactly, of the default rule and of the paper's count; controls pooled."""
    lines = {(line["problem"], line["rule"]): line for line in planted.summarize(rows)}
    names = sorted({problem for problem, _ in lines}, key=list(planted.PROBLEMS).index)
    groups = {name: [name] for name in names if name not in CONTROLS}
    if controls := [name for name in names if name in CONTROLS]:
        groups["nothing planted, or shuffled rows"] = controls
    body = []
    for label, own in groups.items():
        cells = [label]
        for rule in ("contributions", "threshold"):
            found = [lines[name, rule] for name in own]
            totals, searches = (sum(line[key] for line in found) for key in ("totals", "searches"))
            exact = statistics.mean(line["exact"] for line in found)
            cells += [f"{exact:.1%}", f"{totals} of {searches}"]
        body.append(cells)
    return markdown(["problem", "modules exact", "totals exact", "the paper's rule: modules", "totals"], body)


def passes(rows: list[dict], whole: list[dict]) -> str:
    """What a search takes, by task: passes, and their share of a final training; `whole`: rows of whole searches and
    of LoRA of their rank, whose seconds and memory are compared."""
    body = []
    for task in (task for task in NAMES if task not in LONG):  # whose search is that of fewer rows
        wanted = ("search", task, DEFAULT_K, None)  # and not one whose α stays 1
        own = [r for r in rows if (r["kind"], r["task"], r.get("k"), r.get("label")) == wanted]
        if own:
            steps, found = (statistics.median(r[key] for r in own) for key in ("steps", "passes"))
            shares = (f"{found / length:.1%}" for length in (1000, 3000))
            settled = f"{sum(r['settled'] for r in own)} of {len(own)}"
            body.append([NAMES[task], f"{steps:.0f}", f"{found:.0f}", *shares, settled, *_beside_lora(whole, task)])
    heads = ["task", "weight steps", "passes in all", "of 1,000 steps", "of 3,000", "order settled"]
    return markdown([*heads, "seconds, of 1,000 steps", "memory"], body) if body else ""


def _beside_lora(rows: list[dict], task: str) -> tuple[str, str]:
    """Over seeds: seconds of a search, of those of 1,000 steps of LoRA of its rank, the median and both ends; peak
    memory, to LoRA's, the median."""
    own = {(r["method"], r["seed"]): r for r in rows if r["task"] == task}
    ours = {seed: run for (method, seed), run in own.items() if method == "autolora"}
    pairs = [(run, own["lora", seed]) for seed, run in ours.items() if ("lora", seed) in own]
    if not pairs:
        return "-", "-"
    seconds = [a["search_seconds"] / (1000 * b["wall_seconds"] / b["passes"]) for a, b in pairs]
    memory = (a["peak_memory_mb"] / b["peak_memory_mb"] for a, b in pairs)
    ends = f"{100 * min(seconds):.0f} to {max(seconds):.0%}"
    return f"{statistics.median(seconds):.1%} ({ends})", f"{statistics.median(memory):.2f}"


def steps(rows: list[dict]) -> str:
    """Seconds and memory of a search step, of each machine and shape beside other methods, means over the runs; LoRA
    of rank 8 is 1."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["task"] == "steps":
            how = {name: value for name, value in row["settings"].items() if name not in ("rounds", "variants")}
            shape = f"{how.get('shape') or 'MiniLM'}, {how.get('batch_size')} x {how.get('length')} tokens"
            groups.setdefault((shape, row["machine"], json.dumps(how)), []).append(row)
    columns = {
        "search": ("search, defaults", "step_ratio"),
        "its memory": ("search, defaults", "memory_ratio"),
        "the paper's search": ("search, finite_difference T=1", "step_ratio"),
        "AdaLoRA": ("AdaLoRA 6->4", "step_ratio"),
        "DoRA": ("DoRA r=8", "step_ratio"),
    }
    body = []
    for (shape, machine, _), own in groups.items():
        found = ([r[key] for r in own if r["method"] == method and r.get(key)] for method, key in columns.values())
        cells = (f"{statistics.mean(ratios):.2f}" if ratios else "-" for ratios in found)
        body.append([shape, machine, str(sum(r["method"] == "search, defaults" for r in own)), *cells])
    heads = ["model and batch", "machine", "runs", *columns]
    return markdown(heads, body) if body else ""


def reliability_short(rows: list[dict]) -> str:
    """Checks that held, by what they promise; the whole list has a page."""
    latest = {row["check"]: row for row in rows}
    body = []
    for promise, names in KINDS.items():
        own = [latest[name] for name in names if name in latest]
        if own:
            body.append([promise, f"{sum(r['passed'] for r in own):,} of {sum(r['count'] for r in own):,}"])
    return markdown(["promise", "held"], body) if body else ""


def paper_short(rows: list[dict], labels: tuple[str, ...]) -> str:
    """Mean scores of our rows by method and task, and the paper's averages in a line below."""
    found, paper = {}, numbers()["table1"]
    for row in rows:
        found.setdefault((row["method"], row["task"]), []).append(row["score"])
    tasks = [task for task in paper["columns"] if any(own == task for _, own in found)]
    methods = [label for label in labels if any(own == label for own, _ in found)]
    body = []
    for label in methods:
        cells = [found.get((label, task)) for task in tasks]
        size = sizes_cell([row for row in rows if row["method"] == label], "adapter_params")
        body.append([label, size, *("-" if own is None else f"{statistics.mean(own):.1f}" for own in cells)])
    if not body:
        return ""
    averages = ", ".join(f"{line['name']} {line['scores'][-1]}" for line in paper["methods"].values())
    note = f"The paper's averages, RoBERTa-base on all of GLUE: {averages}."
    return f"{markdown(['method', 'parameters', *tasks], body)}\n\n{note}"


def open_runs(text: str) -> str:
    """The commands that pages name as not measured yet, each once."""
    found = dict.fromkeys(re.findall(r"(?:N|n)ot measured yet[^:`]*: `([^`]+)`", text))
    return "\n".join(f"- `{command}`" for command in found)
