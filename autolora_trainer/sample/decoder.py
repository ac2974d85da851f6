"""The shipped encoder read from left to right: a language model of 2.6 million parameters for the demo.

What it knows of words is the encoder's; that a text goes on it has never seen, so that an adapter has much to learn.
Its head passes on what the last block gives, to the weights of the embeddings: nothing of it is drawn at random.
"""

import os

import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, RobertaForCausalLM

from autolora_trainer.sample import encoder_path
from autolora_trainer.sample.data import generate_text

TEXT_SEED = 21  # pre-training had 1


@torch.no_grad()
def save_decoder(folder: str | os.PathLike) -> None:
    """Write model and tokenizer, for `AutoModelForCausalLM.from_pretrained`."""
    model = RobertaForCausalLM.from_pretrained(encoder_path(), is_decoder=True)
    head = model.lm_head
    head.dense.weight.copy_(torch.eye(*head.dense.weight.shape))
    head.layer_norm.weight.fill_(1.0)
    for bias in (head.dense.bias, head.layer_norm.bias, head.bias):
        bias.zero_()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_path()).save_pretrained(folder)


def lines(counts: list[int]) -> tuple[list[Dataset], DataCollatorForLanguageModeling]:
    """(so many tokenized lines each, no line twice; what makes batches of them)."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    texts = iter(dict.fromkeys(generate_text(2 * sum(counts), TEXT_SEED)))
    parts = [[{"input_ids": tokenizer(next(texts))["input_ids"]} for _ in range(count)] for count in counts]
    return [Dataset.from_list(part) for part in parts], DataCollatorForLanguageModeling(tokenizer, mlm=False)
