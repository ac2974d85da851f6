"""Tiny models built from configs, tiny data, and the commands of short runs on them."""

import json
import random
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    TrainingArguments,
    set_seed,
)

from autolora_trainer.tasks import DataError


def tiny_roberta(**changes):
    config = dict(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return RobertaForSequenceClassification(RobertaConfig(**{**config, **changes}))


def tiny_gpt2(**changes):
    config = dict(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=40, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(GPT2Config(**{**config, **changes}))


def lora(model, rank=4, targets=("query", "value"), **changes):
    """`model` under a LoRA adapter whose B is not zero: the state of a model that has been trained for a while."""
    config = {"task_type": "SEQ_CLS", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), **changes}
    model = get_peft_model(model, LoraConfig(**config))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def rows(count=64, length=10, classes=2, seed=0):
    """Sequences whose label says which of two token ranges is the more frequent: a task that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for index in range(count):
        label = index % classes
        ids = torch.randint(3, 60, (length,), generator=generator)
        marked = torch.rand(length, generator=generator) < 0.4
        ids = torch.where(marked, torch.full_like(ids, 5 + 10 * label), ids)
        data.append({"input_ids": ids.tolist(), "attention_mask": [1] * length, "labels": label})
    return Dataset.from_list(data)


WORDS = ("good great fine bad poor dull the film plot cast was is a story with and").split()


def tiny_checkpoint(folder, **changes):
    """A RoBERTa of 16 dimensions with a word-level tokenizer, saved as a checkpoint that scripts can load."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {
        "bos": "<s>",
        "eos": "</s>",
        "cls": "<s>",
        "sep": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{k}_token": v for k, v in names.items()})
    fast.save_pretrained(folder)
    set_seed(0)
    tiny_roberta(**{"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, **changes}).save_pretrained(
        folder
    )
    return str(folder)


def sentences(count=20, seed=0):
    """SST-2 in miniature: the first adjective of the sentence is its label."""
    generator = random.Random(seed)
    made = []
    for index in range(count):
        label = index % 2
        adjective = generator.choice(WORDS[:3] if label else WORDS[3:6])
        made.append({"sentence": f"the {generator.choice(WORDS[7:9])} was {adjective}", "label": label, "idx": index})
    return made


def write_rows(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def short_training(folder, kind=None, **changes):
    """Arguments of a short, quiet training on the CPU, with weight decay and without checkpoints.

    Args:
        kind: `TrainingArguments` (the default), or a class of it.
    """
    settings = dict(
        output_dir=str(folder),
        learning_rate=1e-2,
        weight_decay=0.1,
        per_device_train_batch_size=8,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
    )
    return (kind or TrainingArguments)(**{**settings, **changes})


def write_sst2(folder):
    """A tiny checkpoint and rows of SST-2 in miniature in `folder`, which is returned."""
    tiny_checkpoint(folder / "tiny-roberta")
    write_rows(folder / "train.jsonl", sentences(40))
    write_rows(folder / "validation.jsonl", sentences(20, seed=1))
    write_rows(folder / "test.jsonl", [{**row, "label": -1} for row in sentences(6, seed=2)])
    return folder


def sst2_command(folder, output, **settings):
    """The arguments of a short run of `run_glue.py` on what `write_sst2` wrote; None leaves one out."""
    common = {
        "task_name": "sst2",
        "model_name_or_path": folder / "tiny-roberta",
        "train_file": folder / "train.jsonl",
        "validation_file": folder / "validation.jsonl",
        "output_dir": output,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 4,
        "initial_rank": 4,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return as_argv({**common, **settings})


def as_argv(settings):
    """{"seed": 1, "ranks": None, "lora_target_modules": ["a", "b"]} -> --seed 1 --lora_target_modules a b"""
    argv = []
    for name, value in settings.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def hide_java(monkeypatch):
    """From now on there is no `java`, and the metrics that need it are left out."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *a, **k: None if name == "java" else which(name, *a, **k))


def data_error(call, *args, **kwargs):
    """The message of the `DataError` that a call raises; it is one line."""
    with pytest.raises(DataError) as error:
        call(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
