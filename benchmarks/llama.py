"""A Llama from random weights: pre-trained on one kind of text, searched and adapted on another.

    python benchmarks/llama.py --text wikipedia_0.txt.xz --other novels.txt.xz --output benchmarks/results/llama.jsonl

Grouped-query attention, SwiGLU, RMSNorm, tied to no language: 3 million weights, a byte-level BPE of 4,096 tokens. All
linear layers are searched, and a module may end with no rank at all. Every method then trains as many parameters, on
the same rows, from the same pre-trained weights; the score is the perplexity of held-out text of the new kind. A row a
method and seed, and `llama.md` beside them. About fifteen minutes on one core.
"""

import argparse
import itertools
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks  # noqa: E402
from autolora_trainer.lora.fused import add_lora  # noqa: E402
from autolora_trainer.lora.parts import lora_parts  # noqa: E402
from autolora_trainer.ranks.adapter import build_adapter  # noqa: E402
from autolora_trainer.ranks.budget import parse_budget, random_ranks, uniform_ranks  # noqa: E402
from autolora_trainer.ranks.grid import format_rank_table  # noqa: E402
from autolora_trainer.ranks.learned import ModuleRank  # noqa: E402
from benchmarks.lib import trials  # noqa: E402
from benchmarks.lib.comparison import sizes_cell  # noqa: E402
from benchmarks.lib.significance import markdown  # noqa: E402
from benchmarks.pretrain_sample import read_paragraphs  # noqa: E402

COMMAND = "python benchmarks/llama.py --text $DATA/TEXT --other $DATA/OTHER"
SHAPE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6}
SHAPE |= {"num_attention_heads": 6, "num_key_value_heads": 2}
LENGTH, VOCABULARY, BUDGET = 128, 4096, "lora:2"
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=16)


def rows_of(paragraphs, tokenizer, count: int) -> Dataset:
    """The first `count` pieces of `LENGTH` tokens of a text."""
    ids = [i for encoding in tokenizer.encode_batch(paragraphs) for i in encoding.ids][: count * LENGTH]
    pieces = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return Dataset.from_list([{"input_ids": piece, "labels": piece} for piece in pieces])


def settings(kind, folder, steps: int, seed: int, **changes):
    shared = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 50, "use_cpu": True}
    shared |= {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}
    return kind(folder, max_steps=steps, seed=seed, **shared, **changes)


def collate(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def train(model, folder, data, steps: int, seed: int, learning_rate: float) -> None:
    arguments = settings(TrainingArguments, folder, steps, seed, learning_rate=learning_rate, warmup_steps=0.05)
    Trainer(model, arguments, train_dataset=data, data_collator=collate).train()


def perplexity(model, folder, data) -> float:
    arguments = settings(TrainingArguments, folder, 1, 0)
    return math.exp(Trainer(model, arguments, eval_dataset=data, data_collator=collate).evaluate()["eval_loss"])


def search(model, folder, data, steps: int, seed: int, learning_rate: float) -> LearnedRanks:
    own = {"min_rank": 0, "rank_budget": BUDGET, "learning_rate": learning_rate}
    arguments = settings(AutoLoraTrainingArguments, folder, steps, seed, **own)
    set_seed(seed)
    trainer = AutoLoraTrainer(model, arguments, train_dataset=data, data_collator=collate, peft_config=LORA)
    trainer.train()
    return trainer.learned_ranks


def pattern(model, method: str, seed: int) -> LearnedRanks:
    costs = {name: part.cost for name, part in lora_parts(add_lora(model, LORA, rank=1)).items()}
    size = parse_budget(BUDGET, list(costs.values()))
    limits = {"capacity": 8, "min_rank": 0, "seed": seed}
    ranks = uniform_ranks(costs, size) if method == "uniform" else random_ranks(costs, size, **limits)
    return LearnedRanks({name: ModuleRank(rank) for name, rank in ranks.items()}, initial_rank=8, rank_rule=method)


def pretrained(options, folder: str, paragraphs, tokenizer):
    """Pre-train on text; a function that gives the model with those weights, anew at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, tie_word_embeddings=True, **SHAPE)
    model, started = LlamaForCausalLM(config), time.perf_counter()
    train(model, folder, rows_of(paragraphs, tokenizer, 16 * options.steps), options.steps, 0, 2e-3)
    print(f"pre-training: {time.perf_counter() - started:.0f} s", flush=True)
    model.save_pretrained(os.path.join(folder, "llama"))
    return lambda: LlamaForCausalLM.from_pretrained(os.path.join(folder, "llama"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="pre-training text, a paragraph a line, .txt or .xz")
    parser.add_argument("--other", type=Path, required=True, help="the text to adapt to")
    parser.add_argument("--output", required=True, help="JSON rows, appended to")
    parser.add_argument("--steps", type=int, default=400, help="of the pre-training, 16 x 128 tokens each")
    parser.add_argument("--search_steps", type=int, default=80)
    parser.add_argument("--adapt_steps", type=int, default=120)
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of search and adaptation")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    folder, rate = tempfile.mkdtemp(), options.learning_rate
    text, other = read_paragraphs(options.text)[:20_000], read_paragraphs(options.other)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(text, VOCABULARY)
    new, held_out = rows_of(other[:6000], tokenizer, 960), rows_of(other[-600:], tokenizer, 128)
    base = pretrained(options, folder, text, tokenizer)
    before = perplexity(base(), folder, held_out)
    print(f"perplexity before: {before:.2f}", flush=True)
    names = ("steps", "search_steps", "adapt_steps", "learning_rate")
    command = " ".join([COMMAND, *(f"--{name} {getattr(options, name)}" for name in names)])
    for seed, method in itertools.product(range(options.seeds), ("uniform", "random", "autolora")):
        started = time.perf_counter()
        if method == "autolora":
            ranks = search(base(), folder, new, options.search_steps, seed, rate)
            print(format_rank_table(ranks.ranks), flush=True)
        else:
            ranks = pattern(base(), method, seed)
        searched = time.perf_counter() - started
        set_seed(seed)
        adapted = build_adapter(base(), ranks, LORA)
        train(adapted, folder, new, options.adapt_steps, seed, rate)
        row = {"task": "llama", "method": method, "seed": seed, "before": round(before, 3)}
        row["score"] = round(perplexity(adapted, folder, held_out), 3)
        row["adapter_params"] = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        row |= {"ranks": ranks.ranks, "search_seconds": round(searched, 1)}
        row |= {"wall_seconds": round(time.perf_counter() - started, 1), "command": command}
        print(method, seed, row["score"], row["adapter_params"], f"{row['wall_seconds']} s", flush=True)
        trials.append_row(options.output, {**row, **trials.origin()})
    trials.write_table(options.output, report(trials.read_rows(options.output)))


def report(rows: list[dict]) -> str:
    body = [["pre-trained", "", f"{rows[0]['before']:.2f}", "", ""]]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        scores = [row["score"] for row in own]
        left_out = sum(rank == 0 for row in own for rank in row["ranks"].values()) / len(own)
        cells = [sizes_cell(own, "adapter_params"), f"{sum(scores) / len(scores):.2f}"]
        cells += [" ".join(f"{score:.2f}" for score in scores), f"{left_out:.1f} of {len(own[0]['ranks'])}"]
        body.append([method, *cells])
    return markdown(["method", "adapter parameters", "perplexity", "by seed", "modules without a rank"], body) + "\n"


if __name__ == "__main__":
    main()
