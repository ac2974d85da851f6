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
import copy
import gc
import json
import logging as std_logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PrinterCallback,
    RobertaConfig,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments  # noqa: E402
from autolora_trainer.cost import CostMeter  # noqa: E402
from autolora_trainer.errors import one_line, run_guarded  # noqa: E402
from autolora_trainer.fused import lora_layers  # noqa: E402
from autolora_trainer.gates import selection  # noqa: E402
from autolora_trainer.hub import public_command  # noqa: E402
from autolora_trainer.methods.adalora import AdaLoraTrainer, adalora_config, schedule  # noqa: E402
from autolora_trainer.pipeline import count_parameters  # noqa: E402
from autolora_trainer.report import format_score, format_table  # noqa: E402
from autolora_trainer.tasks.glue import GLUE_TASKS  # noqa: E402
from autolora_trainer.trainer_utils import RetrainTrainer, fix_loss_scale  # noqa: E402
from benchmarks.lib.trials import machine  # noqa: E402

SHAPES = {  # random weights: time and memory do not depend on their values
    "tiny": RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    ),
    "minilm": BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
    "roberta-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "roberta-large": RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16, architectures=["GPT2LMHeadModel"]),
    "llama-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
    ),
}
DROPOUTS = "hidden_dropout_prob attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop".split()

REFERENCE = "LoRA r=8"
# name -> (kind, settings): LoraConfig's for `lora`, AutoLoraTrainingArguments' for `search`
VARIANTS = {
    REFERENCE: ("lora", {"r": 8}),
    "LoRA r=4": ("lora", {"r": 4}),
    "AdaLoRA 6->4": ("adalora", {"target": 4}),
    "DoRA r=8": ("lora", {"r": 8, "use_dora": True}),
    "EVA r=8": ("eva", {"r": 8}),
    "search, defaults": ("search", {}),
    **{
        f"search, {method} T={interval}": (
            "search",
            {"hypergradient": method, "hypergradient_interval": interval, "initial_rank": 8},
        )
        for method, intervals in {"first_order": (1, 4), "finite_difference": (1, 2, 4, 8), "exact": (1,)}.items()
        for interval in intervals
    },
    "betty, darts T=1": ("betty", {"r": 8, "interval": 1}),
}
CYCLE = 8  # a multiple of every interval above: a measured stretch holds whole cycles


# ---- table `steps`


class RandomRows(Dataset):
    """Random rows of one length, the same at every call."""

    def __init__(self, count: int, length: int, vocabulary: int, causal: bool):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocabulary, (count, length), generator=generator)
        labels = ids if causal else torch.randint(0, 2, (count,), generator=generator)
        self.columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


class Stopwatch(TrainerCallback):
    """Seconds and passes between the end of step `warmup` and the end of step `warmup + steps`."""

    def __init__(self, warmup: int, steps: int, device: str):
        self.first, self.last, self.device = warmup, warmup + steps, device
        self.meter = CostMeter()

    def on_train_begin(self, args, state, control, **kwargs):
        self.meter.on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.first:
            self.passes, self.start = self.meter.figures()["passes"], self._now()
        elif state.global_step == self.last:
            self.seconds = self._now() - self.start
            self.passes = self.meter.figures()["passes"] - self.passes

    def _now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def figures(self) -> dict:
        steps = self.last - self.first
        return {
            "step_seconds": self.seconds / steps,
            "passes": self.passes / steps,
            "peak_memory_mb": self.meter.figures()["peak_memory_mb"],
        }


class Bench:
    """The model, the data and the arguments that all variants share."""

    def __init__(self, arguments):
        self.arguments = arguments
        config = AutoConfig.from_pretrained(arguments.model) if arguments.model else SHAPES[arguments.shape]
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, arguments.dropout)
        causal = (config.architectures or [""])[0].endswith(("LMHeadModel", "ForCausalLM"))
        self.task_type = "CAUSAL_LM" if causal else "SEQ_CLS"
        self.auto, self.config = AutoModelForCausalLM if causal else AutoModelForSequenceClassification, config
        self.base = None
        count = arguments.batch_size * (arguments.warmup + arguments.steps)
        self.rows = RandomRows(count, arguments.length, config.vocab_size, causal)

    def model(self) -> torch.nn.Module:
        """A base model, every time with the same weights. On a GPU it is made anew, so that peaks hold one of them."""
        a = self.arguments
        if self.base is not None:
            return copy.deepcopy(self.base)
        settings = {"attn_implementation": a.attn, "dtype": torch.bfloat16 if a.weights == "bf16" else torch.float32}
        torch.manual_seed(a.seed)
        if a.model:
            model = self.auto.from_pretrained(a.model, config=self.config, **settings)
        else:
            with torch.device(a.device):
                model = self.auto.from_config(self.config, **settings)
        if a.device == "cpu" and not a.measure:
            self.base = copy.deepcopy(model)
        return model

    def lora_config(self, **settings) -> LoraConfig:
        return LoraConfig(
            task_type=self.task_type, lora_alpha=16, lora_dropout=self.arguments.dropout, **{"r": 8, **settings}
        )

    def training_arguments(self, folder: str, **search) -> TrainingArguments:
        a = self.arguments
        return (AutoLoraTrainingArguments if search.pop("search", False) else TrainingArguments)(
            output_dir=folder,
            max_steps=a.warmup + a.steps,
            per_device_train_batch_size=a.batch_size,
            learning_rate=1e-4,
            bf16=a.dtype == "bf16",
            use_cpu=a.device == "cpu",
            torch_compile=a.compile,
            dataloader_pin_memory=a.device == "cuda",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            seed=a.seed,
            **search,
        )

    def trainer(self, kind: str, settings: dict, folder: str):
        if kind == "search":
            # ranks are counted after every selection step, as by default, but never settle within the measured steps
            arguments = self.training_arguments(folder, search=True, **{"search_patience": 10**6, **settings})
            lora = self.lora_config(r=arguments.initial_rank)
            return AutoLoraTrainer(
                self.model(), arguments, train_dataset=self.rows, val_dataset=self.rows, peft_config=lora
            )
        arguments = self.training_arguments(folder)
        if kind == "lora":
            model = get_peft_model(self.model(), self.lora_config(**settings))
            return fix_loss_scale(RetrainTrainer(model=model, args=arguments, train_dataset=self.rows))
        with torch.device("meta"):  # AdaLoRA's modules are LoRA's, which PEFT names only in a model
            probe = get_peft_model(self.auto.from_config(self.config), self.lora_config())
        phases = schedule(self.arguments.steps)
        for name in ("tinit", "total_step"):
            phases[name] += self.arguments.warmup  # so that the measured steps hold the phases in a run's shares
        config = adalora_config(probe.peft_config["default"], settings["target"], **phases)
        model = get_peft_model(self.model(), config)
        return fix_loss_scale(AdaLoraTrainer(model=model, args=arguments, train_dataset=self.rows))

    def measure(self, name: str) -> dict:
        """Train a variant and say what its steps cost."""
        kind, settings = VARIANTS[name]
        gc.collect()
        if self.arguments.device == "cuda":
            torch.cuda.empty_cache()
        torch._dynamo.reset()
        watch = Stopwatch(self.arguments.warmup, self.arguments.steps, self.arguments.device)
        if kind == "eva":
            return self.measure_eva(watch, settings)
        if kind == "betty":
            return {**self.run_betty(watch, **settings), **watch.figures()}
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(kind, settings, folder)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(watch)
            trainer.train()
        return {"adapter_params": count_parameters(trainer.model)[0], **watch.figures()}

    def measure_eva(self, watch: Stopwatch, settings: dict) -> dict:
        lora = self.lora_config(init_lora_weights="eva", eva_config=EvaConfig(), **settings)
        model = get_peft_model(self.model(), lora).to(self.arguments.device)
        loader = [
            {name: batch[name].to(self.arguments.device) for name in ("input_ids", "attention_mask")}
            for batch in DataLoader(self.rows, self.arguments.batch_size)
        ]
        start = watch._now()
        initialize_lora_eva_weights(model, loader, show_progress_bar=False)
        return {
            "once_seconds": watch._now() - start,
            "peak_memory_mb": watch.meter.figures()["peak_memory_mb"],
            "adapter_params": count_parameters(model)[0],
        }

    def run_betty(self, watch: Stopwatch, r: int, interval: int) -> dict:
        """The search of Algorithm 1 as Betty's users would write it: two problems, and `darts` between them."""
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.problems import ImplicitProblem

        std_logging.getLogger("betty").disabled = True  # it prints its dependency graph
        a = self.arguments
        model = get_peft_model(self.model(), self.lora_config(r=r)).to(a.device)
        model = torch.compile(model) if a.compile else model
        layers = list(lora_layers(model).values())
        gates = torch.nn.ParameterDict({"logits": torch.zeros(len(layers), r)}).to(a.device)  # β
        current = {}  # α of the pass that runs
        for row, layer in enumerate(layers):
            layer.lora_A["default"].register_forward_hook(lambda m, x, out, row=row: out * current["alpha"][row])

        def loss(batch):  # L(W, α): the same for both problems, on their own data
            current["alpha"] = selection(gates["logits"])
            names = ("input_ids", "attention_mask", "labels")
            with torch.autocast(a.device, dtype=torch.bfloat16, enabled=a.dtype == "bf16"):
                return model(**dict(zip(names, batch))).loss

        class Trained(ImplicitProblem):
            def trainable_parameters(self):
                return [p for p in self.module.parameters() if p.requires_grad]

            def training_step(self, batch):
                return loss(batch)

        def problem(name, module, config, rate):
            tensors = list(self.rows.columns.values())
            loader = DataLoader(torch.utils.data.TensorDataset(*tensors), a.batch_size, shuffle=True, drop_last=True)
            trained = [p for p in module.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
            return Trained(name, config, module, optimizer, train_data_loader=loader, device=a.device)

        weights = problem("weights", model, Config(type="darts", unroll_steps=interval, gradient_clipping=1.0), 1e-4)
        # the outer gradient has a direct and an implicit term, and Betty takes two backward passes through one graph
        ranks = problem("ranks", gates, Config(retain_graph=True), 1e-3)
        dependencies = {"u2l": {ranks: [weights]}, "l2u": {weights: [ranks]}}
        engine = Engine([ranks, weights], EngineConfig(), dependencies)
        engine.train()
        state = SimpleNamespace(global_step=0)
        watch.on_train_begin(SimpleNamespace(world_size=1), state, None, model=model)
        for state.global_step in range(1, watch.last + 1):
            engine.global_step += 1
            engine.train_step()  # what `Engine.run` does in its loop
            watch.on_step_end(None, state, None)
        if not gates["logits"].detach().any():
            raise RuntimeError("no selection variable moved")
        return {"adapter_params": count_parameters(model)[0]}

    def memory_alone(self, name: str) -> float:
        """Peak memory of a variant in a process of its own."""
        argv = [sys.executable, __file__, *sys.argv[1:], "--measure", name, "--warmup", str(CYCLE), "--steps", "3"]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(one_line(done.stderr.strip().splitlines()[-1]))
        return json.loads(done.stdout.strip().splitlines()[-1])["peak_memory_mb"]


def chosen_variants(parts) -> list[str]:
    """The reference, and the variants whose names contain one of `parts`."""
    return [name for name in VARIANTS if name == REFERENCE or not parts or any(part in name for part in parts)]


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
    if arguments.device == "cpu":
        for row in rows:
            row["peak_memory_mb"] = attempt(reasons, row["method"], lambda: bench.memory_alone(row["method"]))
    rows = compared(rows)
    return rows, [steps_table(rows), *failures(reasons)]


def steps_rows(figures: dict[str, list[dict]]) -> list[dict]:
    """A row of each variant that was measured: medians of its rounds, and the peak of their memory."""
    rows = []
    for name, measured in figures.items():
        if not measured:
            continue
        row = {"method": name, **measured[-1], "rounds": len(measured)}
        for key in ("step_seconds", "once_seconds"):
            if key in row:
                row[key] = float(np.median([figures[key] for figures in measured]))
        row["peak_memory_mb"] = max(figures["peak_memory_mb"] for figures in measured)
        rows.append(row)
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
            row["step_ratio"] = seconds / step
            row["step_per_pass"] = seconds / (row["passes"] * step)
        else:
            row["once_steps"] = row["once_seconds"] / step
        if memory and row["peak_memory_mb"]:
            row["memory_ratio"] = row["peak_memory_mb"] / memory
    return rows


def steps_table(rows: list[dict]) -> str:
    """Markdown of the rows of one measurement of steps."""
    header = ["method", "ms a step", "to LoRA", "passes", "step / passes", "once, LoRA steps", "peak MB", "to LoRA"]
    keys = "wall_seconds step_ratio passes step_per_pass once_steps peak_memory_mb memory_ratio".split()
    body = [
        [row["method"]] + [number(row.get(k), 1000 if k == "wall_seconds" else 1, digits(k)) for k in keys]
        for row in rows
    ]
    return format_table(header, body, markdown=True)


def number(value, scale=1.0, places=2) -> str:
    return "-" if value is None else f"{value * scale:,.{places}f}"


def digits(key: str) -> int:
    return {"wall_seconds": 1, "peak_memory_mb": 0, "once_steps": 1}.get(key, 2)


# ---- table `total`


def run_methods(arguments) -> dict[str, list[str]]:
    """{name: arguments of run_glue.py}; adapters of the same budget."""
    size = {"autolora": ["--rank_budget", f"lora:{arguments.rank}"]}
    methods = {
        name: ["--method", name, *size.get(name, ["--lora_r", str(arguments.rank)])] for name in arguments.methods
    }
    for text in arguments.extra:
        name, _, given = text.partition("=")
        methods[name] = shlex.split(given)
    return methods


def run_once(arguments, name: str, given: list[str], seed: int, train_rows: int | None = None) -> dict:
    """One run of run_glue.py in a process of its own: a row of the results."""
    with tempfile.TemporaryDirectory() as place:
        folder = os.path.join(place, name.replace(" ", "-"))
        argv = [sys.executable, str(ROOT / "run_glue.py"), "--output_dir", folder, "--overwrite"]
        argv += ["--save_strategy", "no", "--seed", str(seed)]
        argv += ["--num_train_epochs", str(arguments.num_train_epochs), "--task_name", arguments.task_name]
        for option, value in {
            "--model_name_or_path": arguments.model,
            "--train_file": arguments.train_file,
            "--validation_file": arguments.validation_file,
        }.items():
            argv += [] if value is None else [option, value]
        argv += ["--use_cpu", str(arguments.device == "cpu"), "--bf16", str(arguments.dtype == "bf16")]
        argv += [*shlex.split(arguments.script_arguments), *given]
        argv += [] if train_rows is None else ["--max_train_samples", str(train_rows)]
        start = time.perf_counter()
        done = subprocess.run(argv, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{name}: {one_line((done.stderr.strip() or 'failed').splitlines()[-1])}")
        results = json.loads(Path(folder, "all_results.json").read_text(encoding="utf-8"))
        cost = json.loads(Path(folder, "cost.json").read_text(encoding="utf-8"))
    metric = GLUE_TASKS[arguments.task_name].reported_metric
    row = {
        "task": arguments.task_name,
        "seed": seed,
        "method": name,
        "score": results.get(f"eval_{metric}"),
        "metric": metric,
        "adapter_params": results["adapter_params"],
        "train_rows": results["train_samples"],
        "wall_seconds": seconds,
        "passes": cost["total"]["passes"],
        "search_seconds": cost.get("search", {}).get("wall_seconds"),
        "retrain_seconds": cost["retrain"]["wall_seconds"],
        "command": cost["command"],
    }
    print(f"{name}, {row['train_rows']} rows: {seconds:.1f} s, {metric} {format_score(row['score'])}", flush=True)
    return row


def table_total(arguments) -> tuple[list[dict], list[str]]:
    methods, rows, reasons = run_methods(arguments), [], {}

    def one_round(turn, train_rows=None):
        for name in rotated(list(methods), turn):
            if name not in reasons:
                row = attempt(
                    reasons, name, lambda: run_once(arguments, name, methods[name], arguments.seed + turn, train_rows)
                )
                if row:
                    rows.append({**row, "round": turn + 1})

    for turn in range(arguments.rounds):
        one_round(turn)
    if not rows:
        raise RuntimeError("no run ended: " + "; ".join(failures(reasons)))
    lines = [total_table(rows)]
    for turn, count in enumerate(arguments.rows):
        one_round(turn, count)
    if arguments.rows:
        lines += [GROWTH, growth_table(rows)]
    return rows, lines + failures(reasons)


def unit_of(rows: list[dict]) -> str:
    """The method whose wall time is 1: AdaLoRA, as in Table 5, else the first."""
    methods = [row["method"] for row in rows]
    return "adalora" if "adalora" in methods else methods[0]


GROWTH = "Wall seconds by training rows (in brackets: the ratio), one run each but for the most rows:"


def growth_table(rows: list[dict]) -> str:
    """Markdown of wall time by training rows: medians of each size, and their ratios to `unit_of(rows)`."""
    methods, against = list(dict.fromkeys(row["method"] for row in rows)), unit_of(rows)
    seconds = {}
    for row in rows:
        seconds.setdefault(row["train_rows"], {}).setdefault(row["method"], []).append(row["wall_seconds"])
    body = []
    for count, found in sorted(seconds.items()):
        wall = {name: float(np.median(values)) for name, values in found.items()}
        base = wall.get(against, float("nan"))
        cells = [f"{wall[name]:.1f} ({wall[name] / base:.2f})" if name in wall else "-" for name in methods]
        body.append([f"{count:,}", *cells])
    return format_table(["training rows", *methods], body, markdown=True)


def total_table(rows: list[dict]) -> str:
    """Markdown of the rows of whole runs: medians over the rounds, and the mean score of their seeds."""
    against = unit_of(rows)

    def average(name, key, kind=np.median):
        values = [row[key] for row in rows if row["method"] == name and row[key] is not None]
        return float(kind(values)) if values else None

    header = [
        "method",
        "mean score",
        "adapter parameters",
        "wall s",
        f"to {against}",
        "search s",
        "retrain s",
        "passes",
    ]
    body = [
        [
            name,
            format_score(average(name, "score", np.mean)),
            number(average(name, "adapter_params"), 1, 0),
            number(average(name, "wall_seconds"), 1, 1),
            number(average(name, "wall_seconds") / average(against, "wall_seconds")),
            number(average(name, "search_seconds"), 1, 1),
            number(average(name, "retrain_seconds"), 1, 1),
            number(average(name, "passes"), 1, 0),
        ]
        for name in dict.fromkeys(row["method"] for row in rows)
    ]
    return format_table(header, body, markdown=True)


# ---- both


def versions() -> dict:
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "accelerate", "betty-ml", "autolora_trainer"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


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
    shared = {"seed": arguments.seed, "settings": settings, "machine": machine(arguments.device)}
    shared |= {"versions": versions(), "command": public_command(sys.argv).replace("cost.py", "benchmarks/cost.py", 1)}
    text = f"## {shared['command']}\n\n{shared['machine']}\n\n" + "\n\n".join(lines) + "\n"
    print("\n" + text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**shared, **row}) + "\n" for row in rows)
        with arguments.output.with_suffix(".md").open("a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(run_guarded(main, os.path.basename(__file__)))
