"""A language model end to end: ranks, fine-tuning on GSM8K in chat format, a smaller adapter, merged, and its texts.

    pip install ".[trl]"
    python examples/smollm2.py --output outputs/smollm2

The defaults are few steps on few rows, to be seen working on a CPU; a GPU takes more of both.
"""

import argparse
import os
import re

import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from autolora_trainer import RankSearch, compress

CALCULATOR = re.compile(r"<<.*?>>")  # GSM8K's notes for a calculator, which nobody reads here


def chat(row: dict) -> dict:
    answer = CALCULATOR.sub("", row["answer"])
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def rows_of(options, tokenizer):
    """(rows to train on, rows that choose what a smaller adapter keeps, rows that score): none is in two of them."""
    if os.path.exists(options.data):
        data = load_dataset("json", data_files=options.data, split="train")
    else:
        data = load_dataset(options.data, "main", split="train")

    def fits(row):
        return (
            len(tokenizer(row["question"] + row["answer"])["input_ids"]) <= options.max_length - 40
        )  # the template's

    data = data.shuffle(seed=0).filter(fits).map(chat, remove_columns=data.column_names)
    train, held = options.rows, options.held_out_rows
    return data.select(range(train)), *(data.select(range(start, start + held)) for start in (train, train + held))


def parameters_of(model, rank: int) -> int:
    """Of LoRA of one rank in all linear layers but the output layer."""
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return rank * sum(m.in_features + m.out_features for m in layers)


@torch.no_grad()
def texts(model, tokenizer, rows, length: int) -> list[str]:
    """What the model says most likely."""
    model.eval()
    tokenizer.padding_side = "left"
    inputs = tokenizer.apply_chat_template(
        list(rows["prompt"]), add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    written = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    return tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="Hub id or folder")
    parser.add_argument("--data", default="openai/gsm8k", help="Hub id, or JSON lines with question and answer")
    parser.add_argument("--output", default="outputs/smollm2")
    parser.add_argument("--rows", type=int, default=128, help="to train on")
    parser.add_argument("--held_out_rows", type=int, default=32, help="for the smaller adapter, and as many to score")
    parser.add_argument("--max_length", type=int, default=192, help="tokens; longer rows are left out")
    parser.add_argument("--search_steps", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--new_tokens", type=int, default=96)
    options = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train, choosing, scored = rows_of(options, tokenizer)

    def load():
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)

    def settings(folder, **more):
        return SFTConfig(
            f"{options.output}/{folder}",
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            max_length=options.max_length,
            bf16=torch.accelerator.is_available(),
            save_strategy="no",
            report_to="none",
            **more,
        )

    def loss_of(model) -> float:
        own = {"train_dataset": scored, "eval_dataset": scored, "processing_class": tokenizer}
        return SFTTrainer(model, settings("scores"), **own).evaluate()["eval_loss"]

    model = load()
    table = [("no adapter", 0, loss_of(model))]

    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=16)
    search = RankSearch(
        model, train, lora, args=settings("search"), processing_class=tokenizer, search_steps=options.search_steps
    ).run()  # what `find_ranks` does; the model comes back as it was
    print(search.ranks)
    search.save_adapter(f"{options.output}/start")

    adapted = PeftModel.from_pretrained(model, f"{options.output}/start", is_trainable=True)  # with what it learned
    args = settings("sft", max_steps=options.steps)
    SFTTrainer(adapted, args, train_dataset=train, processing_class=tokenizer).train()
    adapted.save_pretrained(f"{options.output}/adapter")
    table.append(("learned ranks", search.parameters, loss_of(adapted)))

    small = compress(
        adapted, choosing, args=settings("compress"), trainer_class=SFTTrainer, processing_class=tokenizer,
        output_dir=f"{options.output}/small",
    )  # fmt: skip
    print(small)
    smaller = small.load(load())
    table.append(("compressed", small.file.parameters, loss_of(smaller)))
    table += [(f"rank {rank} everywhere", parameters_of(load(), rank), None) for rank in (8, 16)]
    for name, parameters, loss in table:
        print(f"{name:<20}{parameters:>10,} parameters", "" if loss is None else f"{loss:.4f} held-out loss")

    told = texts(smaller, tokenizer, scored.select(range(4)), options.new_tokens)
    merged = smaller.merge_and_unload()
    merged.save_pretrained(f"{options.output}/merged")
    tokenizer.save_pretrained(f"{options.output}/merged")
    plain = AutoModelForCausalLM.from_pretrained(f"{options.output}/merged")  # without PEFT and this package
    same = sum(map(str.__eq__, told, texts(plain, tokenizer, scored.select(range(4)), options.new_tokens)))
    print(f"the merged model writes {same} of {len(told)} texts as its adapter does; the first:\n{told[0]}")


if __name__ == "__main__":
    main()
