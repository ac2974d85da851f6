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
from autolora_trainer.search.arguments import SEARCH_STEPS  # noqa: E402
from autolora_trainer.search.rules import RANK_RULES, select_ranks  # noqa: E402
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
    settings = {"learning_rate": options.learning_rate, "per_device_train_batch_size": 16, "max_steps": SEARCH_STEPS}
    settings |= {"train_sampling_strategy": "group_by_length", **json.loads(options.settings)}
    arguments = AutoLoraTrainingArguments(tempfile.mkdtemp(), seed=seed, **trials.QUIET, **settings)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=0.1)
    trainer = AutoLoraTrainer(
        model, arguments, train_dataset=data, peft_config=lora, data_collator=DataCollatorWithPadding(tokenizer)
    )
    started = time.perf_counter()
    trainer.train()
    state = trainer.search_state()
    return {
        **{"task": task, "seed": seed, "shuffled": shuffled, "modules": trainer.gates.names},
        "ranks": {rule: select_ranks(state, rule, None, 0 if rule != "threshold" else 1) for rule in RANK_RULES},
        "ranks_at_lora:2": {rule: select_ranks(state, rule, "lora:2", 0) for rule in RANK_RULES},
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
    columns = [None, *([i for i, n in enumerate(rows[0]["modules"]) if n.endswith(k)] for k in ("query", "value"))]
    among = "Spearman over all / query / value modules"

    def learned(task, rule, shuffled, field="ranks"):
        return [r[field][rule] for r in rows if (r["task"], r["shuffled"]) == (task, shuffled)]

    def agreement(pairs) -> str:
        """Means over pairs of lists of patterns; a list by itself is compared with itself."""
        values = [[cross_agreement(*p, c) if len(p) > 1 else rank_agreement(*p, c) for p in pairs] for c in columns]
        return " / ".join(f"{sum(own) / len(own):.2f}" if own else "-" for own in values)

    with_noise, texts = [t for t in tasks if learned(t, DEFAULT_RULE, True)], []
    for field, title in (("ranks", "Ranks without a budget"), ("ranks_at_lora:2", "Rank 2 on average, 0 allowed")):
        body = []
        for rule in (rule for rule in rows[0][field] if rule != "uniform"):  # which has no order
            real = {task: learned(task, rule, False, field) for task in tasks}
            line = [agreement([(real[task],)]) for task in tasks]
            line.append(agreement(list(itertools.combinations(real.values(), 2))))
            line.append(agreement([(real[task], learned(task, rule, True, field)) for task in with_noise]))
            body.append([f"**{rule}**" if rule == DEFAULT_RULE else rule, *line])
        seeds = [f"{task} ({len(real[task])} seeds)" for task in tasks]
        table = markdown(["rule", *seeds, "between tasks", "with shuffled labels"], body)
        texts.append(f"{title}: {among}\n\n{table}")
    body = (
        []
    )  # task by task for the default rule: a search that has learned its task agrees with itself, not with noise
    for task in tasks:
        real, noise = (learned(task, DEFAULT_RULE, shuffled) for shuffled in (False, True))
        trends = [row["evidence"][1] for row in rows if row["task"] == task and not row["shuffled"]]
        fell = f"{sum(trend > 2 for trend in trends)} of {len(trends)}"
        body.append([task, agreement([(real,)]), agreement([(real, noise)]) if noise else "-", fell])
    header = ["task", "between seeds", "with its shuffled labels", "searches whose held-out loss fell (t > 2)"]
    texts.append(f"`{DEFAULT_RULE}` against its controls: {among}\n\n{markdown(header, body)}")
    body = []
    for row in rows:
        place = [row["task"], row["seed"], "yes" if row["shuffled"] else "", row["steps"], row["passes"]]
        depths = [" ".join(str(row["ranks"][DEFAULT_RULE][i]) for i in own) for own in columns[1:]]
        body.append([*place, " / ".join(map(str, row["evidence"])), *depths])
    header = ["task", "seed", "shuffled", "steps", "passes", "held-out t: gain / trend"]
    table = markdown([*header, "query, by depth", "value, by depth"], body)
    return "\n\n".join([*texts, f"Ranks of `{DEFAULT_RULE}`\n\n{table}"]) + "\n"


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
        print(
            task,
            seed,
            "shuffled" if shuffled else "",
            row["steps"],
            row["seconds"],
            row["ranks"][DEFAULT_RULE],
            flush=True,
        )

    failed = 0
    if not options.report:
        failed = sharing.work_off(path, left, run, lambda one: f"{one[1]} {one[0]}{' shuffled' if one[2] else ''}")
    trials.write_table(path, report(trials.read_rows(path)))
    return int(failed > 0)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.exit(main())
