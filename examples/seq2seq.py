"""Learned ranks for an encoder-decoder model: the search as a mixin over `Seq2SeqTrainer`.

    python examples/seq2seq.py --model google-t5/t5-small --data pairs.jsonl --output outputs/seq2seq

The rows have the columns `source` and `target`.
"""

import argparse
from dataclasses import dataclass

from datasets import load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from autolora_trainer import AutoLoraMixin, AutoLoraTrainingArguments, build_adapter, fix_loss_scale


@dataclass
class AutoLoraSeq2SeqTrainingArguments(Seq2SeqTrainingArguments, AutoLoraTrainingArguments):
    """`Seq2SeqTrainingArguments` and the settings of the search."""


class AutoLoraSeq2SeqTrainer(AutoLoraMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer`, whose training is the search."""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an encoder-decoder model: Hub id or folder")
    parser.add_argument("--data", required=True, help="JSON lines")
    parser.add_argument("--output", default="outputs/seq2seq")
    parser.add_argument("--search_steps", type=int, default=80)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = load_dataset("json", data_files=options.data, split="train").map(
        lambda rows: tokenizer(rows["source"], text_target=rows["target"], truncation=True, max_length=256),
        batched=True,
        remove_columns=["source", "target"],
    )
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], lora_alpha=16)
    shared = {"learning_rate": 1e-3, "report_to": "none"}

    def trainer(kind, model, arguments, **more):
        collator = DataCollatorForSeq2Seq(tokenizer, model)
        return kind(model, arguments, train_dataset=data, data_collator=collator, processing_class=tokenizer, **more)

    search = trainer(
        AutoLoraSeq2SeqTrainer,
        AutoModelForSeq2SeqLM.from_pretrained(options.model),
        AutoLoraSeq2SeqTrainingArguments(f"{options.output}/search", max_steps=options.search_steps, **shared),
        peft_config=lora,
    )
    search.train()
    print(search.learned_ranks)
    search.learned_ranks.save(f"{options.output}/ranks.json")

    adapted = build_adapter(AutoModelForSeq2SeqLM.from_pretrained(options.model), search.learned_ranks, lora)
    search.start_retrain(adapted)  # begin where the search ended; without this line: with the pre-trained model
    retrain = trainer(
        Seq2SeqTrainer,
        adapted,
        Seq2SeqTrainingArguments(options.output, max_steps=options.steps, **shared),
    )
    fix_loss_scale(retrain).train()  # with gradient accumulation transformers' gradient of T5 and BART is too large
    retrain.save_model()
    print(f"adapter and ranks.json in {options.output}")


if __name__ == "__main__":
    main()
