"""README's programs, and what they take for given."""

import os
import re

from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autolora_trainer.sample import encoder_path, load_sample
from tests.helpers.commands import ROOT


def readme() -> str:
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def program(number: int) -> str:
    """The programs in their order: `find_ranks` in a TRL script, and the search as a Trainer."""
    return re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)[number]


def run_the_search(search_steps: int, retrain_steps: int, rows: int) -> None:
    """The second program, with few rows of the built-in sample, in the working directory."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    data = load_sample()["train"].select(range(rows)).map(lambda row: tokenizer(row["sentence"]), batched=True)
    names = {
        "__name__": "readme",
        "tokenizer": tokenizer,
        "rows": data.rename_column("label", "labels"),
        "lora": LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", lora_alpha=32),
        "load_model": lambda: AutoModelForSequenceClassification.from_pretrained(encoder_path()),
    }
    text = program(1)
    short = text.replace("max_steps=112", f"max_steps={search_steps}")
    short = short.replace('("retrain")', f'("retrain", max_steps={retrain_steps}, learning_rate=2e-3)')
    assert short.count("max_steps") == 2
    exec(compile(short, "README.md", "exec"), names)
