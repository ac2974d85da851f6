"""Learned ranks for supervised fine-tuning with TRL: search, ranks, and an ordinary SFT run with them.

    pip install ".[trl]"
    python examples/sft.py --model Qwen/Qwen3-0.6B --data prompts.jsonl --output outputs/sft

The rows have the columns `prompt` and `completion` (the loss is on the completion alone), or `text`.
"""

import argparse
from dataclasses import dataclass

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from autolora_trainer import AutoLoraMixin, AutoLoraTrainingArguments, build_adapter, fix_loss_scale


@dataclass
class AutoLoraSFTConfig(SFTConfig, AutoLoraTrainingArguments):
    """TRL's settings, with its defaults, and those of the search."""


class AutoLoraSFTTrainer(AutoLoraMixin, SFTTrainer):
    """`SFTTrainer`, whose training is the search."""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a causal language model: Hub id or folder")
    parser.add_argument("--data", required=True, help="JSON lines")
    parser.add_argument("--output", default="outputs/sft")
    parser.add_argument("--search_steps", type=int, default=80)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--packing", action="store_true", help="several texts in one row")
    options = parser.parse_args(argv)

    data = load_dataset("json", data_files=options.data, split="train")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=16)
    shared = {"learning_rate": 2e-4, "max_length": 512, "packing": options.packing, "report_to": "none"}
    shared["bf16"] = torch.accelerator.is_available()  # TRL's default is true, also on a CPU

    search = AutoLoraSFTTrainer(
        AutoModelForCausalLM.from_pretrained(options.model),
        AutoLoraSFTConfig(f"{options.output}/search", max_steps=options.search_steps, min_rank=0, **shared),
        train_dataset=data,  # the search splits it, and no row of its D_val trains a weight
        processing_class=tokenizer,
        peft_config=lora,
    )
    search.train()
    print(search.learned_ranks)
    search.learned_ranks.save(f"{options.output}/ranks.json")

    adapted = build_adapter(AutoModelForCausalLM.from_pretrained(options.model), search.learned_ranks, lora)
    search.start_retrain(adapted)  # begin where the search ended; without this line: with the pre-trained model
    trainer = SFTTrainer(
        adapted,
        SFTConfig(options.output, max_steps=options.steps, **shared),
        train_dataset=data,
        processing_class=tokenizer,
    )
    fix_loss_scale(trainer).train()  # for models that take no count of a step's tokens; nothing for Llama and most
    trainer.save_model()
    print(f"adapter and ranks.json in {options.output}")


if __name__ == "__main__":
    main()
