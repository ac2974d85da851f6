"""Learned ranks for GRPO or RLOO: found on prompts with completions, then trained by a reward.

    pip install ".[trl]"
    python examples/grpo.py --model Qwen/Qwen3-0.6B --data pairs.jsonl --output outputs/grpo

The rows have the columns `prompt` and `completion`, texts or messages. The reward says how near a text comes to the
length of the row's own completion: put yours in its place.
"""

import argparse
import os

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig

from autolora_trainer import LearnedRanks, RankSearch

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def length_of(completion) -> int:
    return len(completion if isinstance(completion, str) else completion[-1]["content"])


def as_long(completions, reference, **columns) -> list[float]:
    """0 for a text as long as its reference, -1 for one of twice its length, or of none."""
    wanted = [length_of(own) for own in reference]
    return [-abs(length_of(text) - length) / length for text, length in zip(completions, wanted)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a causal language model: Hub id or folder")
    parser.add_argument("--data", required=True, help="JSON lines")
    parser.add_argument("--output", default="outputs/grpo")
    parser.add_argument("--trainer", choices=TRAINERS, default="grpo")
    parser.add_argument("--ranks", help="ranks.json of an earlier search on this model, e.g. of examples/sft.py")
    parser.add_argument("--search_steps", type=int, help="default: until it has settled, 112 at most")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--generations", type=int, default=8, help="texts for a prompt")
    parser.add_argument("--max_completion_length", type=int, default=256)
    options = parser.parse_args(argv)

    data = load_dataset("json", data_files=options.data, split="train")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=16)
    shared = {"report_to": "none", "bf16": torch.accelerator.is_available()}  # TRL's default is true, also on a CPU

    if options.ranks is None:  # GRPO's rows are made while it trains; a search needs rows with a loss
        settings = SFTConfig(f"{options.output}/search", learning_rate=2e-4, max_length=512, **shared)
        search = RankSearch(
            model, data, lora, args=settings, processing_class=tokenizer, search_steps=options.search_steps
        ).run()  # what `find_ranks` does; the model comes back as it was
        os.makedirs(options.output, exist_ok=True)
        search.ranks.save(f"{options.output}/ranks.json")
        print(search.ranks)
        config = search.config
    else:
        config = LearnedRanks.load(options.ranks).to_lora_config(lora)

    kind, arguments = TRAINERS[options.trainer]
    trainer = kind(
        model,
        as_long,
        arguments(
            options.output,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            num_generations=options.generations,
            per_device_train_batch_size=options.generations,
            max_completion_length=options.max_completion_length,
            **shared,
        ),
        train_dataset=data.rename_column("completion", "reference"),  # which a reward is given beside the texts
        processing_class=tokenizer,
        peft_config=config,
    )
    trainer.train()
    trainer.save_model()
    print(f"adapter in {options.output}")


if __name__ == "__main__":
    main()
