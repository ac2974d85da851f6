r"""Is the hypergradient that the search computes the derivative it claims to be, and does its implicit term matter?

    python benchmarks/hypergradient.py --model FOLDER --train_file FILE --task_name mrpc --output OUT
    python benchmarks/hypergradient.py --model FOLDER --train_file FILE --task_name mrpc --output OUT --section ranks

Section `accuracy` trains a search and compares, at trained states, ways to compute Eq. 5 with exact double backward,
everything in fp32: cosine and relative error of the implicit term (whose coefficient cancels in both: it is the mixed
second derivative times J v) and of the whole hypergradient, both by β. The weight steps between the measured ones are
taken in fp32, the measured ones in bf16, so that a CPU without bf16 units gets there.

Section `ranks` runs whole searches that differ in nothing but the hypergradient, and says how much α and the ranks
differ, beside how much they differ between seeds.

Writes OUT/<section>.jsonl and OUT/<section>.md; without --model, the built-in encoder (and without --train_file, the
built-in sample).
"""

import argparse
import itertools
import json
import os
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext

import torch
from datasets import disable_progress_bars
from peft import LoraConfig
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed
from transformers.utils import logging as transformers_logging

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, hypergradient  # noqa: E402
from autolora_trainer.hypergradient import exact, finite_difference, selection_gradient  # noqa: E402
from autolora_trainer.rules import select_ranks  # noqa: E402
from autolora_trainer.sample import encoder_path, load_sample  # noqa: E402
from autolora_trainer.tasks import glue  # noqa: E402
from autolora_trainer.trainer_utils import RandomState, full_precision  # noqa: E402
from benchmarks import trials  # noqa: E402

COMMAND = "python benchmarks/hypergradient.py"
RESULTS = "benchmarks/results/hypergradient"
INTERVAL = 4  # weight steps between selection steps


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=encoder_path())
    parser.add_argument("--train_file", help="Rows of the task; default: the built-in sample.")
    parser.add_argument("--task_name", default="sample")
    parser.add_argument("--output", required=True)
    parser.add_argument("--section", choices=("accuracy", "ranks"), default="accuracy")
    parser.add_argument("--states", type=int, nargs="+", default=[8, 40], help="Weight steps before a measurement.")
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60, help="Weight steps of a search of section ranks.")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--max_seq_length", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    options = parser.parse_args(argv)
    if any(state % INTERVAL for state in options.states):
        parser.error(f"--states must be multiples of {INTERVAL}, the steps that take a selection step")
    return options


def make(options, kind=AutoLoraTrainer, dropout=0.1, seed=1, data=None, **settings):
    """A search on the given model and rows."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if data is None:
        data = load_data(options, tokenizer)
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        num_labels=glue.GLUE_TASKS[options.task_name].num_labels,
        dtype="float32",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    arguments = AutoLoraTrainingArguments(
        os.path.join(options.output, "search"),
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        **settings,
    )
    lora = LoraConfig(
        task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=dropout
    )  # as the scripts
    collator = DataCollatorWithPadding(tokenizer)
    return kind(model, arguments, train_dataset=data, peft_config=lora, data_collator=collator)


def load_data(options, tokenizer):
    task = glue.GLUE_TASKS[options.task_name]
    rows = glue.load_task(task, train_file=options.train_file, loader=load_sample)["train"]
    rows = rows.select(range(min(options.max_train_samples, len(rows))))
    return glue.tokenize(rows, tokenizer, task, options.max_seq_length, False)


# ---- accuracy


@contextmanager
def lora_branch_in_full_precision(layers):
    """Under autocast: base products in bf16, `lora_A`, `lora_B` and the sum in fp32."""

    def to_full(module, args, output):
        return output.float()

    def without_autocast(forward):
        def run(x):
            with torch.autocast(x.device.type, enabled=False):
                return forward(x.float())

        return run

    handles, branches = [], []
    for layer in layers:
        handles.append(layer.get_base_layer().register_forward_hook(to_full))
        branches += [layer.lora_A["default"], layer.lora_B["default"]]
    for module in branches:
        module.forward = without_autocast(module.forward)
    try:
        yield
    finally:
        for module in branches:
            del module.forward
        for handle in handles:
            handle.remove()


class Measured(AutoLoraTrainer):
    """A search that compares the ways to compute its hypergradient before the selection steps in `states`."""

    states, labels, rows = (), {}, ()

    def training_step(self, *args, **kwargs):
        with nullcontext() if self.state.global_step in self.states else full_precision(self.model):
            return super().training_step(*args, **kwargs)

    def outer_step(self, num_items_in_batch=None):
        if self.state.global_step in self.states:
            self.measure(num_items_in_batch)
        super().outer_step(num_items_in_batch)

    def measure(self, items):
        now, position, count = RandomState(self.args.device), self._val_batches.position, len(self._window)
        batches = [self._prepare_inputs(next(self._val_batches)) for _ in range(count)]
        selection, pull_back, rate = self.gates.selection, self.gates.pull_back, self.optimizer.param_groups[0]["lr"]
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        bf16_gradient = [weight.grad for weight in weights]

        def val(precision):
            def losses():
                now.restore()
                with precision():
                    for inputs in batches:
                        yield self._micro_loss(inputs, None, count)

            return losses

        def train(precision, fresh=False):
            def losses():
                with precision():
                    for inputs, random_state in self._window:
                        if not fresh:
                            random_state.restore()
                        yield self._micro_loss(inputs, items, count)

            return losses

        fp32, bf16 = lambda: full_precision(self.model), nullcontext
        mixed = lambda: lora_branch_in_full_precision(self.gates.layers.values())
        gradient, _ = hypergradient.gradients(train(fp32), weights)
        base = selection_gradient(train(fp32), selection)

        def shipped(virtual_step, finite_difference):
            """What the trainer itself computes."""
            self.args.virtual_step, self.args.finite_difference = virtual_step, finite_difference
            self._val_batches.position = position
            now.restore()
            return self._hypergradient(items)

        def estimate(step, g, v, difference, fresh=False, **settings):
            self.args.virtual_step = step
            passes = train(difference, fresh), val(v), weights, selection, g, self._virtual_step(g)
            return finite_difference(*passes, **settings)

        chosen = self.args.virtual_step, self.args.finite_difference
        for step in ("sgd", "adamw"):
            self.args.virtual_step = step
            truth = exact(
                train(fp32), val(fp32), weights, selection, gradient, self._virtual_step(gradient)
            )  # fp32 throughout
            ways = {
                "fp32, central, R = 0.01": lambda: estimate(step, gradient, fp32, fp32),
                "fp32, central, R = 0.1": lambda: estimate(step, gradient, fp32, fp32, radius=0.1),
                "fp32, one-sided, R = 0.01": lambda: estimate(step, gradient, fp32, fp32, radius=0.01, base=base),
                "fp32, one-sided, R = 0.001": lambda: estimate(step, gradient, fp32, fp32, base=base),
                "bf16 everywhere": lambda: estimate(step, bf16_gradient, bf16, bf16),
                "bf16, LoRA branch fp32, R = 0.1": lambda: estimate(step, bf16_gradient, mixed, mixed, radius=0.1),
                "bf16, differences fp32": lambda: estimate(step, bf16_gradient, bf16, fp32),
                "**bf16 as shipped, central**": lambda: shipped(step, "central"),
                "**bf16 as shipped, one-sided**": lambda: shipped(step, "one_sided"),
            }
            if self.labels["dropout"]:
                ways["fp32, fresh masks"] = lambda: estimate(step, gradient, fp32, fp32, fresh=True)
            sizes = [pull_back(term).norm().item() for term in (truth.implicit, truth.direct)]
            ratio = sizes[0] / sizes[1]
            for name, compute in ways.items():
                result = compute()
                row = {**self.labels, "state": self.state.global_step, "virtual_step": step, "way": name}
                row |= compare("implicit", pull_back(result.implicit), pull_back(truth.implicit))
                row |= compare("whole", pull_back(result.total), pull_back(truth.total))
                row |= {"ratio": ratio, "ratio_coefficient_1": ratio / rate if step == "sgd" else None}
                self.rows.append(row)
                print(json.dumps(row), flush=True)
        self.args.virtual_step, self.args.finite_difference = chosen
        self._val_batches.position = position
        now.restore()


def compare(name, value, truth):
    """Cosine and relative error; of unit vectors, because `cosine_similarity` takes norms below 1e-8 for zero."""
    return {
        f"{name}_cosine": ((value / value.norm()) * (truth / truth.norm())).sum().item(),
        f"{name}_error": ((value - truth).norm() / truth.norm()).item(),
    }


def accuracy(options):
    rows = []
    for dropout, accumulation in itertools.product(options.dropout, options.accumulation):
        trainer = make(
            options,
            Measured,
            dropout=dropout,
            max_steps=max(options.states) + 1,
            gradient_accumulation_steps=accumulation,
            hypergradient="finite_difference",
            hypergradient_interval=INTERVAL,
            bf16=True,
        )
        trainer.states, trainer.rows = tuple(options.states), rows
        trainer.labels = {"seed": trainer.args.seed, "dropout": dropout, "accumulation": accumulation}
        start, before = time.perf_counter(), len(rows)
        trainer.train()
        for row in rows[before:]:  # one training measures them all
            row["seconds"] = round(time.perf_counter() - start, 1)
    return rows


def accuracy_table(rows):
    """Markdown of the rows of `accuracy`."""
    text = (
        "Worst cosine and relative error over the states, by virtual step.\n\n"
        "| way | dropout | virtual step | implicit term: cosine | error | whole: cosine | error |\n"
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |\n"
    )
    key = lambda row: (row["way"], row["dropout"], row["virtual_step"])
    for group in dict.fromkeys(map(key, rows)):
        members = [row for row in rows if key(row) == group]
        way, dropout, step = group
        cells = [
            f"{min(r['implicit_cosine'] for r in members):.5f}",
            f"{max(r['implicit_error'] for r in members):.1e}",
        ]
        cells += [f"{min(r['whole_cosine'] for r in members):.5f}", f"{max(r['whole_error'] for r in members):.1e}"]
        text += f"| {way} | {dropout} | {step} | {' | '.join(cells)} |\n"
    text += (
        "\n| state | dropout | accumulation | \\|implicit\\| / \\|direct\\|: sgd, η = lr | coefficient 1 | adamw |\n"
    )
    text += "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
    place = lambda row: (row["state"], row["dropout"], row["accumulation"])
    for group in dict.fromkeys(map(place, rows)):
        members = {row["virtual_step"]: row for row in rows if place(row) == group}
        plain, adamw = members["sgd"], members["adamw"]
        text += f"| {' | '.join(map(str, group))} | {plain['ratio']:.1e} | {plain['ratio_coefficient_1']:.1e} | "
        text += f"{adamw['ratio']:.1e} |\n"
    return text


# ---- ranks

SEARCHES = {
    "first order": {"hypergradient": "first_order"},
    "adamw": {"hypergradient": "finite_difference", "virtual_step": "adamw"},
    "sgd, η = lr": {"hypergradient": "finite_difference", "virtual_step": "sgd"},
    "sgd, η = 1": {"hypergradient": "finite_difference", "virtual_step": "sgd", "inner_lr": 1.0},
}
RULES = ("strength", "threshold", "sensitivity")


def ranks(options):
    data = load_data(options, AutoTokenizer.from_pretrained(options.model))
    rows = []
    for seed, (name, settings) in itertools.product(options.seeds, SEARCHES.items()):
        start = time.perf_counter()
        trainer = make(options, seed=seed, data=data, max_steps=options.steps, **settings)
        trainer.train()
        learned = {rule: select_ranks(trainer.search_state(), rule, None, 1) for rule in RULES}
        alpha, seconds = trainer.gates.selection.flatten().tolist(), round(time.perf_counter() - start, 1)
        rows.append(
            {"name": name, "seed": seed, "steps": options.steps, "seconds": seconds, "alpha": alpha, **learned}
        )
        print(f"{name}, seed {seed}: {seconds:.0f} s, {learned['strength']}", flush=True)
    return rows


def ranks_table(rows):
    """Markdown of the rows of `ranks`."""
    found = {(row["name"], row["seed"]): row for row in rows}
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    pairs = {f"{name} / first order, same seed": [] for name in SEARCHES if name != "first order"}
    for seed in seeds:
        for name in pairs:
            pairs[name].append(((name.removesuffix(" / first order, same seed"), seed), ("first order", seed)))
    for name in SEARCHES:
        pairs[f"{name}, between seeds"] = [((name, a), (name, b)) for a, b in itertools.combinations(seeds, 2)]
    text = (
        f"{rows[0]['steps']} weight steps, seeds {seeds}. Spearman correlation of α; modules whose rank differs "
        "(of all), and Spearman correlation of the ranks, by rank rule.\n\n"
        "| compared | α | " + " | ".join(f"{rule}: modules | correlation" for rule in RULES) + " |\n"
        "| --- | ---: |" + " ---: | ---: |" * len(RULES) + "\n"
    )
    for label, members in pairs.items():
        if not members:  # one seed has no other
            continue
        cells = [f"{mean(correlation(found[a]['alpha'], found[b]['alpha']) for a, b in members):.3f}"]
        for rule in RULES:
            values = [(found[a][rule], found[b][rule]) for a, b in members]
            cells.append(f"{mean(sum(x != y for x, y in zip(a, b)) for a, b in values):.1f} of {len(values[0][0])}")
            cells.append(f"{mean(correlation(a, b) for a, b in values):.3f}")
        text += f"| {label} | {' | '.join(cells)} |\n"
    return text


def correlation(a, b):
    if len(set(a)) == 1 or len(set(b)) == 1:
        return float(a == b)
    return float(spearmanr(a, b).statistic)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


TABLES = {"accuracy": accuracy_table, "ranks": ranks_table}


def shown_command(options):
    """The command of a run, with names in place of this machine's folders."""
    shown = {"model": "MODEL", "train_file": f"$DATA/{options.task_name}/train.jsonl", "output": RESULTS}
    words = [COMMAND]
    defaults = vars(parse(["--output", ""]))
    for name, value in vars(options).items():
        if value != defaults[name]:
            value = shown.get(name, value)
            words.append(f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(words)


def main(argv=None):
    options = parse(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)
    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    os.makedirs(options.output, exist_ok=True)
    rows = {"accuracy": accuracy, "ranks": ranks}[options.section](options)
    origin = {**trials.origin(), "command": shown_command(options)}
    path = os.path.join(options.output, options.section)
    with open(path + ".jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({**row, **origin}) + "\n" for row in rows)
    text = TABLES[options.section](rows)
    with open(path + ".md", "w", encoding="utf-8") as file:
        file.write(text)
    print(text)


if __name__ == "__main__":
    main()
