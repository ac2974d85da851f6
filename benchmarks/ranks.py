"""Do learned ranks agree between seeds, and do they say anything about the task?

    python benchmarks/ranks.py --data DATA --model FOLDER --output benchmarks/results/ranks
    CUDA_VISIBLE_DEVICES=1 python benchmarks/ranks.py …     # the same again: a worker that shares the searches
    python benchmarks/ranks.py --output benchmarks/results/ranks --report                 # the tables again

For every task and seed one search through the real `AutoLoraTrainer` at the package's defaults, on the same 2,000
rows; the seed changes the split, the order, the LoRA factors and the head. Some more searches see shuffled labels.
The table gives, for every rank rule read from the same searches, the mean Spearman correlation between seeds, over
all modules and within the query and within the value modules. Beside it stand the controls that a rule has to pass
which knows more than the architecture: agreement between different tasks and with shuffled labels has to be lower. A
pattern that is the same everywhere (value over query, deeper over shallower) agrees with itself perfectly, but
between tasks too: it fails. Planted problems are in `benchmarks/planted.py`.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed
from transformers.utils import logging

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments  # noqa: E402
from autolora_trainer.arguments import SEARCH_STEPS  # noqa: E402
from autolora_trainer.rules import RANK_RULES, select_ranks  # noqa: E402
from autolora_trainer.tasks import glue  # noqa: E402
from benchmarks.lib import sharing, trials  # noqa: E402
from benchmarks.lib.patterns import DEFAULT_RULE  # noqa: E402
from benchmarks.lib.significance import cross_agreement, markdown, rank_agreement  # noqa: E402

ROWS = 2000
COMMAND = "python benchmarks/ranks.py --data $DATA --model MODEL"


def load_rows(path: str, shuffled_by: int | None) -> Dataset:
    """The same rows for every seed; with `shuffled_by`, their labels permuted."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    rows = rows[:ROWS]
    if shuffled_by is not None:
        labels = [row["label"] for row in rows]
        random.Random(shuffled_by).shuffle(labels)
        rows = [{**row, "label": label} for row, label in zip(rows, labels)]
    return Dataset.from_list(rows)


def search(options, task: str, seed: int, shuffled: bool) -> dict:
    """One search; the ranks of every rule, without a budget and at rank 2 on average with rank 0 allowed."""
    definition = glue.GLUE_TASKS[task]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = load_rows(os.path.join(options.data, task, "train.jsonl"), 100 + seed if shuffled else None)
    data = glue.tokenize(rows, tokenizer, definition, 128, False, label2id=None)
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=definition.num_labels, dtype="float32"
    )
    settings = {
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": 16,
        "max_steps": SEARCH_STEPS,
        "train_sampling_strategy": "group_by_length",
        **json.loads(options.settings),
    }
    arguments = AutoLoraTrainingArguments(
        tempfile.mkdtemp(),
        seed=seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        **settings,
    )
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=0.1)
    trainer = AutoLoraTrainer(
        model, arguments, train_dataset=data, peft_config=lora, data_collator=DataCollatorWithPadding(tokenizer)
    )
    started = time.perf_counter()
    trainer.train()
    state = trainer.search_state()
    ranks = {rule: select_ranks(state, rule, None, 0 if rule != "threshold" else 1) for rule in RANK_RULES}
    budget = {rule: select_ranks(state, rule, "lora:2", 0) for rule in RANK_RULES}
    return {
        "task": task,
        "seed": seed,
        "shuffled": shuffled,
        "modules": trainer.gates.names,
        "ranks": ranks,
        "ranks_at_lora:2": budget,
        "energy": [round(e, 6) for e in state.energy.tolist()],
        "evidence": [round(value, 2) for value in state.evidence],
        "steps": trainer.state.global_step,
        "passes": trainer.state.global_step + trainer.selection_passes,
        "seconds": round(time.perf_counter() - started, 1),
        "settings": settings,
    }


def report(rows: list[dict]) -> str:
    rows = sorted(rows, key=lambda row: (row["task"], row["seed"]))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    names = rows[0]["modules"]
    columns = {"all": None}
    for kind in ("query", "value"):
        columns[kind] = [i for i, name in enumerate(names) if name.endswith(kind)]
    texts = []
    for field, title in (("ranks", "Ranks without a budget"), ("ranks_at_lora:2", "Rank 2 on average, 0 allowed")):
        body = []
        for rule in (rule for rule in rows[0][field] if rule != "uniform"):  # which has no order
            real = {t: [r[field][rule] for r in rows if r["task"] == t and not r["shuffled"]] for t in tasks}
            noise = {t: [r[field][rule] for r in rows if r["task"] == t and r["shuffled"]] for t in tasks}
            line = [f"**{rule}**" if rule == DEFAULT_RULE else rule]
            for task in tasks:
                line.append(" / ".join(f"{rank_agreement(real[task], c):.2f}" for c in columns.values()))
            pairs = list(itertools.combinations(tasks, 2))
            line.append(
                " / ".join(_mean(cross_agreement(real[a], real[b], c) for a, b in pairs) for c in columns.values())
            )
            with_noise = [t for t in tasks if noise[t]]
            line.append(
                " / ".join(_mean(cross_agreement(real[t], noise[t], c) for t in with_noise) for c in columns.values())
            )
            body.append(line)
        seeds = {t: sum(r["task"] == t and not r["shuffled"] for r in rows) for t in tasks}
        header = ["rule", *(f"{t} ({seeds[t]} seeds)" for t in tasks), "between tasks", "with shuffled labels"]
        texts.append(f"{title}: Spearman over all / query / value modules\n\n" + markdown(header, body))
    texts.append(_controls(rows, tasks, columns))
    default = [
        [
            r["task"],
            r["seed"],
            "yes" if r["shuffled"] else "",
            r["steps"],
            r["passes"],
            " / ".join(map(str, r["evidence"])),
        ]
        for r in rows
    ]
    for line, row in zip(default, rows):
        line += [
            " ".join(map(str, (row["ranks"][DEFAULT_RULE][i] for i in columns[kind]))) for kind in ("query", "value")
        ]
    header = [
        "task",
        "seed",
        "shuffled",
        "steps",
        "passes",
        "held-out t: gain / trend",
        "query, by depth",
        "value, by depth",
    ]
    return "\n\n".join([*texts, f"Ranks of `{DEFAULT_RULE}`\n\n" + markdown(header, default)]) + "\n"


def _controls(rows: list[dict], tasks: list[str], columns: dict) -> str:
    """Task by task for the default rule: a search that has learned its task agrees with itself, not with noise."""
    body = []
    for task in tasks:
        own = [row for row in rows if row["task"] == task]
        real = [row["ranks"][DEFAULT_RULE] for row in own if not row["shuffled"]]
        noise = [row["ranks"][DEFAULT_RULE] for row in own if row["shuffled"]]
        trends = [row["evidence"][1] for row in own if not row["shuffled"]]
        body.append(
            [
                task,
                " / ".join(f"{rank_agreement(real, c):.2f}" for c in columns.values()),
                " / ".join(f"{cross_agreement(real, noise, c):.2f}" for c in columns.values()) if noise else "-",
                f"{sum(trend > 2 for trend in trends)} of {len(trends)}",
            ]
        )
    header = ["task", "between seeds", "with its shuffled labels", "searches whose held-out loss fell (t > 2)"]
    return f"`{DEFAULT_RULE}` against its controls: Spearman over all / query / value modules\n\n" + markdown(
        header, body
    )


def _mean(values) -> str:
    values = list(values)
    return f"{sum(values) / len(values):.2f}" if values else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with a folder per task: train.jsonl")
    parser.add_argument("--model", help="folder of the base model")
    parser.add_argument("--output", required=True, help="rows go to OUTPUT.jsonl, the table to OUTPUT.md")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "cola", "sst2"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shuffled_seeds", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--settings", default="{}", help="JSON: more AutoLoraTrainingArguments")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    path = options.output + ".jsonl"

    wanted = [(s, t, False) for s in range(options.seeds) for t in options.tasks]
    wanted += [(s, t, True) for s in range(options.shuffled_seeds) for t in options.tasks]

    def left():
        done = {(r["seed"], r["task"], r["shuffled"]) for r in trials.read_rows(path)}
        return [(repr(one), one) for one in wanted if one not in done]

    def run(one) -> None:
        seed, task, shuffled = one
        row = search(options, task, seed, shuffled)
        trials.append_row(path, {**row, **trials.origin(), "command": f"{COMMAND} --tasks {task}"})
        kind = "shuffled" if shuffled else ""
        print(task, seed, kind, row["steps"], row["seconds"], row["ranks"][DEFAULT_RULE], flush=True)

    failed = 0
    if not options.report:
        failed = sharing.work_off(path, left, run, lambda one: f"{one[1]} {one[0]}{' shuffled' if one[2] else ''}")
    text = report(trials.read_rows(path))
    with open(options.output + ".md", "w", encoding="utf-8") as file:
        file.write(text)
    print(text)
    return int(failed > 0)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.exit(main())
