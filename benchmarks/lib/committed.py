"""The committed rows, the plans behind them, and the lines that say how they came about; for report.py."""

import os

from benchmarks.lib import comparison, plans, trials
from benchmarks.lib.trials import reported

COMPARED = ("core", "ner", "e2e", "webnlg")  # files whose rows have the ranks of the default


def rows_of(*names: str) -> list[dict]:
    """Rows of `benchmarks/results/<name>.jsonl`; none where there is no such file."""
    folder = os.path.join(trials.ROOT, "benchmarks", "results")
    return [row for name in names for row in trials.read_rows(os.path.join(folder, f"{name}.jsonl"))]


def plan_of(path: str) -> dict:
    """A plan of compare.py, by its path from `benchmarks` without the ending."""
    return plans.load_plan(os.path.join(trials.ROOT, "benchmarks", f"{path}.yaml"))


def command_of(plan: str, output: str) -> str:
    """The command that works off a plan; at the paper's scale, models and rows come from the Hub."""
    model = "GPT2" if plan in ("plans/e2e", "plans/webnlg") else "MODEL"
    places = "" if plan.startswith("paper/") else f"--data $DATA --model {model} "
    return f"python benchmarks/compare.py benchmarks/{plan}.yaml {places}--output benchmarks/results/{output}.jsonl"


def provenance(rows: list[dict], *commands: str) -> str:
    """How rows came about: commands, seeds, versions, machines and dates, as far as they say."""
    parts = [" and ".join(f"`{command}`" for command in dict.fromkeys(commands)), f"{len(rows)} rows"]
    seeds = sorted({row["seed"] for row in rows if "seed" in row})
    spread = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    shown = f"{seeds[0]} to {seeds[-1]}" if spread else ", ".join(map(str, seeds))
    parts += [f"seed{'s' * (len(seeds) > 1)} {shown}"] if seeds else []
    for name in ("torch", "transformers", "peft", "accelerate"):
        found = sorted({row["versions"][name] for row in rows if row.get("versions", {}).get(name)})
        parts += [f"{name} {' and '.join(found)}"] if found else []
    parts += sorted({row["machine"] for row in rows if row.get("machine")})
    dates = sorted({row["date"] for row in rows if row.get("date")})
    parts += [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else []
    return "Command: " + "; ".join(parts) + "."


def not_measured(command: str, what: str = "not measured yet") -> str:
    return f"{what}: `{command}`"


def progress(rows: list[dict], plan: dict, command: str) -> str:
    """How much of a plan is missing; nothing once all of it is there."""
    places = [(task, seed) for task in plan["tasks"] for seed in range(plans.seeds(plan, task))]
    wanted = {(*place, method) for place in places for method in plan["methods"]}
    left = wanted - {(row["task"], row["seed"], row["method"]) for row in reported(rows)}
    what = "not measured yet" + (f", {len(left)} of {len(wanted)} runs" if len(left) < len(wanted) else "")
    return not_measured(command, what) if left else ""


def plan_block(name: str) -> str:
    """The table of a plan's rows, where they come from, and what is missing."""
    rows, plan, command = reported(rows_of(name)), plan_of(f"plans/{name}"), command_of(f"plans/{name}", name)
    shown = [comparison.report(rows, plan), provenance(rows, command)] if rows else []
    return join(*shown, progress(rows, plan, command))


def join(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part)
