"""What a plan of `compare.py` says: which trials there are, with which arguments, and which have no row yet.

What a plan may have is at the head of `benchmarks/compare.py`. Trials that need the rows of others (a learning rate
that tuning chooses, as many epochs as fit another method's time) are there once those rows are.
"""

import sys

import yaml

from benchmarks.lib import trials

TUNING = "tuning"
SAME_TIME = "{method}, given the time of {as}"
DEFAULTS = {
    **{"tasks": None, "methods": None, "seeds": 1, "task_seeds": {}, "settings": {}, "task_settings": {}},
    **{"reference": None, "same_time": None, "tuning": None},
}


def load_plan(path: str) -> dict:
    """Read and check a plan; `SystemExit` with one line for a plan that cannot be run."""
    try:
        with open(path, encoding="utf-8") as file:
            plan = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        sys.exit(f"compare.py: error: {path} cannot be read: {' '.join(str(error).split())}")
    if problem := next(_problems(plan), None):
        sys.exit(f"compare.py: error: {path}: {problem}. See the head of benchmarks/compare.py.")
    plan = {**DEFAULTS, **plan}
    plan["methods"] = {label: settings or {} for label, settings in plan["methods"].items()}
    return plan


def _problems(plan):
    """What is wrong with a plan."""
    if not isinstance(plan, dict) or not {"tasks", "methods"} <= plan.keys():
        yield "needs tasks and methods"
        return
    for name in sorted(plan.keys() - DEFAULTS.keys()):
        yield f"has {name!r}; known are {', '.join(sorted(DEFAULTS))}"
    tasks, methods = plan["tasks"], plan["methods"]
    if plan.get("reference") is not None and plan["reference"] not in methods:
        yield f"names the reference {plan['reference']!r}, which is none of its methods"
    same = plan.get("same_time")
    if same and not {same.get("as"), same.get("method")} <= methods.keys():
        yield "same_time needs `as` and `method`, both among the methods"
    for name, given, among in (
        ("task_seeds", plan.get("task_seeds") or {}, tasks),
        ("task_settings", plan.get("task_settings") or {}, tasks),
        ("method_learning_rate", (plan.get("tuning") or {}).get("method_learning_rate", {}), methods),
    ):
        for unknown in sorted(given.keys() - set(among)):
            yield f"{name} names {unknown!r}, which is none of {', '.join(among)}"


def seeds(plan: dict, task: str) -> int:
    """How many seeds a task has; they are 0, 1, …"""
    return plan["task_seeds"].get(task, plan["seeds"])


def trial_settings(plan: dict, trial: dict) -> dict:
    """The arguments of a trial, by name."""
    label = trial["method"]
    own = plan["methods"].get(label, {})
    settings = {"method": own.get("method", label), "task_name": trial["task"], **plan["settings"]}
    settings |= plan["task_settings"].get(trial["task"], {}) | own | trial.get("changes", {})
    return {**settings, "seed": trial["seed"]}


def planned(plan: dict, rows: list[dict]):
    """Every trial that can be run with the rows that are there: seed by seed, so that early rows already compare, a
    task's tuning before its first seed, and rows that need others last."""
    for seed in range(max(seeds(plan, task) for task in plan["tasks"])):
        for task in plan["tasks"]:
            if seed == 0 and plan["tuning"]:
                yield from tuning_trials(plan, task)
            for label in plan["methods"] if seed < seeds(plan, task) else ():
                changes = tuned(plan, rows, task, label) if plan["tuning"] else {}
                if changes is not None:
                    yield {"task": task, "seed": seed, "method": label, "changes": changes}
    if same := plan.get("same_time"):
        for task in plan["tasks"]:
            for seed in range(seeds(plan, task)):
                yield from _same_time(plan, rows, same, task, seed)


def _same_time(plan: dict, rows: list[dict], same: dict, task: str, seed: int):
    """The method of `same_time`, with the epochs that fit the other's time, once both have been timed."""
    seconds = {
        r["method"]: r["wall_seconds"] for r in rows if (r["task"], r["seed"], r.get("kind")) == (task, seed, None)
    }
    method, own = same["method"], plan["methods"][same["method"]]
    if {same["as"], method} <= seconds.keys():
        epochs = float((plan["settings"] | plan["task_settings"].get(task, {}) | own).get("num_train_epochs", 3))
        rate = (tuned(plan, rows, task, method) or {}) if plan["tuning"] else {}
        changes = {"method": own.get("method", method), **own, **rate}
        changes["num_train_epochs"] = round(epochs * seconds[same["as"]] / seconds[method], 2)
        yield {"task": task, "seed": seed, "method": SAME_TIME.format(**same), "changes": changes}


def rates(plan: dict, label: str) -> list:
    """The learning rates that a method may choose from."""
    return plan["tuning"].get("method_learning_rate", {}).get(label, plan["tuning"]["learning_rate"])


def tuning_trials(plan: dict, task: str):
    """One run per method and rate on rows held out of the task's training file."""
    tuning = plan["tuning"]
    shared = {"task": task, "seed": tuning.get("seed", 100), "kind": TUNING}
    for label in plan["methods"]:
        for rate in rates(plan, label):
            changes = {**tuning.get("settings", {}), "learning_rate": rate}
            yield {**shared, "val_fraction": tuning.get("val_fraction", 0.2), "method": label, "changes": changes}


def tuned(plan: dict, rows: list[dict], task: str, label: str) -> dict | None:
    """The rate of a method's best score on a task, of equal scores that of the lowest loss; None while its tuning is
    unfinished."""
    own = [r for r in rows if (r["task"], r["method"], r.get("kind")) == (task, label, TUNING)]
    wanted = rates(plan, label)
    tried = [(rate, row) for row in own for rate in wanted if f"--learning_rate={rate}" in row["settings"]]
    scores = {rate: (row["score"], -(row.get("eval_loss") or 0)) for rate, row in tried}
    return {"learning_rate": max(scores, key=scores.get)} if len(scores) == len(wanted) else None


def without_rate(plan: dict, rows: list[dict]) -> int:
    """How many reported runs have no learning rate yet."""
    pairs = [(task, label) for task in plan["tasks"] for label in plan["methods"]] if plan["tuning"] else []
    return sum(seeds(plan, task) for task, label in pairs if tuned(plan, rows, task, label) is None)


def key(row: dict) -> tuple:
    """What is the same trial, in whatever order its arguments stand."""
    place = row["task"], row["seed"], row["method"], row.get("kind")
    return *place, *sorted(row["settings"])


def unfinished(plan: dict, rows: list[dict]) -> list[tuple[dict, list[str]]]:
    """Trials that can be run with the rows that are there, and have no row: (trial, arguments of its script)."""
    finished = {key(row) for row in rows}
    typed = [(trial, trials.arguments(trial_settings(plan, trial))) for trial in planned(plan, rows)]
    return [(trial, settings) for trial, settings in typed if key({**trial, "settings": settings}) not in finished]
