"""Does every configuration of the paper's tables run? Each plan, cut to a few steps, on tiny models of its kind."""

import importlib
import os
import sys
from types import SimpleNamespace

import pytest
from transformers import set_seed

import run_nlg
from autolora_trainer.scripts import results
from autolora_trainer.scripts.job import Job
from autolora_trainer.search.arguments import REMOVED_RULES
from autolora_trainer.tasks import nlg_metrics
from autolora_trainer.tasks.glue import GLUE_TASKS
from benchmarks import compare
from benchmarks.lib import plans, trials
from tests.helpers.methods import Trials
from tests.helpers.models import byte_gpt2, byte_tokenizer, tiny_checkpoint
from tests.helpers.rows import restaurants, reviews, write_rows

FOLDER = os.path.join(trials.ROOT, "benchmarks")
PAPER = sorted(name.removesuffix(".yaml") for name in os.listdir(os.path.join(FOLDER, "paper")) if "table" in name)
PLANS = sorted(name.removesuffix(".yaml") for name in os.listdir(os.path.join(FOLDER, "plans")))
CUT = {  # what differs from the plan: length, and the size of what is decoded
    "max_steps": 3,  # AdaLoRA needs as many
    "search_max_steps": 4,
    "hypergradient_interval": 1,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "logging_strategy": "no",
}
CUT_NLG = {"num_beams": 2, "max_new_tokens": 4}
ENTITIES = {"B-praise": "B-DNA", "I-praise": "I-DNA", "B-blame": "B-protein", "I-blame": "I-protein"}


def load(folder, name):
    return plans.load_plan(os.path.join(FOLDER, folder, f"{name}.yaml"))


def pairs(plan):
    """(task, method): every task and every method of a plan at least once."""
    tasks, methods = plan["tasks"], list(plan["methods"])
    count = max(len(tasks), len(methods))
    return [(tasks[i % len(tasks)], methods[i % len(methods)]) for i in range(count)]


def new_pairs():
    """{plan of the paper: its pairs whose task, or whose method in that script, no plan before it has}."""
    seen, found = set(), {}
    for name in PAPER:
        plan, found[name] = load("paper", name), []
        for task, label in pairs(plan):
            what = {task, f"{trials.script_of(task)} {plan['methods'][label]}"}
            if not what <= seen:
                found[name].append((task, label))
            seen |= what
    return {name: own for name, own in found.items() if own}


def glue_rows(name, count, start=0):
    """Rows of a GLUE task in the tiny checkpoint's words, of every label."""
    task = GLUE_TASKS[name]
    return [
        {
            **{column: f"the film was {('good', 'bad', 'fine')[i % 3]}" for column in task.text_columns},
            "label": i % 6 / 2 if task.is_regression else i % task.num_labels,
        }
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny RoBERTa, a tiny GPT-2, and a folder of rows for every task."""
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder / "roberta")
    set_seed(0)
    byte_gpt2(initializer_range=0.1).save_pretrained(folder / "gpt2")
    byte_tokenizer().save_pretrained(folder / "gpt2")
    triples = [{"category": "City", "triples": [f"A | size | {i}"], "references": [f"A is {i}."]} for i in range(12)]
    entities = [{**row, "tags": [ENTITIES.get(tag, tag) for tag in row["tags"]]} for row in reviews(12)]
    rows = {name: glue_rows(name, 12) for name in GLUE_TASKS if name != "sample"}
    rows |= {"jnlpba": entities, "e2e": restaurants(12), "webnlg": triples}
    for task, made in rows.items():
        (folder / task).mkdir()
        for split in ("train", "validation", "test"):
            write_rows(folder / task / f"{split}.jsonl", made)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Neither pictures, nor Java, nor a process for a trial of the grid."""
    for draw in ("save_findings", "save_selection_history"):
        monkeypatch.setattr(results, draw, lambda *arguments: None)
    monkeypatch.setattr(Job, "try_ranks", Trials())
    monkeypatch.setattr(nlg_metrics, "score", lambda *arguments: {"bleu": 12.5})
    monkeypatch.setattr(run_nlg, "check_libraries", lambda: None)


@pytest.mark.parametrize("name", new_pairs())
def test_every_configuration_runs_a_few_steps(place, tmp_path, name):
    plan = load("paper", name)
    model = place / ("gpt2" if plan["settings"]["model_name_or_path"].startswith("gpt2") else "roberta")
    options = SimpleNamespace(data=str(place), model=str(model), isolate=False, scratch=str(tmp_path))
    options.output = str(tmp_path / "rows.jsonl")
    for task, label in new_pairs()[name]:
        own = {**plan["methods"][label], **CUT, **(CUT_NLG if task in ("e2e", "webnlg") else {})}
        compare.work(options, {**plan, "tasks": [task], "methods": {label: own}, "seeds": 1, "same_time": None})
    rows = trials.read_rows(options.output)
    assert [(row["task"], row["method"]) for row in rows] == new_pairs()[name]
    typed = {word.split("=")[0] for row in rows for word in row["settings"]}
    assert {f"--{setting}" for setting in plan["settings"]} <= typed
    # AdaLoRA may drop every value here: rates that are still warming up have moved none
    assert all(row["adapter_params"] > 0 for row in rows if row["method"] != "adalora")
    assert all(row["date"] and row["machine"] and row["versions"]["torch"] for row in rows)


@pytest.mark.parametrize("folder, name", [("paper", name) for name in PAPER] + [("plans", name) for name in PLANS])
def test_dry_run_names_every_trial_in_arguments_that_the_scripts_take(tmp_path, monkeypatch, capsys, folder, name):
    path = os.path.join(FOLDER, folder, f"{name}.yaml")
    monkeypatch.setattr(sys, "argv", ["compare.py", path, "--output", str(tmp_path / "none.jsonl"), "--dry_run"])
    compare.main()
    *lines, last = capsys.readouterr().out.splitlines()
    plan = load(folder, name)
    places = [(task, seed) for task in plan["tasks"] for seed in range(plans.seeds(plan, task))]
    runs = len(places) * len(plan["methods"])
    if plan["tuning"]:
        assert lines.pop().strip() == f"… and {runs} reported runs, once their rates are known"
        runs = len(plan["tasks"]) * sum(len(plans.rates(plan, label)) for label in plan["methods"])
    assert len(lines) == runs and f"{runs} are left" in last
    for task, label in pairs(plan):  # an argument that a script does not know raises UsageError
        if plan["methods"][label].get("rank_rule") in REMOVED_RULES:  # its rows are of an earlier commit
            continue
        trial = {"task": task, "method": label, "seed": 0}
        script = importlib.import_module(trials.script_of(task))
        monkeypatch.setattr(script, "execute", lambda application, *arguments: arguments)
        *_, method, training = script.main(trials.arguments(plans.trial_settings(plan, trial)))
        assert training.seed == 0 and method.method in (label, plan["methods"][label].get("method"))


def test_the_core_table_has_the_seeds_and_methods_that_it_promises():
    plan = load("plans", "core")
    assert [plans.seeds(plan, task) for task in plan["tasks"]] == [8, 8, 8, 5, 5, 5]
    trial = {"task": "mrpc", "method": "uniform r8", "seed": 3, "changes": {"learning_rate": 0.002}}
    typed = trials.arguments(plans.trial_settings(plan, trial))
    assert {"--method=uniform", "--rank_budget=lora:8", "--learning_rate=0.002", "--seed=3"} <= set(typed)
    assert trials.value_of(typed, "max_train_samples") == "2000"  # as many as its rates are tuned on
    assert trials.value_of(typed, "max_eval_samples") is None
