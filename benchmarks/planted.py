"""Does the search find ranks that are known? Frozen models whose teachers differ by updates of planted rank.

    python benchmarks/planted.py --problems linear transformer --seeds 20 --output outputs/planted

A problem is a frozen model W_l, a teacher with weights W_l + U_l, and rows (x, teacher(x) + noise). Rank of U_l: drawn
for every module and seed. The student is the frozen model under LoRA; its search runs at the package's defaults, and
only the number of steps, the batch size, the weights' learning rate and the tolerance are the problem's own: a planted
direction of 0.7 % of the gain is to be found, and the default of 1 % is there to leave such away. The paper's rule
then reads the same final state. Rows that order and rows that judge the size are apart. The folder receives
`planted.jsonl`, a row per search, and `planted.md`.

* `linear`: eight linear layers side by side, 16 to 24 wide, each with its own inputs and outputs.
* `transformer`: a post-norm encoder (RoBERTa from a config) with U_l at query and value. The loss compares the hidden
  states of every layer: the states of layer l are the first that U_l changes, so every update shows where nothing
  later mixes with it. Weights are drawn so large that attention is far from uniform (see `_encoder`).
* `control-*`: no update anywhere, targets are the frozen model's own plus noise; `shuffled-linear`: every row has what
  the updates change in another. The answer is then a total of 0. (Shuffled states of the encoder still have a mean
  that can be learned.)

Suffixes: `-unequal` spreads singular values over a factor of 4 in a module and modules over a factor of 2; `-noise`
adds to the targets noise of half the root mean square of what the updates change.
"""

import argparse
import copy
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn
from transformers import RobertaConfig, RobertaModel
from transformers.utils import logging

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments  # noqa: E402
from autolora_trainer.search.rules import by_threshold  # noqa: E402
from benchmarks.lib import trials  # noqa: E402
from benchmarks.lib.significance import spearman  # noqa: E402

COMMAND = "python benchmarks/planted.py"

WIDTHS = (16, 16, 20, 20, 20, 24, 24, 24)  # of the layers of `linear`
LAYERS, HIDDEN, HEADS, LENGTH, VOCABULARY = 4, 32, 4, 12, 256  # of `transformer`


@dataclass
class Problem:
    """A frozen model, rows made by its teacher, the true rank of every module, and the settings that fit it."""

    model: nn.Module
    rows: list[dict]
    ranks: dict[str, int]
    learning_rate: float
    max_steps: int


class SideBySide(nn.Module):
    """Linear layers of several widths n_l; layer l maps the first n_l of x[:, l], shape (rows, layers, widest)."""

    input_name = "x"

    def __init__(self, widths=WIDTHS):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, n, bias=False) for n in widths)

    def forward(self, x, labels=None):
        outputs = [layer(x[:, i, : layer.in_features]) for i, layer in enumerate(self.layers)]  # (rows, n_l)
        widest = x.shape[-1]
        return beside(torch.stack([nn.functional.pad(y, (0, widest - y.shape[-1])) for y in outputs], dim=1), labels)


class AllStates(nn.Module):
    """An encoder whose output is the hidden states of all its layers, (rows, layers, length, hidden)."""

    input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.encoder = _encoder()

    def forward(self, input_ids, labels=None):
        states = self.encoder(input_ids, output_hidden_states=True).hidden_states[1:]
        return beside(torch.stack(states, dim=1), labels)


def beside(output: torch.Tensor, labels: torch.Tensor | None) -> dict:
    """A model's output with its loss, the mean squared error."""
    return {"loss": None if labels is None else ((output - labels) ** 2).mean(), "logits": output}


def _encoder() -> RobertaModel:
    """Random weights of variance 1/n keep the scale of what they read (post-norm states have variance 1). Keys twice
    as large give attention logits a standard deviation of about 2, so what a query asks for matters. Branches enter
    the residual stream at half their size: attention averages, and at full size the tokens of a sequence become so
    alike in deep layers that some directions of an update there would hardly show."""
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    shape |= {"intermediate_size": HIDDEN, "max_position_embeddings": LENGTH + 2, "vocab_size": VOCABULARY}
    config = RobertaConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape)
    encoder = RobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Linear):
                factor = 2 if name.endswith("key") else 0.5 if name.endswith("output.dense") else 1
                module.weight.normal_(0, factor / module.in_features**0.5)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0 if name.endswith("token_type_embeddings") else 1)  # all of one type
    return encoder


def planted_update(rank: int, rows: int, columns: int, strength: str) -> torch.Tensor:
    """U = Q_1 diag(s) Q_2^T, shape (rows, columns), Q random and orthonormal. `equal`: s_j = 1. `unequal`: s spread
    evenly in the logarithm over a factor of 4, all times a factor of the module, log-uniform between 1/sqrt(2) and
    sqrt(2)."""
    left = torch.linalg.qr(torch.randn(rows, max(rank, 1))).Q[:, :rank]
    right = torch.linalg.qr(torch.randn(columns, max(rank, 1))).Q[:, :rank]
    values = torch.ones(rank)
    if strength == "unequal":
        scale = 2 ** (torch.rand(()) - 0.5)
        values = scale * (2 ** torch.linspace(1, -1, rank) if rank > 1 else 4 ** (torch.rand(rank) - 0.5))
    return left * values @ right.T


def draw_ranks(names: list[str], levels: tuple[int, ...]) -> dict[str, int]:
    """A level for every module, independent and uniform; drawn again if all modules came out alike."""
    while True:
        drawn = [levels[i] for i in torch.randint(len(levels), (len(names),)).tolist()]
        if len(set(drawn)) > 1:
            return dict(zip(names, drawn))


@torch.no_grad()
def plant(model, inputs, levels, strength, noise, names, shuffle=False, **settings) -> Problem:
    """The problem of `model` with updates drawn from `levels`; none if `levels` is empty. `noise`: root mean square,
    relative to what the updates change, or for the control relative to the outputs. `shuffle`: every row has what the
    updates change in another, and there is nothing to find."""
    ranks = draw_ranks(names, levels) if levels else dict.fromkeys(names, 0)
    outputs = lambda one: torch.cat([one(part)["logits"] for part in inputs.split(128)])
    teacher, base = copy.deepcopy(model), outputs(model)
    for name, rank in ranks.items():
        weight = teacher.get_submodule(name).weight
        weight.data += planted_update(rank, *weight.shape, strength)
    targets = outputs(teacher)
    if shuffle:
        targets, ranks = base + (targets - base)[torch.randperm(len(inputs))], dict.fromkeys(names, 0)
    reference = (targets - base if levels else base).square().mean().sqrt()
    targets += noise * reference * torch.randn(targets.shape)
    rows = [{model.input_name: row, "labels": target} for row, target in zip(inputs, targets)]
    return Problem(model, rows, ranks, **settings)


def linear(seed: int, strength: str = "equal", noise: float = 0.0, levels=(0, 1, 2, 4, 6), **more) -> Problem:
    torch.manual_seed(seed)
    model, inputs = SideBySide(), torch.randn(1024, len(WIDTHS), max(WIDTHS))
    names = [f"layers.{i}" for i in range(len(WIDTHS))]
    return plant(model, inputs, levels, strength, noise, names, learning_rate=2e-2, max_steps=300, **more)


def transformer(seed: int, strength: str = "equal", noise: float = 0.0, levels=(0, 1, 2, 6), **more) -> Problem:
    torch.manual_seed(seed)
    model, inputs = AllStates(), torch.randint(3, VOCABULARY, (1024, LENGTH))
    kinds = ("query", "value")
    names = [f"encoder.encoder.layer.{i}.attention.self.{kind}" for i in range(LAYERS) for kind in kinds]
    return plant(model, inputs, levels, strength, noise, names, learning_rate=1e-2, max_steps=200, **more)


PROBLEMS = {
    f"{kind.__name__}{suffix}": functools.partial(kind, **changes)
    for kind in (linear, transformer)
    for suffix, changes in {"": {}, "-unequal": {"strength": "unequal"}, "-noise": {"noise": 0.5}}.items()
}
PROBLEMS["control-linear"] = functools.partial(linear, noise=0.5, levels=())
PROBLEMS["control-transformer"] = functools.partial(transformer, noise=0.5, levels=())
PROBLEMS["shuffled-linear"] = functools.partial(linear, shuffle=True)
TOLERANCE = 0.001


def search(name: str, seed: int) -> dict:
    """One search at the package's defaults but for what is the problem's own: true ranks, those that contributions
    find (none where the gain is undecided), and those of the paper's rule."""
    problem = PROBLEMS[name](seed)
    settings = {"max_steps": problem.max_steps, "learning_rate": problem.learning_rate, "seed": seed}
    settings |= {"per_device_train_batch_size": 32, "use_cpu": True, "tolerance": TOLERANCE, **trials.QUIET}
    with tempfile.TemporaryDirectory() as folder:
        arguments = AutoLoraTrainingArguments(folder, **settings)
        torch.manual_seed(seed)
        config = LoraConfig(target_modules=list(problem.ranks), lora_alpha=8)  # over k = 8: an update has the scale 1
        trainer = AutoLoraTrainer(problem.model, arguments, train_dataset=problem.rows, peft_config=config)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    curve, found = trainer.learned_ranks.curve, trainer.learned_ranks.ranks
    learned = {"contributions": [rank if curve.decided else 0 for rank in found.values()]}
    learned["threshold"] = list(by_threshold(trainer.gates).ranks.values())
    row = {"problem": name, "seed": seed, "tolerance": TOLERANCE, "steps": trainer.state.global_step}
    return {**row, "seconds": round(seconds, 2), "true": list(problem.ranks.values()), "learned": learned}


def summarize(rows: list[dict]) -> list[dict]:
    """A line per problem and rule: share of exact ranks and of exact totals, mean Spearman, mean rank per level."""
    lines = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        searches = [row for row in rows if row["problem"] == name]
        for rule in searches[0]["learned"]:
            pairs = [(row["true"], row["learned"][rule]) for row in searches]
            flat = [(t, r) for true, learned in pairs for t, r in zip(true, learned)]
            levels = {
                level: statistics.mean(r for t, r in flat if t == level) for level in sorted({t for t, _ in flat})
            }
            line = {"problem": name, "rule": rule, "searches": len(searches), "levels": levels}
            line["exact"] = sum(t == r for t, r in flat) / len(flat)
            line["totals"] = sum(sum(true) == sum(learned) for true, learned in pairs)
            line["spearman"] = None if set(levels) == {0} else statistics.mean(spearman(*pair) for pair in pairs)
            lines.append(line)
    return lines


def markdown(lines: list[dict]) -> str:
    """The table of `summarize`."""
    head = [
        "problem",
        "rule",
        "searches",
        "modules exact",
        "totals exact",
        "Spearman",
        "mean learned rank at true rank",
    ]
    table = [head, ["---", "---", *["---:"] * 4, "---"]]
    for line in lines:
        levels = ", ".join(f"{level}: {mean:.1f}" for level, mean in line["levels"].items())
        correlation = "" if line["spearman"] is None else f"{line['spearman']:.3f}"
        cells = [line["problem"], line["rule"], line["searches"], f"{line['exact']:.0%}", f"{line['totals']}"]
        table.append([*cells, correlation, levels])
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True, help="folder of planted.jsonl and planted.md")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with open(arguments.output / "planted.jsonl", "w", encoding="utf-8") as file:
        for name in arguments.problems:
            for seed in range(arguments.seeds):
                rows.append({**search(name, seed), **trials.origin(), "command": f"{COMMAND} --problems {name}"})
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
    trials.write_table(str(arguments.output / "planted.jsonl"), markdown(summarize(rows)))


if __name__ == "__main__":
    main()
