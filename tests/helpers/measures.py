"""What tests measure: scores of a model, losses by hand, errors."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from autolora_trainer.tasks.files import DataError


def evaluation_batch(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "tiny-roberta")
    rows = [json.loads(line) for line in (place / "validation.jsonl").read_text().splitlines()]
    batch = tokenizer([row["sentence"] for row in rows], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([row["label"] for row in rows])}


def accuracy(place, model):
    batch = evaluation_batch(place)
    with torch.no_grad():
        return (model.eval()(**batch).logits.argmax(-1) == batch["labels"]).double().mean().item()


def loss(place, model):
    with torch.no_grad():
        return model.eval()(**evaluation_batch(place)).loss.item()


def by_hand(model, rows, smoothing=0.0):
    """The mean over all text tokens of  (1 - ε) (-log p) + ε mean_v (-log p_v), row by row, without padding."""
    losses = []
    for row in rows:
        with torch.no_grad():
            scores = -model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                losses.append((1 - smoothing) * scores[position, label] + smoothing * scores[position].mean())
    return torch.stack(losses).mean().item()


def relative_error(value, truth):
    return ((value - truth).norm() / truth.norm()).item()


def data_error(call, *args, **kwargs):
    """The message of the `DataError` that a call raises; it is one line."""
    with pytest.raises(DataError) as error:
        call(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
