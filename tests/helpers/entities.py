"""Sentences whose words have tags, and a tokenizer of their words."""

import json

from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.helpers.rows import write

LABELS = ("O", "B-blame", "B-praise", "I-blame", "I-praise")
IDS = {name: index for index, name in enumerate(LABELS)}


def word_tokenizer(special=True):
    """A word a token; `a-b` has three, and a zero-width joiner none (BERT's clean-up removes it)."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "-", *"abcdefghij"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def rows(*sentences):
    """("a b", "O B-x") -> a row a sentence."""
    made = {"tokens": [words.split() for words, _ in sentences], "tags": [tags.split() for _, tags in sentences]}
    return Dataset.from_dict(made)


def jsonl(path, *rows, column="tags"):
    """A file of rows ("a b", ["O", "B-x"])."""
    return write(path, "".join(json.dumps({"tokens": w.split(), column: t}) + "\n" for w, t in rows))
