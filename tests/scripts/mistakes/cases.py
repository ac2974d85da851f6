"""How a mistake is written down, with the files that it needs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

MODULES = [f"roberta.encoder.layer.{i}.attention.self.{p}" for i in range(2) for p in ("query", "value")]


@dataclass(frozen=True)
class File:
    name: str
    content: str | bytes
    inside: str = ""  # the argument is this path below it


@dataclass(frozen=True)
class Folder:
    files: dict = field(default_factory=dict)
    name: str = "folder"
    inside: str = ""


@dataclass(frozen=True)
class Model:
    changes: dict = field(default_factory=dict)
    of: str | None = None  # another script


@dataclass(frozen=True)
class Finished:
    changes: dict = field(default_factory=dict)
    inside: str = ""  # the argument is this folder in it


class Ranks:
    def __init__(self, **changes):
        self.changes = changes

    def content(self) -> str:
        modules = {name: {"rank": 2, "selection": [0.25] * 4} for name in MODULES}
        document = {"format_version": 1, "base_model": "org/base", "initial_rank": 4, "modules": modules}
        return json.dumps({**document, **self.changes})


@dataclass(frozen=True)
class Bad:
    """One mistake.

    Args:
        what: is wrong; it is the row's name, too.
        script: glue, nlg, ner: what is typed after `run_<script>.py`; cli: after `autolora`; library: in Python.
        given: {argument: value} changed in a command that works, None: left out; for cli the list of arguments; for
            library a function of a folder that raises `ValueError`.
        says: the line, with … for whatever may stand there.
    """

    what: str
    script: str
    given: dict | list | Callable
    says: str


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One bit of the last byte is another: the size is right."""
    return data[:-1] + bytes([data[-1] ^ 1])


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def sst2(*labels, **more):
    """Rows of SST-2 with these labels."""
    return [{"sentence": "the film was good", "label": label, **more} for label in labels]


def train(content, name="rows.jsonl"):
    return {"train_file": File(name, content)}


def validation(content, name="rows.jsonl"):
    return {"validation_file": File(name, content)}


def numbered(tag, labels=None):
    """A row whose tag is a number, and, where given, the labels.json beside it."""
    files = {"rows.jsonl": lines({"tokens": ["the"], "tags": [tag]})}
    return {"train_file": Folder(files | ({} if labels is None else {"labels.json": labels}), inside="rows.jsonl")}


def tokenizer(**settings):
    """A model whose tokenizer has these special tokens alone."""
    content = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    return {"model_name_or_path": Model({"tokenizer_config.json": content})}


def checkpoint(folder="checkpoint-1", **changes):
    """A checkpoint of a finished run with files changed; `__` stands for the dot."""
    changes = {f"{folder}/{name.replace('__', '.')}": change for name, change in changes.items()}
    return {"resume_from_checkpoint": Finished(changes, folder)}


def pairs(label):
    return [{"sentence1": "the film", "sentence2": "the plot", "label": value} for value in (label, 1.0)]


def table(header, *rows):
    return "\n".join([header, *rows, ""])


EVERY_EPOCH = {"save_strategy": "epoch", "eval_strategy": "epoch"}
GOOD = sst2(0, 1, 0, 1)
ENTITY = {"tokens": ["the", "good", "film"], "tags": ["O", "B-praise", "I-praise"]}
PAIRS = lines(*({"sentence1": "a", "sentence2": "b", "label": label} for label in (0, 1)))
TEXT = {"input": "the film", "reference": "the film was good"}
