"""What users get wrong, one row each, and the one line that each mistake gets: `tests/test_bad_input.py` runs them.

A row reads: what is wrong, with which script, what is changed in a command that would work, and what the line says,
with … for whatever may stand there: what was given, what is needed, what to type next. All of them end with status 2:
nothing has run yet. The files that a row needs are in it:

    File("rows.csv", "sentence,label\n…")    a file of this content
    Folder({"a.txt": ""})                      a folder with these files
    Model({"config.json": None})               a copy of the script's tiny model, with files changed or (None) gone
    Finished({"cost.json": "{"})               likewise of a finished run's output directory
    Ranks(initial_rank="8")                    a ranks.json that fits the model, but for these fields
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments, LearnedRanks
from autolora_trainer.ranks import ModuleRank
from tests.tiny import lora, tiny_roberta

MODULES = [f"roberta.encoder.layer.{i}.attention.self.{p}" for i in range(2) for p in ("query", "value")]
C_ATTN = "transformer.h.0.attn.c_attn"


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


OTHER_WEIGHTS = save({"x": torch.zeros(2)}, metadata={"format": "pt"})


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

# fmt: off
# ---- files of rows: run_glue's reader, which the other scripts share

FILES = [
    Bad("a file that is not there", "glue", {"train_file": "nowhere.jsonl"},
        "There is no file nowhere.jsonl. Check the path."),
    Bad("a file whose name is nearly right", "glue", {"train_file": Folder({"train.jsonl": ""}, inside="trian.jsonl")},
        "There is no file folder/trian.jsonl. Did you mean 'train.jsonl'?"),
    Bad("a folder for a file", "glue", {"train_file": Folder(name="rows.jsonl")},
        "train_file/rows.jsonl is a folder. Give one .jsonl, .json, .csv or .tsv file in it."),
    Bad("a name that no file can have", "glue", {"train_file": "rows\0.jsonl"},
        "rows?.jsonl cannot be read: embedded null byte. Check the path and its permissions."),
    Bad("a name that is too long for a file", "glue", {"train_file": "r" * 300 + ".jsonl"},
        "….jsonl cannot be read: File name too long. Check the path and its permissions."),
    Bad("an empty name", "glue", {"train_file": ""},
        "'': cannot tell the format from the ending ''. Give a .jsonl, .json, .csv or .tsv file."),
    Bad("an empty file", "glue", train(""),
        "train_file/rows.jsonl is empty. Give a file with at least one row."),
    Bad("a file of blank lines", "glue", train("\n \n\t\n"),
        "train_file/rows.jsonl is empty. Give a file with at least one row."),
    Bad("a byte order mark and nothing else", "glue", train(b"\xef\xbb\xbf"),
        "train_file/rows.jsonl is empty. Give a file with at least one row."),
    Bad("an ending that says nothing", "glue", train(lines(*GOOD), "rows.txt"),
        "train_file/rows.txt: cannot tell the format from the … Give a .jsonl, .json, .csv or .tsv file."),
    Bad("no ending", "glue", train(lines(*GOOD), "rows"),
        "train_file/rows: cannot tell the format from the ending ''. Give a .jsonl, .json, .csv or .tsv file."),
    Bad("a Parquet file", "glue", train(b"PAR1" + bytes(20), "rows.parquet"),
        "train_file/rows.parquet: cannot tell the format from the … Give a .jsonl, .json, .csv or .tsv file."),
    Bad("a compressed file", "glue", train(gzip.compress(lines(*GOOD).encode(), mtime=0), "rows.jsonl.gz"),
        "train_file/rows.jsonl.gz: cannot tell the format from the … Give a .jsonl, .json, .csv or .tsv file."),
    Bad("a compressed file under the name of a plain one", "glue",
        train(gzip.compress(lines(*GOOD).encode(), mtime=0)),
        "train_file/rows.jsonl is compressed (gzip). Unpack it, and give what was in it."),
    Bad("a picture under the name of rows", "glue", train(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
        "train_file/rows.jsonl, line 1: byte 1 (0x89) is not UTF-8. Save the file as UTF-8."),
    Bad("zero bytes", "glue", train(bytes(64)),
        "train_file/rows.jsonl, line 1: broken JSON: Expecting … (column 1). Correct it, or leave the row out."),
    Bad("Latin-1", "glue", train('{"sentence": "caf\xe9", "label": 1}\n'.encode("latin-1")),
        "train_file/rows.jsonl, line 1: byte 18 (0xe9) is not UTF-8. Save the file as UTF-8."),
    Bad("UTF-16", "glue", train(lines(*GOOD).encode("utf-16")),
        "train_file/rows.jsonl, line 1: byte 1 (0xff) is not UTF-8. Save the file as UTF-8."),
    Bad("JSON lines cut off", "glue", train(lines(*GOOD)[:-20]),
        "train_file/rows.jsonl, line 4: broken JSON: Unterminated … 14). Correct it, or leave the row out."),
    Bad("a comma after the last key", "glue", train('{"sentence": "good", "label": 1,}\n'),
        "train_file/rows.jsonl, line 1: broken JSON: Expecting … 33). Correct it, or leave the row out."),
    Bad("single quotes in JSON", "glue", train("{'sentence': 'good', 'label': 1}\n"),
        "train_file/rows.jsonl, line 1: broken JSON: Expecting … (column 2). Correct it, or leave the row out."),
    Bad("a row that is no object", "glue", train(lines(*GOOD, ["good", 1])),
        "train_file/rows.jsonl, line 5: ['good', 1] is no JSON object. Write every row as {\"column\": value, ...}."),
    Bad("a row that is null", "glue", train(lines(*GOOD, None)),
        'train_file/rows.jsonl, line 5: None is no JSON object. Write every row as {"column": value, ...}.'),
    Bad("a row without one of the columns", "glue", train(lines(*GOOD, {"sentence": "good"})),
        "train_file/rows.jsonl, line 5: the row lacks 'label'; … needs the keys of line 1. Correct the row."),
    Bad("a row with a column more", "glue", train(lines(*GOOD, *sst2(1, note="x"))),
        "train_file/rows.jsonl, line 5: the row has the extra key … needs the keys of line 1. Correct the row."),
    Bad("a key twice in a row", "glue", train('{"sentence": "good", "label": 1, "label": 0}\n'),
        "train_file/rows.jsonl, line 1: broken JSON: the key … twice. Correct it, or leave the row out."),
    Bad("an empty key", "glue", train('{"": 1, "sentence": "good", "label": 1}\n'),
        "train_file/rows.jsonl, line 1: a key is empty. Give every column a name."),
    Bad("an object without keys", "glue", train("{}\n"),
        "train_file/rows.jsonl, line 1: the object is empty. Give every row its columns."),
    Bad("a key that cannot be stored", "glue", train('{"a\\u0000b": 1, "sentence": "good", "label": 1}\n'),
        "train_file/rows.jsonl: 'a\\x00b' is no column name that can be stored. Rename the column."),
    Bad("half a character", "glue", train('{"sentence": "\\ud800", "label": 1}\n'),
        "train_file/rows.jsonl, line 1: '\\ud800' in sentence does … (all text, or all numbers), in valid Unicode."),
    Bad("endless brackets", "glue", train("[" * 100_000 + "\n"),
        "train_file/rows.jsonl, line 1: broken JSON: maximum … string. Correct it, or leave the row out."),
    Bad("a number of ten thousand digits", "glue", train('{"sentence": "good", "label": ' + "9" * 10_000 + "}\n"),
        "train_file/rows.jsonl, line 1: broken JSON: Exceeds the … the limit. Correct it, or leave the row out."),
    Bad("text and numbers in one column", "glue", train(lines(*GOOD, {"sentence": 7, "label": 1})),
        "train_file/rows.jsonl, line 5: 7 in sentence does not go … (all text, or all numbers), in valid Unicode."),
    Bad("JSON that is one text", "glue", train('"good"', "rows.json"),
        "train_file/rows.json holds 'good'. Give a JSON array of objects, or one object a line."),
    Bad("JSON that is null", "glue", train("null", "rows.json"),
        "train_file/rows.json holds None. Give a JSON array of objects, or one object a line."),
    Bad("JSON of an empty list", "glue", train("[]", "rows.json"),
        "train_file/rows.json has no rows. Give a file with at least one row."),
    Bad("JSON of a list of numbers", "glue", train("[1, 2]", "rows.json"),
        'train_file/rows.json, row 1: 1 is no JSON object. Write every row as {"column": value, ...}.'),
    Bad("JSON of lists", "glue", train('[["good", 1]]', "rows.json"),
        "train_file/rows.json, row 1: ['good', 1] is no JSON object. Write every row as {\"column\": value, ...}."),
    Bad("JSON cut off", "glue", train(half(json.dumps(GOOD, indent=1).encode()), "rows.json"),
        "train_file/rows.json, line 9: broken JSON: Expecting value (column 4). Correct it, or leave the row out."),
    Bad("JSON whose data is no list", "glue", train('{"data": "good"}', "rows.json"),
        "train_file/rows.json has no column 'sentence': sst2 needs … the columns, or choose another --task_name."),
    Bad("JSON whose data is empty", "glue", train('{"data": []}', "rows.json"),
        "train_file/rows.json has no rows. Give a file with at least one row."),
    Bad("CSV of a header alone", "glue", train("sentence,label\n", "rows.csv"),
        "train_file/rows.csv has no rows. Give a file with at least one row."),
    Bad("CSV with a field too few", "glue", train(table("sentence,label", "good,1", "bad"), "rows.csv"),
        "train_file/rows.csv, line 3: 1 fields, but the header … label). Correct the row or the header."),
    Bad("CSV with a field too many", "glue", train(table("sentence,label", "good, really,1"), "rows.csv"),
        "train_file/rows.csv, line 2: 3 fields, but the header … label). Correct the row or the header."),
    Bad("CSV with a column named twice", "glue", train(table("sentence,label,label", "good,1,1"), "rows.csv"),
        "train_file/rows.csv, line 1: the header names 'label' twice. Rename one of the two."),
    Bad("CSV with a column without a name", "glue", train(table(",sentence,label", "0,good,1"), "rows.csv"),
        "train_file/rows.csv, line 1: column 1 of the header has … out (with pandas: to_csv(..., index=False))."),
    Bad("CSV with an open quote", "glue", train(table("sentence,label", '"good,1', "bad,0"), "rows.csv"),
        "train_file/rows.csv, line 2: broken CSV: unexpected end … in double quotes and write the quote twice."),
    Bad("CSV without a header", "glue", train(table("good,1", "bad,0"), "rows.csv"),
        "train_file/rows.csv has no column 'sentence': sst2 needs … the columns, or choose another --task_name."),
    Bad("semicolons for commas", "glue", train(table("sentence;label", "good;1"), "rows.csv"),
        "train_file/rows.csv has no column 'sentence': sst2 needs … the columns, or choose another --task_name."),
    Bad("tabs in a CSV file", "glue", train(table("sentence\tlabel", "good\t1"), "rows.csv"),
        "train_file/rows.csv has no column 'sentence': sst2 needs … the columns, or choose another --task_name."),
    Bad("TSV with a field too few", "glue", train(table("sentence\tlabel", "good"), "rows.tsv"),
        "train_file/rows.tsv, line 2: 1 fields, but the header … label). Correct the row or the header."),
    Bad("commas in a TSV file", "glue", train(table("sentence,label", "good,1"), "rows.tsv"),
        "train_file/rows.tsv has no column 'sentence': sst2 needs … the columns, or choose another --task_name."),
]

# ---- columns, texts and labels of GLUE

GLUE = [
    Bad("no column of text", "glue", train(lines({"text": "good", "label": 1})),
        "train_file/rows.jsonl has no column 'sentence': sst2 … the columns, or choose another --task_name."),
    Bad("a column in capitals", "glue", train(lines({"Sentence": "good", "label": 1})),
        "train_file/rows.jsonl has no column 'sentence': sst2 … the columns, or choose another --task_name."),
    Bad("no labels to train on", "glue", train(lines({"sentence": "good"})),
        "train_file/rows.jsonl has no column 'label': sst2 needs … the columns, or choose another --task_name."),
    Bad("no labels to evaluate on", "glue", validation(lines({"sentence": "good"})),
        "validation_file/rows.jsonl has no column 'label': sst2 … the columns, or choose another --task_name."),
    Bad("the columns of another task", "glue", {"task_name": "mrpc"},
        "glue/train.jsonl has no column 'sentence1': mrpc needs … the columns, or choose another --task_name."),
    Bad("a pair with one text", "glue", {"task_name": "rte", **train(lines({"sentence1": "good", "label": 1}))},
        "train_file/rows.jsonl has no column 'sentence2': rte … the columns, or choose another --task_name."),
    Bad("texts that are numbers", "glue", train(lines({"sentence": 1, "label": 1}, {"sentence": 2, "label": 0})),
        "train_file/rows.jsonl, row 1: sentence is 1, and text is … Write it as a string, or leave the row out."),
    Bad("a text that is null", "glue", train(lines(*GOOD, {"sentence": None, "label": 1})),
        "train_file/rows.jsonl, row 5: sentence is None, and text … Write it as a string, or leave the row out."),
    Bad("texts that are lists", "glue", train(lines({"sentence": ["good"], "label": 1})),
        "train_file/rows.jsonl, row 1: sentence is ['good'], and … Write it as a string, or leave the row out."),
    Bad("texts that are objects", "glue", train(lines({"sentence": {"text": "good"}, "label": 1})),
        "train_file/rows.jsonl, row 1: sentence is {'text': … Write it as a string, or leave the row out."),
    Bad("a label that is null", "glue", train(lines(*GOOD, *sst2(None))),
        "train_file/rows.jsonl, row 5: the row has no label (label … one. Give the label, or leave the row out."),
    Bad("an empty label", "glue", train(table("sentence,label", "good,1", "bad,"), "rows.csv"),
        "train_file/rows.csv, row 2: the row has no label (label … one. Give the label, or leave the row out."),
    Bad("a label too high", "glue", train(lines(*GOOD, *sst2(2))),
        "train_file/rows.jsonl, row 5: the label is 2, and sst2 … Correct the label, or leave the row out."),
    Bad("a label too low", "glue", train(lines(*GOOD, *sst2(-2))),
        "train_file/rows.jsonl, row 5: the label is -2, and sst2 … Correct the label, or leave the row out."),
    Bad("a label of an unlabelled row", "glue", train(lines(*GOOD, *sst2(-1))),
        "train_file/rows.jsonl, row 5: the row has no label (label … one. Give the label, or leave the row out."),
    Bad("a label between two classes", "glue", train(lines(*sst2(0.0, 1.0, 0.5))),
        "train_file/rows.jsonl, row 3: the label is 0.5, and sst2 … Correct the label, or leave the row out."),
    Bad("a label that is no number", "glue", train('{"sentence": "good", "label": NaN}\n'),
        "train_file/rows.jsonl, row 1: the label is nan, and sst2 … Correct the label, or leave the row out."),
    Bad("a label without end", "glue", train('{"sentence": "good", "label": Infinity}\n'),
        "train_file/rows.jsonl, row 1: the label is inf, and sst2 … Correct the label, or leave the row out."),
    Bad("a label of a name that the task does not have", "glue", train(lines(*sst2("positive", "good"))),
        "train_file/rows.jsonl, row 2: the label is 'good', and … Correct the label, or leave the row out."),
    Bad("labels that are true and false", "glue", train(lines(*sst2(True, False))),
        "train_file/rows.jsonl, row 1: the label is True, and sst2 … Correct the label, or leave the row out."),
    Bad("labels that are lists", "glue", train(lines(*sst2([1], [0]))),
        "train_file/rows.jsonl, row 1: the label is [1], and sst2 … Correct the label, or leave the row out."),
    Bad("labels that are objects", "glue", train(lines(*sst2({"id": 1}))),
        "train_file/rows.jsonl, row 1: the label is {'id': 1}, and … Correct the label, or leave the row out."),
    Bad("labels of text and numbers", "glue", train(lines(*sst2(1, "negative"))),
        "train_file/rows.jsonl, line 2: 'negative' in label does … (all text, or all numbers), in valid Unicode."),
    Bad("a label in the validation rows that is too high", "glue", validation(lines(*GOOD, *sst2(7))),
        "validation_file/rows.jsonl, row 5: the label is 7, and … Correct the label, or leave the row out."),
    Bad("an unlabelled validation row", "glue", validation(lines(*GOOD, *sst2(-1))),
        "validation_file/rows.jsonl, row 5: the row has no label … one. Give the label, or leave the row out."),
    Bad("an empty validation file", "glue", validation(""),
        "validation_file/rows.jsonl is empty. Give a file with at least one row."),
    Bad("validation rows without text", "glue", validation(lines({"idx": 1, "label": 1})),
        "validation_file/rows.jsonl has no column 'sentence': sst2 … the columns, or choose another --task_name."),
    Bad("test rows without text", "glue", {"test_file": File("test.jsonl", lines({"idx": 1}))},
        "test_file/test.jsonl has no column 'sentence': sst2 needs … the columns, or choose another --task_name."),
    Bad("a label of test rows that is too high", "glue", {"test_file": File("test.jsonl", lines(*sst2(9)))},
        "test_file/test.jsonl, row 1: the label is 9, and sst2 has … Correct the label, or leave the row out."),
    Bad("one label alone", "glue", train(lines(*sst2(1, 1, 1, 1))),
        "train_file/rows.jsonl: every row (4) has the label 1 … another label, or check the label column."),
    Bad("one label alone in the first rows", "glue", {**train(lines(*sst2(0, 0, 1, 1))), "max_train_samples": 2},
        "train_file/rows.jsonl: every row (2) has the label 0 … another label, or check the label column."),
    Bad("one row", "glue", train(lines(*sst2(1))),
        "train_file/rows.jsonl: every row (1) has the label 1 … another label, or check the label column."),
    Bad("too few rows for two splits", "glue", {**train(lines(*GOOD)), "val_fraction": 0.01},
        "val_fraction=0.01 of 4 training rows leaves 4 for D_tr … more training rows or another val_fraction."),
    Bad("a score that is no number", "glue",
        {"task_name": "stsb", **train('{"sentence1": "a", "sentence2": "b", "label": NaN}\n')},
        "train_file/rows.jsonl, row 1: the label is nan, and stsb … Correct the label, or leave the row out."),
    Bad("a score without end", "glue", {"task_name": "stsb", **train(lines(*pairs(float("inf"))))},
        "train_file/rows.jsonl, row 1: the label is inf, and stsb … Correct the label, or leave the row out."),
    Bad("a score in words", "glue", {"task_name": "stsb", **train(lines(*[{**p, "label": "high"} for p in pairs(1)]))},
        "train_file/rows.jsonl, row 1: the label is 'high', and … Correct the label, or leave the row out."),
    Bad("a score that is null", "glue", {"task_name": "stsb", **train(lines(*pairs(None)))},
        "train_file/rows.jsonl, row 1: the row has no label (label … one. Give the label, or leave the row out."),
    Bad("one score alone", "glue", {"task_name": "stsb", **train(lines(*pairs(1.0)))},
        "train_file/rows.jsonl: every row (2) has the label 1.0, … another label, or check the label column."),
    Bad("a third class of two", "glue",
        {"task_name": "mnli", **train(lines({"premise": "a", "hypothesis": "b", "label": 3}))},
        "train_file/rows.jsonl, row 1: the label is 3, and mnli … Correct the label, or leave the row out."),
    Bad("no rows to evaluate on", "glue", {"validation_file": None},
        "--do_eval needs rows, got no validation rows. Add --validation_file."),
    Bad("no rows to predict", "glue", {"do_predict": True},
        "--do_predict needs rows, got no test rows. Add --test_file."),
    Bad("no rows to train on", "glue", {"train_file": None, "do_train": True},
        "--do_train needs rows, got no train rows. Add --train_file."),
    Bad("validation rows for a run that has none", "glue",
        {"validation_file": None, "do_train": True, "eval_strategy": "epoch"},
        "--eval_strategy needs rows, got no validation rows. Add --validation_file."),
    Bad("validation rows that are asked for twice", "glue",
        {"validation_file": None, "do_train": True, "do_eval": True, "eval_strategy": "epoch"},
        "--do_eval needs rows, got no validation rows. Add --validation_file."),
    Bad("validation rows for a run that predicts alone", "glue",
        {"validation_file": None, "do_predict": True, "test_file": File("test.jsonl", lines(*GOOD)),
         "eval_strategy": "epoch", "train_file": None},
        "--eval_strategy needs rows, got no validation rows. Add --validation_file."),
]

# ---- tokens and tags

NER = [
    Bad("no file of entities", "ner", {"train_file": None, "validation_file": None, "task_name": "ner"},
        "The task ner is your own data. Give it with --train_file and --validation_file."),
    Bad("no training rows to take labels from", "ner", {"train_file": None, "task_name": "ner"},
        "ner/validation.jsonl: ner takes its labels from the training rows, got none. Give --train_file."),
    Bad("entities in a CSV file", "ner", train("tokens,tags\n", "rows.csv"),
        "train_file/rows.csv: a CSV file cannot hold lists of … a .jsonl, .json, .iob2, .conll or .tsv file."),
    Bad("entities in a file of another ending", "ner", train("x", "rows.txt"),
        "train_file/rows.txt: cannot tell the format from the … a .jsonl, .json, .iob2, .conll or .tsv file."),
    Bad("rows without tokens", "ner", train(lines({"words": ["good"], "tags": ["O"]})),
        "train_file/rows.jsonl has no column 'tokens': the columns … given are words, tags. Rename the columns."),
    Bad("rows without tags", "ner", train(lines({"tokens": ["good"]})),
        "train_file/rows.jsonl has no column 'tags': the columns … those given are tokens. Rename the columns."),
    Bad("tokens that are a text", "ner", train(lines({"tokens": "the good film", "tags": ["O"]})),
        "train_file/rows.jsonl, row 1: tokens is 'the good film', … it as [\"word\", ...], or leave the row out."),
    Bad("a sentence without tokens", "ner", train(lines(ENTITY, {"tokens": [], "tags": []})),
        "train_file/rows.jsonl, row 2: tokens is empty. Give at least one word, or leave the row out."),
    Bad("an empty token", "ner", train(lines(ENTITY, {"tokens": ["the", ""], "tags": ["O", "O"]})),
        "train_file/rows.jsonl, row 2: word 2 is '', and text is … that is not empty, or leave the row out."),
    Bad("a token that is null", "ner", train(lines(ENTITY, {"tokens": ["the", None], "tags": ["O", "O"]})),
        "train_file/rows.jsonl, row 2: word 2 is None, and text is … that is not empty, or leave the row out."),
    Bad("tokens that are numbers", "ner", train(lines({"tokens": [1, 2], "tags": ["O", "B-x"]})),
        "train_file/rows.jsonl, row 1: word 1 is 1, and text is … that is not empty, or leave the row out."),
    Bad("tags that are a text", "ner", train(lines({"tokens": ["the", "film"], "tags": "O O"})),
        "train_file/rows.jsonl, row 1: tags is 'O O', and a list … Write it as [\"O\", ...], or leave the row out."),
    Bad("fewer tags than tokens", "ner", train(lines(ENTITY, {"tokens": ["the", "film"], "tags": ["O"]})),
        "train_file/rows.jsonl, row 2: 2 tokens, but 1 tags; every … one tag. Correct the row, or leave it out."),
    Bad("more tags than tokens", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": ["O", "O"]})),
        "train_file/rows.jsonl, row 2: 1 tokens, but 2 tags; every … one tag. Correct the row, or leave it out."),
    Bad("tags that are null", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": None})),
        "train_file/rows.jsonl, row 2: the row has no tags, and … them. Give the tags, or leave the row out."),
    Bad("a tag that is null", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": [None]})),
        "train_file/rows.jsonl, row 2: the tag is None, and IOB2 … Correct the tag, or leave the row out."),
    Bad("an empty tag", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": [""]})),
        "train_file/rows.jsonl, row 2: the tag is '', and IOB2 … Correct the tag, or leave the row out."),
    Bad("a tag of another scheme", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": ["S-praise"]})),
        "train_file/rows.jsonl, row 2: the tag is 'S-praise', and … Correct the tag, or leave the row out."),
    Bad("a tag in small letters", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": ["b-praise"]})),
        "train_file/rows.jsonl, row 2: the tag is 'b-praise', and … Correct the tag, or leave the row out."),
    Bad("a tag without a type", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": ["B-"]})),
        "train_file/rows.jsonl, row 2: the tag is 'B-', and IOB2 … Correct the tag, or leave the row out."),
    Bad("tags that are numbers without names", "ner", train(lines({"tokens": ["the", "film"], "tags": [0, 1]})),
        'train_file/rows.jsonl: the tags are numbers, and nothing … ["O", "B-protein", ...]} beside the file.'),
    Bad("tags of numbers and names", "ner", train(lines(ENTITY, {"tokens": ["the"], "tags": [1]})),
        "train_file/rows.jsonl, line 2: [1] in tags does not go … (all text, or all numbers), in valid Unicode."),
    Bad("tags that are no whole numbers", "ner", train(lines({"tokens": ["the"], "tags": [0.5]})),
        "train_file/rows.jsonl, row 1: the tag is 0.5, and IOB2 … Correct the tag, or leave the row out."),
    Bad("a tag that is true", "ner", train(lines({"tokens": ["the"], "tags": [True]})),
        'train_file/rows.jsonl: the tags are numbers, and nothing … ["O", "B-protein", ...]} beside the file.'),
    Bad("no entity at all", "ner", train(lines({"tokens": ["the", "film"], "tags": ["O", "O"]})),
        "train_file/rows.jsonl: every tag of the 1 rows is O, and … rows with entities, or check the tags column."),
    Bad("a type in the validation rows that training lacks", "ner",
        validation(lines({"tokens": ["a"], "tags": ["B-place"]})),
        "validation_file/rows.jsonl, row 1: the tag is 'B-place', … Correct the tag, or leave the row out."),
    Bad("validation rows without tags", "ner", validation(lines({"tokens": ["a"]})),
        "validation_file/rows.jsonl has no column 'tags': the … those given are tokens. Rename the columns."),
    Bad("a type that JNLPBA does not have", "ner", {"task_name": "jnlpba"},
        "ner/train.jsonl, row 1: the tag is 'B-praise', and jnlpba … I-RNA. Correct the tag, or leave the row out."),
    Bad("a number that JNLPBA does not have", "ner",
        {"task_name": "jnlpba", **train(lines({"tokens": ["IL-2"], "tags": [11]}))},
        "train_file/rows.jsonl, row 1: the tag is 11, and the ids … Correct the tag, or leave the row out."),
    Bad("a word without a tag", "ner", train("the O\ngood\n\n", "rows.iob2"),
        "train_file/rows.iob2, line 2: 'good' has no tag. Write a … or leave the line blank to end the sentence."),
    Bad("a tag without a word", "ner", train("the\tO\n\tB-praise\n", "rows.iob2"),
        "train_file/rows.iob2, line 2: there is no word before the … or leave the line blank to end the sentence."),
    Bad("blank lines alone", "ner", train("\n\n-DOCSTART- O\n\n", "rows.conll"),
        "train_file/rows.conll has no rows. Give a file with at least one row."),
    Bad("a tag of another scheme in a file of lines", "ner", train("the O\n\ngood U-praise\n", "rows.iob2"),
        "train_file/rows.iob2, line 3: the tag is 'U-praise', and … Correct the tag, or leave the row out."),
    Bad("entities in Latin-1", "ner", train("caf\xe9 O\n".encode("latin-1"), "rows.iob2"),
        "train_file/rows.iob2, line 1: byte 4 (0xe9) is not UTF-8. Save the file as UTF-8."),
    Bad("labels.json that is broken", "ner", numbered(1, "{"),
        "folder/labels.json is no JSON: Expecting property name … column 2 (char 1). Correct it, or remove it."),
    Bad("labels.json without O", "ner", numbered(1, '{"labels": ["B-x"]}'),
        'folder/labels.json must hold {"labels": [...]}, different … it, or remove it and write the tags as names.'),
    Bad("labels.json with a label twice", "ner", numbered(1, '{"labels": ["O", "B-x", "B-x"]}'),
        'folder/labels.json must hold {"labels": [...]}, different … it, or remove it and write the tags as names.'),
    Bad("a number that labels.json does not name", "ner", numbered(2, '{"labels": ["O", "B-x"]}'),
        "folder/rows.jsonl, row 1: the tag is 2, and the ids are 0 … (B-x). Correct the tag, or leave the row out."),
    Bad("test rows with fewer tags than tokens", "ner",
        {"test_file": File("test.jsonl", lines({"tokens": ["a", "the"], "tags": ["O"]}))},
        "test_file/test.jsonl, row 1: 2 tokens, but 1 tags; every … one tag. Correct the row, or leave it out."),
    Bad("words of which no token is left", "ner",
        {"validation_file": File("rows.jsonl", lines({"tokens": [" "], "tags": ["O"]}))},
        "No word of these rows gives a token of this model. Check the text, or give another model."),
]

# ---- inputs and references

NLG = [
    Bad("no file of texts", "nlg", {"train_file": None, "validation_file": None},
        "The task nlg is for rows of your own. Give --train_file and --validation_file."),
    Bad("no column of inputs", "nlg", train(lines({"text": "a", "reference": "b"})),
        "train_file/rows.jsonl has no column 'input': nlg needs … the columns, or choose another --task_name."),
    Bad("no column of references", "nlg", train(lines({"input": "a"})),
        "train_file/rows.jsonl has no column 'reference': nlg … the columns, or choose another --task_name."),
    Bad("a blank input", "nlg", train(lines(TEXT, {**TEXT, "input": " "})),
        "train_file/rows.jsonl, row 2: input is ' '; text is needed. Correct the row, or leave it out."),
    Bad("an input that is null", "nlg", train(lines(TEXT, {**TEXT, "input": None})),
        "train_file/rows.jsonl, row 2: input is None; text is needed. Correct the row, or leave it out."),
    Bad("inputs that are numbers", "nlg", train(lines({**TEXT, "input": 1})),
        "train_file/rows.jsonl, row 1: input is 1; text is needed. Correct the row, or leave it out."),
    Bad("an empty reference", "nlg", train(lines(TEXT, {**TEXT, "reference": ""})),
        "train_file/rows.jsonl, row 2: there is no reference, and … row for train needs one. Leave the row out."),
    Bad("a reference that is null", "nlg", train(lines(TEXT, {**TEXT, "reference": None})),
        "train_file/rows.jsonl, row 2: there is no reference, and … row for train needs one. Leave the row out."),
    Bad("an empty list of references", "nlg", train(lines({"input": "a", "references": []})),
        "train_file/rows.jsonl, row 1: there is no reference, and … row for train needs one. Leave the row out."),
    Bad("references that are numbers", "nlg", train(lines({**TEXT, "reference": 1})),
        "train_file/rows.jsonl, row 1: the reference is 1. Give a text, or a list of texts."),
    Bad("lists of references that are numbers", "nlg", train(lines({"input": "a", "references": [1, 2]})),
        "train_file/rows.jsonl, row 1: the reference is [1, 2]. Give a text, or a list of texts."),
    Bad("references that are objects", "nlg", train(lines({**TEXT, "reference": {"text": "a"}})),
        "train_file/rows.jsonl, row 1: the reference is {'text': 'a'}. Give a text, or a list of texts."),
    Bad("a validation row without a reference", "nlg", validation(lines({**TEXT, "reference": " "})),
        "validation_file/rows.jsonl, row 1: there is no reference, … for validation needs one. Leave the row out."),
    Bad("references for some test rows", "nlg",
        {"decode": True, "test_file": File("test.jsonl", lines(TEXT, {"input": "b", "reference": None}))},
        "test_file/test.jsonl, row 2: there is no reference, and … rows have one. Give every row one, or none."),
    Bad("a meaning that is not written as one", "nlg",
        {"task_name": "e2e", **train(lines({"mr": "name: Blue Spice", "ref": "a"}))},
        "train_file/rows.jsonl, row 1: mr is 'name: Blue Spice'; a … …. Correct the row, or leave it out."),
    Bad("a meaning with an open bracket", "nlg",
        {"task_name": "e2e", **train(lines({"mr": "name[Blue Spice", "ref": "a"}))},
        "train_file/rows.jsonl, row 1: mr is 'name[Blue Spice'; a … …. Correct the row, or leave it out."),
    Bad("the columns of another task of texts", "nlg", {"task_name": "e2e"},
        "nlg/train.jsonl has no column 'meaning_representation': … the columns, or choose another --task_name."),
    Bad("a triple of two", "nlg", {"task_name": "webnlg", **train(lines({"triples": ["A | b"], "references": ["c"]}))},
        "train_file/rows.jsonl, row 1: triples is ['A | b']; the … | object. Correct the row, or leave it out."),
    Bad("no triple", "nlg", {"task_name": "webnlg", **train(lines({"triples": [], "references": ["c"]}))},
        "train_file/rows.jsonl, row 1: triples is []; there is no … | object. Correct the row, or leave it out."),
    Bad("triples that are numbers", "nlg",
        {"task_name": "webnlg", **train(lines({"triples": [1], "references": ["c"]}))},
        "train_file/rows.jsonl, row 1: triples is [1]; the triple … | object. Correct the row, or leave it out."),
    Bad("a category that is neither seen nor unseen", "nlg",
        {"task_name": "webnlg", **train(lines({"triples": ["A | b | c"], "references": ["c"], "seen": "perhaps"}))},
        "train_file/rows.jsonl, row 1: seen is 'perhaps'. Write true or false, or leave the column out."),
    Bad("a prompt longer than the limit", "nlg", {"max_seq_length": 8},
        "nlg/train.jsonl, row 1: the prompt has 9 tokens, and with … Raise --max_seq_length, or leave the row out."),
    Bad("a prompt longer than the model", "nlg", {"max_seq_length": 512, **train(lines({**TEXT, "input": "a" * 300}))},
        "train_file/rows.jsonl, row 1: the prompt has 301 tokens, … with more positions, or leave the row out."),
    Bad("a tokenizer without an end token", "nlg", tokenizer(pad_token="<end>"),
        "The tokenizer of …/model_name_or_path/model has no end … to end. Give another with --tokenizer_name."),
    Bad("a tokenizer with no token to pad with", "nlg", tokenizer(),
        "The tokenizer of …/model_name_or_path/model has neither a … need one. Give another with --tokenizer_name."),
    Bad("test rows that are not to be decoded", "nlg", {"decode": False, "test_file": File("test.jsonl", lines(TEXT))},
        "Test rows are there to be decoded, got --decode false. Drop it, or the test rows."),
    Bad("a prompt format that there is not", "nlg", {"prompt_format": "loar"},
        "prompt_format must be one of lora, words, plain, got 'loar'. Did you mean lora?"),
    Bad("a model of another kind for texts", "nlg", {"model_name_or_path": Model(of="glue")},
        "…/model_name_or_path/model is a RobertaForCausalLM that … a causal model with --model_name_or_path."),
]

# ---- numbers out of range: argument, values, what the line says of each of them ({})

NUMBERS = [
    ("initial_rank", [0, -3], "must be at least 2, got {}. The paper uses 8."),
    ("initial_rank", [1], "must be at least 2 (with softmax a single component has α = 1, … got {}"),
    ("initial_rank", [10**9], "must be at most 4096, got {}"),
    ("hypergradient_interval", [0, -1], "must be at least 1, got {}. The paper uses 1."),
    ("inner_lr", [-1, "nan", "inf"], "must be zero or a positive number, got {}"),
    ("finite_difference_radius", [0, -0.01, "nan", "inf"], "must be a positive number, got {}"),
    ("selection_learning_rate", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("val_fraction", [0, 1, -0.5, 1.5, "nan"], "must be between 0 and 1 (both splits need examples), got {}…0.5."),
    ("threshold", ["nan", "inf"], "must be a finite number, got {}. The paper uses 1/initial_rank."),
    ("rank_budget", [0, -5, "lora:0", "lora:-1", "lora:", "lora:1.5", "many", "nan", "1e3", "9" * 20],
     "must be a number of adapter parameters or lora:R, got '{}', e.g. lora:4."),
    ("rank_budget", ["lora:9"], "{} asks for 1,152 adapter parameters, and rank 4 in … Lower rank_budget or"),
    ("rank_budget", [1], "{} is 1 adapter parameters, and the least … 128. Raise rank_budget or set min_rank 0."),
    ("min_rank", [-1, 2], "must be 0 or 1, got {}"),
    ("search_patience", [-1], "must be 0 (off) or a positive number of steps, got {}"),
    ("search_learning_rate", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("search_epochs", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("search_max_steps", [0, -2], "must be at least 1, or -1 for its default, got {}"),
    ("retrain_epochs", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("retrain_cut", [-0.1, 1, "nan"], "must be at least 0 and below 1, got {}"),
    ("lora_r", [0, -4], "must be at least 1, got {}"),
    ("lora_r", [10**9], "must be at most 4096, got {}"),
    ("lora_alpha", [0, -16], "must be at least 1, got {}"),
    ("lora_dropout", [-0.1, 1, "nan"], "must be at least 0 and below 1, got {}"),
    ("learning_rate", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("num_train_epochs", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("max_steps", [0, -2], "must be at least 1, or -1 for its default, got {}"),
    ("per_device_train_batch_size", [0, -1], "must be at least 1, got {}"),
    ("per_device_eval_batch_size", [0], "must be at least 1, got {}"),
    ("gradient_accumulation_steps", [0, -1], "must be at least 1, got {}"),
    ("weight_decay", [-0.1, "nan", "inf"], "must be at least 0, got {}"),
    ("warmup_steps", [-1, "nan", "inf"], "must be at least 0, got {}"),
    ("max_grad_norm", [-1, "nan"], "must be at least 0, got {}"),
    ("adam_beta1", [1, -0.1, "nan"], "must be at least 0 and below 1, got {}"),
    ("adam_beta2", [1, 1.5, "nan"], "must be at least 0 and below 1, got {}"),
    ("adam_epsilon", [-1, "nan"], "must be at least 0, got {}"),
    ("label_smoothing_factor", [-0.1, 1.5, "nan"], "must be at least 0 and below 1, got {}"),
    ("logging_steps", [0, -1, "nan"], "must be a positive number, got {}"),
    ("logging_steps", [1.5], "must be an integer if bigger than 1: {}"),
    ("save_steps", [0, -1, "nan"], "must be a positive number, got {}"),
    ("save_total_limit", [0, -1], "must be at least 1, got {}"),
    ("seed", [-1, 2**40], "must be from 0 to 4294967295, got {}"),
    ("data_seed", [-1], "must be from 0 to 4294967295, got {}"),
    ("dataloader_num_workers", [-1], "must be at least 0, got {}"),
    ("max_seq_length", [0, -1, 3], "must be at least 4, got {}"),
    ("max_train_samples", [0, -1], "must be at least 1, got {}"),
    ("sample_seed", [-1, 2**32], "must be from 0 to 4294967295, got {}"),
    ("max_eval_samples", [0], "must be at least 1, got {}"),
    ("max_predict_samples", [0], "must be at least 1, got {}"),
    ("initial_rank", [1.5, "nan", "eight"], "…invalid int value: '{}'; --help lists the arguments"),
    ("hypergradient_interval", [0.5, "inf"], "…invalid int value: '{}'; --help lists the arguments"),
    ("lora_alpha", ["nan"], "…invalid int value: '{}'; --help lists the arguments"),
    ("max_steps", [1.5], "…invalid int value: '{}'; --help lists the arguments"),
    ("seed", ["x"], "…invalid int value: '{}'; --help lists the arguments"),
    ("inner_lr", ["fast"], "…invalid float value: '{}'; --help lists the arguments"),
    ("val_fraction", ["half"], "…invalid float value: '{}'; --help lists the arguments"),
    ("learning_rate", ["1e-4x"], "…invalid float value: '{}'; --help lists the arguments"),
]
NUMBERS_OF_ADAPTERS = [
    ("adapter_size", [0, -1], "must be at least 1, got {}"),
    ("adapter_size", [10**12], "must be at most 65536, got {}"),
    ("adapter_size", [1.5], "…invalid int value: '{}'; --help lists the arguments"),
]
NUMBERS_OF_GRIDS = [("grid_trials", [0, -1], "must be at least 1, got {}")]
NUMBERS_OF_TEXTS = [
    ("num_beams", [0, -1], "must be at least 1, got {}"),
    ("length_penalty", ["nan", "inf"], "must be a finite number, got {}. LoRA used 0.8."),
    ("no_repeat_ngram_size", [-1], "must be at least 0, got {}"),
    ("max_new_tokens", [0], "must be at least 1, got {}"),
    ("generation_batch_size", [0], "must be at least 1, got {}"),
    ("base_dropout", [-0.1, 1, "nan"], "must be at least 0 and below 1, got {}"),
]

# ---- choices that there are not: argument, value, what the line says

CHOICES = [
    ("task_name", "sst-2", "must be one of cola, sst2, … got 'sst-2'. Did you mean sst2?"),
    ("method", "autolroa", "must be one of autolora, lora, … got 'autolroa'. Did you mean autolora?"),
    ("preset", "papper", "must be one of paper, got 'papper'. Did you mean paper?"),
    ("constraint", "softmx", "must be one of softmax, sigmoid, none, got 'softmx'. Did you mean softmax?"),
    ("gate_scaling", "papr", "must be one of plain, paper, got 'papr'. Did you mean paper?"),
    ("hypergradient", "finite-difference", "must be one of … Did you mean finite_difference?"),
    ("finite_difference", "onesided", "must be one of central, one_sided, got 'onesided'. Did you mean one_sided?"),
    ("virtual_step", "adam", "must be one of sgd, adamw, got 'adam'. Did you mean adamw?"),
    ("rank_rule", "adaptiv", "must be one of adaptive, … got 'adaptiv'. Did you mean adaptive?"),
    ("scaling", "constnat", "must be one of constant, paper, got 'constnat'. Did you mean constant?"),
    ("retrain_init", "scrach", "must be one of scratch, search, got 'scrach'. Did you mean scratch?"),
    ("dtype", "float16", "must be one of float32, bfloat16, got 'float16'. Did you mean"),
    ("optim", "adamw", "invalid choice: 'adamw' (choose from 'adamw_torch', … --help lists the arguments"),
    ("lr_scheduler_type", "liner", "…invalid choice: 'liner' (choose from 'linear', … --help lists the arguments"),
    ("save_strategy", "step", "…invalid choice: 'step' (choose from 'no', 'steps', 'epoch', 'best'); --help lists"),
    ("eval_strategy", "epochs", "…invalid choice: 'epochs' (choose from 'no', 'steps', 'epoch'); --help lists"),
    ("logging_strategy", "step", "…invalid choice: 'step' (choose from 'no', 'steps', 'epoch'); --help lists"),
    ("train_sampling_strategy", "length", "…invalid choice: 'length' (choose from … --help lists"),
    ("log_level", "loud", "…invalid choice: 'loud' (choose from 'detail', 'debug', … --help lists the arguments"),
    ("report_to", "tensorbord", "tensorbord: tensorbord is not supported, only … tensorboard, … are supported"),
    ("attn_implementation", "sdap", '…="sdap"` is not supported. The only possible arguments are …"eager"'),
    ("bf16", "maybe", "Truthy value expected: got maybe but expected one of yes/no, … --help lists the arguments"),
    ("overwrite", "perhaps", "Truthy value expected: got perhaps but expected one of yes/no, … --help lists"),
]

ARGUMENTS = [
    Bad("no task", "glue", {"task_name": None, "train_file": None, "validation_file": None},
        "--task_name is missing. Give one of cola, sst2, mrpc, qqp, mnli, qnli, rte, stsb, wnli, sample."),
    Bad("an argument that there is not", "glue", {"learning_rte": 1e-4},
        "--learning_rte is no argument of this script. Did you mean learning_rate?"),
    Bad("an argument that is another script's", "glue", {"num_beams": 4},
        "--num_beams is no argument of this script. --help lists the arguments."),
    Bad("an argument cut short", "glue", {"learning": 1e-4},
        "--learning is no argument of this script. Did you mean learning_rate?"),
    Bad("an argument of an older transformers", "glue", {"evaluation_strategy": "epoch"},
        "--evaluation_strategy is no argument of this script. Did you mean eval_strategy?"),
    Bad("a method of PEFT without its type", "glue", {"method": "peft"},
        "--method peft needs --peft_type, one of ADAMSS, … SUPERTUNING, TINYLORA, TRAINABLE_TOKENS, UNIL"),
    Bad("a type of PEFT that there is not", "glue", {"method": "peft", "peft_type": "LORRA"},
        "--peft_type must be one of PEFT's types, got 'LORRA'. Did you mean LORA?"),
    Bad("a type of PEFT that has a method of its own", "glue", {"method": "peft", "peft_type": "adalora"},
        "--peft_type ADALORA is a method of its own here. Type --method adalora."),
    Bad("settings of PEFT that are not JSON", "glue", {"method": "ia3", "peft_kwargs": "r=4"},
        "--peft_kwargs is not JSON: Expecting value: line 1 column 1 (char 0). Type e.g. '{\"r\": 16}'."),
    Bad("settings of PEFT that are a list", "glue", {"method": "ia3", "peft_kwargs": "[1]"},
        "--peft_kwargs must be a JSON object, e.g. '{\"r\": 16}', got [1]."),
    Bad("a setting of PEFT that there is not", "glue",
        {"method": "prompt_tuning", "peft_kwargs": '{"num_virtual_token": 4}'},
        "--peft_kwargs sets 'num_virtual_token', and … setting. Did you mean num_virtual_tokens?"),
    Bad("a setting of PEFT of the wrong type", "glue",
        {"method": "prompt_tuning", "peft_kwargs": '{"num_virtual_tokens": "many"}'},
        "--peft_type PROMPT_TUNING does not work with … or another --peft_type."),
    Bad("more virtual tokens than positions", "glue",
        {"method": "prompt_tuning", "peft_kwargs": '{"num_virtual_tokens": 400}'},
        "--peft_type PROMPT_TUNING does not work with … or another --peft_type."),
    Bad("prompts before words", "ner", {"method": "prompt_tuning"},
        "--peft_type PROMPT_TUNING puts virtual tokens before the … words' labels. Type --method prefix_tuning."),
    Bad("a type of another method", "glue", {"method": "lora", "peft_type": "IA3"},
        "--peft_type is for --method peft, got --method lora. Drop it."),
    Bad("a size of another method", "glue", {"adapter_size": 8},
        "--adapter_size is for --method adapter, got --method autolora. Drop it."),
    *(
        Bad(f"{name} of another method", "glue", {"method": "uniform", name: value},
            f"--{name} is for --method autolora, got --method uniform. Drop it.")
        for name, value in (("retrain_epochs", 2), ("retrain_init", "scratch"), ("retrain_cut", 0.5))
    ),
    *(
        Bad(f"{name} of another hypergradient than {chosen}", "glue", {name: value, "hypergradient": chosen},
            f"{name} has no effect on hypergradient {chosen}, it is for … Drop it, or add --hypergradient finite_diff")
        for name, value, chosen in (
            ("inner_lr", 0.1, "first_order"),
            ("virtual_step", "sgd", "first_order"),
            ("finite_difference", "central", "first_order"),
            ("finite_difference_radius", 0.1, "first_order"),
            ("finite_difference_radius", 0.1, "exact"),
            ("finite_difference", "one_sided", "exact"),
        )
    ),
    Bad("two lengths of a search", "glue", {"search_epochs": 2, "search_max_steps": 5},
        "A search has one length, got --search_epochs 2.0 and --search_max_steps 5. Drop one of the two."),
    Bad("a sampler of another method", "glue", {"sampler": "tpe"},
        "--sampler is for --method grid, got --method autolora. Drop it."),
    Bad("a sampler that there is not", "glue", {"method": "grid", "sampler": "tpee"},
        "sampler must be one of grid, random, tpe, got 'tpee'. Did you mean tpe?"),
    Bad("a budget for a method without ranks", "glue", {"method": "full", "rank_budget": "lora:4"},
        "--rank_budget is for methods with ranks, got --method full. Drop it."),
    Bad("a budget for one rank", "glue", {"method": "lora", "rank_budget": "lora:8"},
        "--rank_budget lora:8 has no effect on --method lora, … is --lora_r. Type that, or --method uniform."),
    Bad("all modules and one more", "glue", {"lora_target_modules": ["all-linear", "query"]},
        "--lora_target_modules all-linear query: all-linear has all of them. Give it alone, or names alone."),
    Bad("half precision for weights that are trained", "nlg", {"method": "full", "dtype": "bfloat16"},
        "--dtype bfloat16 is for frozen weights, and --method full would train in it. Drop it; --bf16 is for speed."),
    Bad("modules for a method that takes all", "glue", {"method": "full", "lora_target_modules": ["query"]},
        "--lora_target_modules is for LoRA and PEFT's other methods, got --method full. Drop it."),
    Bad("ranks for a method without ranks", "glue", {"method": "adalora", "ranks": Ranks()},
        "--ranks is for autolora, eva and the pattern baselines, … adalora. Did you mean --method autolora?"),
    Bad("ranks and what a search kept", "glue", {"ranks": Ranks(), "retrain_init": "search"},
        "--retrain_init search needs this run's own search, got --ranks. Drop one of the two."),
    Bad("a cut and what a search kept", "glue", {"retrain_cut": 0.5, "retrain_init": "search"},
        "--retrain_cut starts from all components at one scale, … or --scaling paper. Drop one of the two."),
    Bad("a cut and an adapter of before", "glue",
        {**EVERY_EPOCH, "retrain_cut": 0.5, "load_best_model_at_end": True},
        "--load_best_model_at_end could bring back an adapter from … cut it. Drop one of them."),
    Bad("a cut at two scales", "glue", {"retrain_cut": 0.5, "scaling": "paper"},
        "--retrain_cut starts from all components at one scale, … or --scaling paper. Drop one of the two."),
    Bad("a threshold without its rule", "glue", {"threshold": 0.1},
        "threshold belongs to rank_rule 'threshold', got rank_rule … --rank_rule threshold or drop --threshold."),
    Bad("a virtual step of another optimizer", "glue", {"optim": "sgd", "hypergradient": "exact"},
        "virtual_step adamw reads the state of PyTorch's AdamW, … --virtual_step sgd, or --optim adamw_torch."),
    *(
        Bad(f"a schedule of {method} that follows evaluations: {name}", "glue",
            {"method": method, "lr_scheduler_type": name, "eval_strategy": "epoch"},
            f"lr_scheduler_type {name} follows evaluations, and {who} makes none. Type another, e.g. linear, or "
            "search with that and retrain with this: --ranks.")
        for name in ("reduce_lr_on_plateau", "greedy")
        for method, who in (("autolora", "the search"), ("grid", "a trial of --method grid"))
    ),
    Bad("fp16 in a search", "glue", {"fp16": True},
        "The search does not run in fp16: its loss scale hides the hypergradient. Use --bf16 or fp32."),
    Bad("two precisions", "glue", {"fp16": True, "bf16": True},
        "At most one of fp16 and bf16 can be True, but not both"),
    Bad("TF32 without a GPU", "glue", {"tf32": True},
        "--tf32 requires Ampere or a newer GPU arch, cuda>=11 and torch>=1.7"),
    Bad("checkpoints that hide the gradient", "glue",
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": '{"use_reentrant": true}'},
        "The search needs use_reentrant=False in … checkpoints hide α from the gradient."),
    Bad("the best of no evaluations", "glue", {"load_best_model_at_end": True, "save_strategy": "epoch"},
        "--load_best_model_at_end requires the save and eval … - Save strategy: SaveStrategy.EPOCH"),
    Bad("the best by a score that there is not", "glue",
        {**EVERY_EPOCH, "load_best_model_at_end": True, "metric_for_best_model": "acuracy"},
        "metric_for_best_model must be one of loss, accuracy, got 'acuracy'. Did you mean accuracy?"),
    Bad("the best by a score that is not computed", "glue",
        {**EVERY_EPOCH, "metric_for_best_model": "accuracy", "prediction_loss_only": True},
        "metric_for_best_model must be one of loss, got 'accuracy'."),
    Bad("scores a batch at a time", "glue", {"batch_eval_metrics": True},
        "--batch_eval_metrics scores a batch at a time, and scores here are of all rows. Drop it."),
    Bad("predictions that are thrown away", "glue",
        {"prediction_loss_only": True, "test_file": File("test.jsonl", lines(*GOOD))},
        "--prediction_loss_only leaves --do_predict nothing to write. Drop one of the two."),
    Bad("AdaLoRA in too few steps", "glue", {"method": "adalora", "max_steps": 2},
        "--method adalora needs at least 3 optimizer steps to … 2. Raise --num_train_epochs or --max_steps."),
    Bad("AdaLoRA at rsLoRA's scale", "glue", {"method": "adalora", "use_rslora": True},
        "AdaLoRA scales by lora_alpha / init_r, got --use_rslora. Drop it."),
    Bad("AdaLoRA below rank one", "glue", {"method": "adalora", "rank_budget": 1},
        "rank_budget 1 is 1 adapter parameters, and rank 1 in … average rank; raise rank_budget, e.g. lora:4."),
    Bad("EVA below rank one", "glue", {"method": "eva", "rank_budget": 1},
        "--method eva hands out uniform ranks anew, and a size of … has 128. Raise --rank_budget, e.g. lora:1."),
    Bad("a grid whose least is too much", "glue", {"method": "grid", "rank_budget": 1},
        "rank_budget 1 is 1 adapter parameters, and the smallest configuration has 128. Raise rank_budget."),
    Bad("a uniform rank below one", "glue", {"method": "uniform", "rank_budget": 1},
        "--method uniform has 1 adapter parameters to share out, … e.g. lora:1, or give other --ranks."),
    Bad("random ranks below one", "glue", {"method": "random", "rank_budget": 1},
        "rank_budget 1 is 1 adapter parameters, and the least that … is 128. Raise rank_budget or set min_rank 0."),
    Bad("linear ranks below one", "glue", {"method": "linear", "rank_budget": 1},
        "rank_budget 1 is 1 adapter parameters, and the least that … is 128. Raise rank_budget or set min_rank 0."),
    Bad("singular values below rank one", "glue", {"method": "svd", "rank_budget": 1},
        "rank_budget 1 is 1 adapter parameters, and the least that … is 128. Raise rank_budget or set min_rank 0."),
    Bad("modules that match nothing", "glue", {"lora_target_modules": ["q_proj", "v_proj"]},
        "--lora_target_modules q_proj fits no module of … and end in dense, key, out_proj, query, value; give some"),
    Bad("one module that matches nothing", "glue", {"lora_target_modules": ["query", "vlaue"]},
        "--lora_target_modules vlaue fits no module of … and end in dense, key, out_proj, query, value; give some"),
    Bad("a module that cannot be adapted", "glue", {"lora_target_modules": ["LayerNorm"]},
        "--lora_target_modules LayerNorm fits no module of … give --lora_target_modules."),
    Bad("a pattern of modules that is no pattern", "glue", {"lora_target_modules": ["*query"]},
        "--lora_target_modules *query fits no module of … and end in dense, key, out_proj, query, value; give some"),
    Bad("an empty name of a module", "glue", {"lora_target_modules": [""]},
        "--lora_target_modules '' fits no module of … and end in dense, key, out_proj, query, value; give some"),
    Bad("modules of LoRA that match nothing", "glue", {"method": "lora", "lora_target_modules": ["c_attn"]},
        "--lora_target_modules c_attn fits no module of … and end in dense, key, out_proj, query, value; give some"),
    Bad("a choice of yes or no in other words", "glue", {"method": "adapter", "adapter_layer_norm": "perhaps"},
        "argument --adapter_layer_norm/--adapter-layer-norm: … insensitive).; --help lists the arguments"),
    Bad("a Hub name with a blank", "glue",
        {"push_to_hub": True, "base_model_id": "org/base", "hub_model_id": "my adapter"},
        "hub_model_id must be a repository's name, e.g. owner/mrpc-autolora, got 'my adapter'."),
    Bad("a Hub name of three parts", "glue",
        {"push_to_hub": True, "base_model_id": "org/base", "hub_model_id": "a/b/c"},
        "hub_model_id must be a repository's name, e.g. owner/mrpc-autolora, got 'a/b/c'."),
    Bad("a Hub name that is a path", "glue",
        {"push_to_hub": True, "base_model_id": "org/base", "hub_model_id": "../up"},
        "hub_model_id must be a repository's name, e.g. owner/mrpc-autolora, got '../up'."),
    Bad("a folder whose name no repository can have", "glue",
        {"push_to_hub": True, "base_model_id": "org/base", "output_dir": "outputs/a b"},
        "the name of output_dir must be a repository's name, e.g. owner/mrpc-autolora, got 'a b'."),
    Bad("a push of an adapter of a folder", "glue", {"push_to_hub": True},
        "--push_to_hub needs the base model's Hub id, got a folder (model). Add --base_model_id OWNER/NAME."),
    Bad("a Hub name of the base model with a blank", "glue", {"base_model_id": "my base", "push_to_hub": True},
        "base_model_id must be a repository's name, e.g. owner/mrpc-autolora, got 'my base'."),
    Bad("FSDP in a search", "glue", {"fsdp": "full_shard"},
        "The search moves whole LoRA weights, and FSDP shards … sharded with --ranks …/out/ranks.json."),
    Bad("a DeepSpeed file that is not there", "glue", {"deepspeed": "nowhere.json"},
        "--deepspeed needs DeepSpeed, which is not installed. Type pip install deepspeed."),
]

# ---- configuration files

CONFIGS = [
    Bad("a configuration that is not there", "glue", {"config": "nowhere.yaml"},
        "--config nowhere.yaml cannot be read: No such file or directory. Give a YAML file."),
    Bad("a folder for a configuration", "glue", {"config": Folder(name="c.yaml")},
        "--config …/config/c.yaml cannot be read: Is a directory. Give a YAML file."),
    Bad("a configuration of no name", "glue", {"argv": ["--config"]},
        "--config needs a YAML file after it."),
    Bad("an empty configuration", "glue", {"config": File("c.yaml", "")},
        "--config …/config/c.yaml must hold 'name: value' lines, got nothing."),
    Bad("broken YAML", "glue", {"config": File("c.yaml", "a: [")},
        "--config …/config/c.yaml is not YAML: expected … line 1, column 5. Write 'name: value' lines."),
    Bad("tabs in YAML", "glue", {"config": File("c.yaml", "a:\n\t- b\n")},
        "--config …/config/c.yaml is not YAML: found character … line 2, column 1. Write 'name: value' lines."),
    Bad("a list at the top", "glue", {"config": File("c.yaml", "- learning_rate: 1\n")},
        "--config …/config/c.yaml must hold 'name: value' lines, got list."),
    Bad("a text at the top", "glue", {"config": File("c.yaml", "learning_rate 1\n")},
        "--config …/config/c.yaml must hold 'name: value' lines, got str."),
    Bad("bytes for a configuration", "glue", {"config": File("c.yaml", b"\xff\xfe\x00a")},
        "--config …/config/c.yaml is not YAML: 'utf-8' codec can't … start byte. Write 'name: value' lines."),
    Bad("a name misspelt in a configuration", "glue", {"config": File("c.yaml", "learning_rte: 1\n")},
        "--config …/config/c.yaml sets 'learning_rte', which is no argument. Did you mean learning_rate?"),
    Bad("a name that nothing is like", "glue", {"config": File("c.yaml", "zzz: 1\n")},
        "--config …/config/c.yaml sets 'zzz', which is no argument. --help lists the arguments."),
    Bad("a number for a name", "glue", {"config": File("c.yaml", "1: 2\n")},
        "--config …/config/c.yaml sets 1, which is no argument. --help lists the arguments."),
    Bad("nested settings", "glue", {"config": File("c.yaml", "search:\n  initial_rank: 4\n")},
        "--config …/config/c.yaml sets 'search', which is no argument. Write its settings without it."),
    Bad("an object for a number", "glue", {"config": File("c.yaml", "lora_r: {a: 1}\n")},
        "argument --lora_r/--lora-r: invalid int value: '{\"a\": 1}'; --help lists the arguments"),
    Bad("a list for a number", "glue", {"config": File("c.yaml", "lora_r: [4, 8]\n")},
        "--config …/config/c.yaml sets lora_r to the list [4, 8], and it takes one value. Write one."),
    Bad("a text for a number", "glue", {"config": File("c.yaml", "lora_r: four\n")},
        "argument --lora_r/--lora-r: invalid int value: 'four'; --help lists the arguments"),
    Bad("a text for yes or no", "glue", {"config": File("c.yaml", "bf16: maybe\n")},
        "argument --bf16: Truthy value expected: got maybe but … insensitive).; --help lists the arguments"),
    Bad("a rate that YAML reads as text", "glue", {"config": File("c.yaml", "learning_rate: 1e-4x\n")},
        "argument --learning_rate/--learning-rate: invalid float value: '1e-4x'; --help lists the arguments"),
    Bad("a choice misspelt in a configuration", "glue", {"config": File("c.yaml", "rank_rule: adaptiv\n")},
        "rank_rule must be one of adaptive, strength, threshold, … got 'adaptiv'. Did you mean adaptive?"),
    Bad("a preset that there is not", "glue", {"config": File("c.yaml", "preset: papers\n")},
        "preset must be one of paper, got 'papers'. Did you mean paper?"),
    Bad("trust in a file", "glue", {"config": File("c.yaml", "trust_remote_code: true\n")},
        "--config …/config/c.yaml sets trust_remote_code. Type … yourself if you trust the model."),
    Bad("an argument in a list", "glue", {"config": File("c.yaml", "lora_target_modules: [q, --overwrite]\n")},
        "the list lora_target_modules holds '--overwrite', an argument. Write values only."),
    Bad("a configuration in a configuration", "glue", {"config": File("c.yaml", "config: other.yaml\n")},
        "--config …/config/c.yaml sets config, which is for the command line alone. Type --config."),
    Bad("Python in a configuration", "glue", {"config": File("c.yaml", "seed: !!python/object/apply:os.getpid []\n")},
        "--config …/config/c.yaml is not YAML: could not determine … line 1, column 7. Write 'name: value' lines."),
    Bad("an empty list", "glue", {"config": File("c.yaml", "lora_target_modules: []\n")},
        "argument --lora_target_modules/--lora-target-modules: … one argument; --help lists the arguments"),
    Bad("a setting twice", "glue", {"config": File("c.yaml", "lora_r: 4\nlora_r: 8\n")},
        "--config …/config/c.yaml is not YAML: it sets 'lora_r' twice. Write 'name: value' lines."),
    Bad("brackets within brackets without end", "glue", {"config": File("c.yaml", "a: " + "[" * 500)},
        "--config …/config/c.yaml is not YAML: maximum recursion depth exceeded. Write 'name: value' lines."),
    Bad("a list in a list", "glue", {"config": File("c.yaml", "lora_target_modules: [[q], [v]]\n")},
        "--lora_target_modules ['q'] fits no module of … and end in dense, key, out_proj, query, value; give some"),
    Bad("a date for a number", "glue", {"config": File("c.yaml", "lora_r: 2024-01-01\n")},
        "argument --lora_r/--lora-r: invalid int value: '2024-01-01'; --help lists the arguments"),
]


def ranks_file(text):
    return {"ranks": File("ranks.json", text)}


def one_module(**module):
    return {"ranks": Ranks(modules={MODULES[0]: module})}


# ---- ranks.json, which may come from anywhere

RANKS = [
    Bad("ranks that are not there", "glue", {"ranks": "nowhere.json"},
        "--ranks nowhere.json cannot be read: No such file or directory. Give the ranks.json of a finished run."),
    Bad("a folder for ranks", "glue", {"ranks": Folder(name="ranks.json")},
        "--ranks …/ranks/ranks.json cannot be read: Is a directory. Give the ranks.json of a finished run."),
    Bad("an empty file of ranks", "glue", ranks_file(""),
        "…/ranks/ranks.json is not a ranks.json: Expecting value: … it, or give the ranks.json of a finished run."),
    Bad("ranks that are not JSON", "glue", ranks_file("ranks"),
        "…/ranks/ranks.json is not a ranks.json: Expecting value: … it, or give the ranks.json of a finished run."),
    Bad("ranks cut off", "glue", {"ranks": File("ranks.json", Ranks().content()[:80])},
        "…/ranks/ranks.json is not a ranks.json: Unterminated … it, or give the ranks.json of a finished run."),
    Bad("ranks in bytes that are no text", "glue", ranks_file(b"\xff\xfe\x00"),
        "…/ranks/ranks.json is not a ranks.json: 'utf-8' codec … it, or give the ranks.json of a finished run."),
    Bad("ranks as a list", "glue", ranks_file("[1, 2]"),
        "…/ranks/ranks.json is not a valid ranks.json: … it, or give the ranks.json of a finished run."),
    Bad("ranks of no format", "glue", ranks_file('{"modules": {}}'),
        "…/ranks/ranks.json is not a valid ranks.json: … it, or give the ranks.json of a finished run."),
    Bad("ranks of a later format", "glue", {"ranks": Ranks(format_version=2)},
        "…/ranks/ranks.json is not a valid ranks.json: … it, or give the ranks.json of a finished run."),
    Bad("ranks without modules", "glue", {"ranks": Ranks(modules={})},
        "…/ranks/ranks.json is not a valid ranks.json: modules … it, or give the ranks.json of a finished run."),
    Bad("modules that are a list", "glue", {"ranks": Ranks(modules=MODULES)},
        "…/ranks/ranks.json is not a valid ranks.json: modules … it, or give the ranks.json of a finished run."),
    Bad("a module without a rank", "glue", one_module(selection=[1.0]),
        "…/ranks/ranks.json is not a valid ranks.json: the rank of … it, or give the ranks.json of a finished run."),
    Bad("a rank below zero", "glue", one_module(rank=-1),
        "…/ranks/ranks.json is not a valid ranks.json: the rank of … it, or give the ranks.json of a finished run."),
    Bad("half a rank", "glue", one_module(rank=1.5),
        "…/ranks/ranks.json is not a valid ranks.json: the rank of … it, or give the ranks.json of a finished run."),
    Bad("a rank in words", "glue", one_module(rank="4"),
        "…/ranks/ranks.json is not a valid ranks.json: the rank of … it, or give the ranks.json of a finished run."),
    Bad("a rank that is true", "glue", one_module(rank=True),
        "…/ranks/ranks.json is not a valid ranks.json: the rank of … it, or give the ranks.json of a finished run."),
    Bad("a rank beyond every model", "glue", one_module(rank=10**6),
        "…/ranks/ranks.json is not a valid ranks.json: the rank of … it, or give the ranks.json of a finished run."),
    Bad("a rank for a module that is a number", "glue", {"ranks": Ranks(modules={MODULES[0]: 4})},
        "…/ranks/ranks.json is not a valid ranks.json: the rank of … it, or give the ranks.json of a finished run."),
    Bad("a selection that is no list", "glue", one_module(rank=1, selection=0.5),
        "…/ranks/ranks.json is not a valid ranks.json: the … it, or give the ranks.json of a finished run."),
    Bad("a selection of words", "glue", one_module(rank=1, selection=["a"]),
        "…/ranks/ranks.json is not a valid ranks.json: the … it, or give the ranks.json of a finished run."),
    Bad("NaN in a selection", "glue", one_module(rank=1, selection=[float("nan")]),
        "…/ranks/ranks.json is not a ranks.json: it holds NaN, … it, or give the ranks.json of a finished run."),
    Bad("a number too large for a selection", "glue", ranks_file(Ranks().content().replace("0.25", "1e999", 1)),
        "…/ranks/ranks.json is not a valid ranks.json: the … it, or give the ranks.json of a finished run."),
    Bad("a selection longer than any", "glue", one_module(rank=1, selection=[0.0] * 5000),
        "…/ranks/ranks.json is not a valid ranks.json: the … it, or give the ranks.json of a finished run."),
    Bad("a path for a module", "glue", {"ranks": Ranks(modules={"../../etc/passwd": {"rank": 1}})},
        "…/ranks/ranks.json is not a valid ranks.json: … it, or give the ranks.json of a finished run."),
    Bad("a pattern for a module", "glue", {"ranks": Ranks(modules={"(a+)+$": {"rank": 1}})},
        "…/ranks/ranks.json is not a valid ranks.json: '(a+)+$' is … it, or give the ranks.json of a finished run."),
    Bad("an empty name for a module", "glue", {"ranks": Ranks(modules={"": {"rank": 1}})},
        "…/ranks/ranks.json is not a valid ranks.json: '' is not a … it, or give the ranks.json of a finished run."),
    Bad("an initial rank of zero", "glue", {"ranks": Ranks(initial_rank=0)},
        "…/ranks/ranks.json is not a valid ranks.json: … it, or give the ranks.json of a finished run."),
    Bad("an initial rank in words", "glue", {"ranks": Ranks(initial_rank="4")},
        "…/ranks/ranks.json is not a valid ranks.json: … it, or give the ranks.json of a finished run."),
    Bad("a base model that is a number", "glue", {"ranks": Ranks(base_model=7)},
        "…/ranks/ranks.json is not a valid ranks.json: base_model … it, or give the ranks.json of a finished run."),
    Bad("a base model of ten thousand letters", "glue", {"ranks": Ranks(base_model="m" * 10_000)},
        "…/ranks/ranks.json is not a valid ranks.json: base_model … it, or give the ranks.json of a finished run."),
    Bad("a threshold in words", "glue", {"ranks": Ranks(threshold="high")},
        "…/ranks/ranks.json is not a valid ranks.json: threshold … it, or give the ranks.json of a finished run."),
    Bad("brackets without end for ranks", "glue", ranks_file("[" * 100_000),
        "…/ranks/ranks.json is not a ranks.json: maximum recursion … it, or give the ranks.json of a finished run."),
    Bad("a number without end for ranks", "glue", ranks_file('{"format_version": ' + "1" * 10_000 + "}"),
        "…/ranks/ranks.json is not a ranks.json: Exceeds the limit … it, or give the ranks.json of a finished run."),
    Bad("ranks of another model", "glue", {"ranks": Ranks(modules={"model.layers.0.q_proj": {"rank": 2}})},
        "ranks.json names 1 modules, and the model lacks 1 of … it learned on another checkpoint (org/base)?"),
    Bad("ranks of modules that LoRA cannot adapt", "glue",
        {"ranks": Ranks(modules={"roberta.encoder.layer.0.output.LayerNorm": {"rank": 2}})},
        "--ranks …/ranks/ranks.json does not fit … `torch.nn.Multih ..."),
    Bad("ranks that are all zero", "glue", {"ranks": Ranks(modules={name: {"rank": 0} for name in MODULES})},
        "--ranks …/ranks/ranks.json does not fit … on this model, or search without --ranks."),
    Bad("ranks of parts that the model does not have", "glue",
        {"ranks": Ranks(modules={MODULES[0] + "#q": {"rank": 2}})},
        "--ranks …/ranks/ranks.json does not fit … on this model, or search without --ranks."),
    Bad("ranks of a module and of its parts", "nlg",
        {"ranks": Ranks(modules={C_ATTN: {"rank": 1}, f"{C_ATTN}#q": {"rank": 1}})},
        "--ranks …/ranks/ranks.json does not fit GPT2LMHeadModel: … on this model, or search without --ranks."),
    Bad("ranks of a part that a fused module does not have", "nlg",
        {"ranks": Ranks(modules={f"{C_ATTN}#z": {"rank": 1}})},
        "--ranks …/ranks/ranks.json does not fit GPT2LMHeadModel: … on this model, or search without --ranks."),
    Bad("ranks of another model for a pattern's size", "glue",
        {"method": "uniform", "ranks": Ranks(modules={"model.layers.0.q_proj": {"rank": 2}})},
        "ranks.json names 1 modules, and the model lacks 1 of … it learned on another checkpoint (org/base)?"),
    Bad("ranks of modules that a pattern does not adapt", "glue",
        {"method": "uniform", "ranks": Ranks(modules={"classifier.dense": {"rank": 2}})},
        "ranks.json names 1 modules, and this run adapts other ones: not 'classifier.dense'. Give the "
        "--lora_target_modules of its search, and the same checkpoint (org/base)."),
    Bad("ranks all zero for a pattern's size", "glue",
        {"method": "uniform", "ranks": Ranks(modules={MODULES[0]: {"rank": 0}})},
        "--method uniform has 0 adapter parameters to share out, … e.g. lora:1, or give other --ranks."),
    Bad("ranks that are the run's own", "glue",
        {"output_dir": Finished(), "ranks": "output_dir/ranks.json", "overwrite": True},
        "--ranks …/output_dir/run/ranks.json lies where this run writes its own. Give another --output_dir."),
]


def model(**changes):
    return {"model_name_or_path": Model({name.replace("__", "."): change for name, change in changes.items()})}


def setting(**changes):
    """A config.json with these settings changed."""
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


# ---- the base model

MODELS = [
    Bad("a model that is not there", "glue", {"model_name_or_path": "nowhere/model"},
        "Could not load 'nowhere/model': it is no folder here, and … or connect once so that the model is cached."),
    Bad("a path of a model that is not there", "glue", {"model_name_or_path": "/nowhere/at/all"},
        "Could not load '/nowhere/at/all': it is no folder here, … or connect once so that the model is cached."),
    Bad("a model name with a blank", "glue", {"model_name_or_path": "my model"},
        "Could not load 'my model': it is no folder here, and the … or connect once so that the model is cached."),
    Bad("an empty model name", "glue", {"model_name_or_path": ""},
        "Could not load '': it is no folder here, and the Hugging … or connect once so that the model is cached."),
    Bad("a file for a model", "glue", {"model_name_or_path": File("model.safetensors", b"x")},
        "Could not load '…/model_name_or_path/model.safetensors': … or connect once so that the model is cached."),
    Bad("an empty folder for a model", "glue", {"model_name_or_path": Folder()},
        "The folder …/model_name_or_path/folder gives no … convert a slow tokenizer to a ... Give anothe"),
    Bad("a model without its config", "glue", model(config__json=None),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose config is broken", "glue", model(config__json="{"),
        "The folder …/model_name_or_path/model gives no … file. Give another with --model_name_or_path."),
    Bad("a model whose config is a list", "glue", model(config__json="[]"),
        "The folder …/model_name_or_path/model gives no … list. Give another with --model_name_or_path."),
    Bad("a model whose config has no type", "glue", model(config__json="{}"),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model of a type that there is not", "glue", model(config__json='{"model_type": "robertta"}'),
        "The folder …/model_name_or_path/model gives no … `pip install --upgrade tr ... Give another w"),
    Bad("a model of another size than its config", "glue", model(config__json=setting(hidden_size=32)),
        "The weights in …/model_name_or_path/model have other … belong together with --model_name_or_path."),
    Bad("a model whose heads do not divide it", "glue", model(config__json=setting(num_attention_heads=3)),
        "The folder …/model_name_or_path/model gives no … (3). Give another with --model_name_or_path."),
    Bad("a model with a config of the wrong type", "glue", model(config__json=setting(hidden_size="large")),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model without weights", "glue", model(model__safetensors=None),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are empty", "glue", model(model__safetensors=b""),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are cut off", "glue", model(model__safetensors=half),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are text", "glue",
        model(model__safetensors="version https://git-lfs.github.com/spec/v1\n"),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose weights are another's", "glue", model(model__safetensors=OTHER_WEIGHTS),
        "The weights in …/model_name_or_path/model are not those … Give another model with --model_name_or_path."),
    Bad("a model without a tokenizer", "glue", model(tokenizer__json=None, tokenizer_config__json=None),
        "…/model_name_or_path/model holds no tokenizer: it knows no word. Give one with --tokenizer_name."),
    Bad("a model whose tokenizer is broken", "glue", model(tokenizer__json="{"),
        "The folder …/model_name_or_path/model gives no … 1). Give another with --model_name_or_path."),
    Bad("a model whose tokenizer is cut off", "glue", model(tokenizer__json=half),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model whose tokenizer config is broken", "glue", model(tokenizer_config__json="["),
        "The folder …/model_name_or_path/model gives no … 1). Give another with --model_name_or_path."),
    Bad("a tokenizer that is not there", "glue", {"tokenizer_name": "nowhere/tokenizer"},
        "Could not load 'nowhere/tokenizer': it is no folder here, … or connect once so that the model is cached."),
    Bad("a tokenizer with more words than the model", "glue", {"tokenizer_name": Model(of="nlg")},
        "The train rows hold token 220, and …/glue/model has 64 … own with --tokenizer_name, or leave that out."),
    Bad("a model of pictures for tags", "ner", model(config__json='{"model_type": "vit"}'),
        "The folder …/model_name_or_path/model gives no … Give another with --model_name_or_path."),
    Bad("a model's own code that nobody trusts", "glue",
        model(config__json='{"model_type": "mine", "auto_map": {"AutoConfig": "configuration.Mine"}}'),
        "…/model_name_or_path/model comes with code of its own. … another with --model_name_or_path if not."),
    Bad("rows longer than the model", "glue",
        {"max_seq_length": 64, **train(lines(*GOOD, *sst2(1, sentence="a " * 50)))},
        "The longest train row has 52 tokens, and RobertaForSequenceClassification has 38 positions. "
        "Lower --max_seq_length to 38, or give another model."),
    Bad("padding longer than the model", "glue", {"max_seq_length": 39, "pad_to_max_length": True},
        "The longest train row has 39 tokens, and Roberta… has 38 positions. Lower --max_seq_length to 38, or give"),
    Bad("no room for text", "glue", {"task_name": "rte", "max_seq_length": 5, **train(PAIRS), **validation(PAIRS)},
        "max_seq_length=5 leaves no room for text: rte needs 4 … each text. Give --max_seq_length 6 or more."),
]

# ---- where the run's files go

OUTPUT = [
    Bad("a file for output_dir", "glue", {"output_dir": File("out", "mine")},
        "output_dir …/output_dir/out lies on a file (…/output_dir/out). Give another --output_dir."),
    Bad("output_dir below a file", "glue", {"output_dir": File("out", "mine", inside="run")},
        "output_dir …/output_dir/out/run lies on a file (…/output_dir/out). Give another --output_dir."),
    Bad("output_dir where nothing can be written", "glue", {"output_dir": "/proc/run"},
        "output_dir '/proc/run' cannot be made: No such file or directory. Give another --output_dir."),
    Bad("output_dir with a zero byte", "glue", {"output_dir": "out\0dir"},
        "output_dir 'out\\x00dir' cannot be made: embedded null byte. Give another --output_dir."),
    Bad("output_dir of too long a name", "glue", {"output_dir": "o" * 300},
        "output_dir '…' cannot be made: File name too long. Give another --output_dir."),
    Bad("an empty output_dir", "glue", {"output_dir": ""},
        "output_dir is empty. Give a folder, or leave --output_dir out."),
    Bad("output_dir with a finished run", "glue", {"output_dir": Finished()},
        "…/output_dir/run holds a finished run. Add --overwrite to replace it, or give another --output_dir."),
    Bad("output_dir with files of others", "glue",
        {"output_dir": Folder({"README.md": "mine", "search/notes.txt": "mine"})},
        "…/output_dir/folder holds files that no run of this … replace them. Give another --output_dir."),
    Bad("output_dir with files of others, to be replaced", "glue",
        {"output_dir": Folder({"README.md": "mine"}), "overwrite": True},
        "…/output_dir/folder holds files that no run of this … replace them. Give another --output_dir."),
    Bad("output_dir with another model", "glue",
        {"output_dir": Folder({"model.safetensors": "mine"}), "overwrite": True},
        "…/output_dir/folder holds files that no run of this … replace them. Give another --output_dir."),
]

# ---- where an interrupted run goes on

RESUME = [
    Bad("a checkpoint that is not there", "glue", {"resume_from_checkpoint": "nowhere/checkpoint-3"},
        "--resume_from_checkpoint nowhere/checkpoint-3 is no … folder, or no value for the newest."),
    Bad("a file for a checkpoint", "glue", {"resume_from_checkpoint": File("checkpoint-3", "")},
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("an empty folder for a checkpoint", "glue", {"resume_from_checkpoint": Folder(name="checkpoint-3")},
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint of Trainer's own", "glue", checkpoint(manifest__json=None),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest is broken", "glue", checkpoint(manifest__json="{"),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest is a list", "glue", checkpoint(manifest__json="[]"),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest names no sizes", "glue",
        checkpoint(manifest__json='{"files": {"optimizer.pt": 1}, "step": 1}'),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose manifest has no step", "glue", checkpoint(manifest__json='{"files": {}}'),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint without its optimizer", "glue", checkpoint(optimizer__pt=None),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint whose optimizer is cut off", "glue", checkpoint(optimizer__pt=half),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a checkpoint with a bit flipped", "glue", checkpoint(adapter_model__safetensors=flipped),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a search's checkpoint with a bit flipped", "glue",
        checkpoint("search/checkpoint-1", selection__safetensors=flipped),
        "--resume_from_checkpoint … folder, or no value for the newest."),
    Bad("a search's checkpoint for a run without a search", "glue",
        {"method": "lora", "resume_from_checkpoint": Finished({}, "search/checkpoint-1")},
        "--resume_from_checkpoint … or give a checkpoint-N folder beside search/."),
    Bad("a finished run for a checkpoint", "glue", {"resume_from_checkpoint": Finished()},
        "--resume_from_checkpoint …/resume_from_checkpoint/run has … folder, or no value for the newest."),
]

# ---- an earlier run's adapter, to be evaluated

EVALUATE = [
    Bad("nothing to evaluate", "glue", {"do_eval": True, "output_dir": "nothing"},
        "nothing holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
    Bad("a folder without an adapter", "glue", {"do_eval": True, "output_dir": Folder({"mine.txt": ""})},
        "…/output_dir/folder holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
    Bad("an adapter without weights", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_model.safetensors": None})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose weights are cut off", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_model.safetensors": half})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose weights are empty", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_model.safetensors": b""})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter without its config", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": None})},
        "…/output_dir/run holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
    Bad("an adapter whose config is broken", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": "{"})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose config is a list", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": "[]"})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter whose config has no type", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": "{}"})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter of a type that there is not", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": setting(peft_type="LORRA")})},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("an adapter of other ranks than its weights", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": setting(r=9, rank_pattern={})})},
        "The adapter in …/output_dir/run does not load on … the shape in current model is torch.Size([9"),
    Bad("an adapter of another model", "glue",
        {"do_eval": True, "output_dir": Finished({"adapter_config.json": setting(target_modules=["q_proj"])})},
        "The adapter in …/output_dir/run does not load on … targeted modules that are marked to be save"),
    Bad("an adapter for tags without its labels", "ner", {"do_eval": True, "train_file": None, "task_name": "ner"},
        "ner/validation.jsonl: ner takes its labels from the training rows, got none. Give --train_file."),
    Bad("an adapter for classes in tags", "ner", {"do_eval": True, "output_dir": Finished()},
        "The adapter in …/output_dir/run does not load on … --overwrite, or give another --output_dir."),
    Bad("predictions without an adapter", "glue",
        {"output_dir": "nothing", "do_predict": True, "test_file": File("test.jsonl", lines(*GOOD))},
        "nothing holds no adapter to evaluate. Add --do_train, or give its --output_dir."),
]

# ---- the command `autolora`

CLI = [
    Bad("no command", "cli", [],
        "the following arguments are required: command; autolora --help lists the commands"),
    Bad("a command that there is not", "cli", ["shwo", "."],
        "argument command: invalid choice: 'shwo' (choose from … 'diff'); autolora --help lists the commands"),
    Bad("a script that there is not", "cli", ["run", "gleu"],
        "argument script: invalid choice: 'gleu' (choose from … 'ner'); autolora --help lists the commands"),
    Bad("no script", "cli", ["run"],
        "the following arguments are required: script, arguments; autolora --help lists the commands"),
    Bad("a mistake in what is handed to a script", "cli", ["run", "glue", "--task_name", "mrcp"],
        "task_name must be one of cola, sst2, mrpc, qqp, mnli, … wnli, sample, got 'mrcp'. Did you mean mrpc?"),
    Bad("show: nothing", "cli", ["show"],
        "the following arguments are required: DIR|REPO; autolora --help lists the commands"),
    Bad("show: a folder without ranks", "cli", ["show", Folder()],
        "…/argument1/folder holds no ranks.json. Give the output directory of a finished run."),
    Bad("show: a file without ranks", "cli", ["show", File("ranks.json", "{}")],
        "…/argument1/ranks.json is not a valid ranks.json: … it, or give the ranks.json of a finished run."),
    Bad("show: neither folder nor repository", "cli", ["show", "nothing/here"],
        "'nothing/here' is neither a folder or file here nor a … the `HF_HUB_OFFLINE` environment variable."),
    Bad("show: a name that is no repository's", "cli", ["show", "a b"],
        "'a b' is neither a folder or file here nor a repository … or '.' and the maximum length is 96: 'a b'."),
    Bad("show: an empty name", "cli", ["show", ""],
        "'' is neither a folder or file here nor a repository that … '-' or '.' and the maximum length is 96: ''."),
    Bad("show: results that are broken", "cli", ["show", Finished({"all_results.json": "{"})],
        "…/argument1/run/all_results.json is not JSON: Expecting … it, and the ranks are shown without it."),
    Bad("show: results that are a list", "cli", ["show", Finished({"all_results.json": "[]"})],
        "…/argument1/run/all_results.json must hold a JSON object, got []. Remove it, or run again."),
    Bad("show: cost that is broken", "cli", ["show", Finished({"cost.json": "{"})],
        "…/argument1/run/cost.json is not JSON: Expecting property … it, and the ranks are shown without it."),
    Bad("show: cost that is a list", "cli", ["show", Finished({"cost.json": "[1]"})],
        "…/argument1/run/cost.json must hold a JSON object, got [1]. Remove it, or run again."),
    Bad("show: ranks that are broken", "cli", ["show", Finished({"ranks.json": half})],
        "…/argument1/run/ranks.json is not a ranks.json: Expecting … it, or give the ranks.json of a finished run."),
    Bad("export: a form that there is not", "cli", ["export", Finished(), "--format", "toml"],
        "argument --format: invalid choice: 'toml' (choose from … autolora --help lists the commands"),
    Bad("export: a scale in words", "cli", ["export", Finished(), "--lora_alpha", "much"],
        "argument --lora_alpha: invalid int value: 'much'; autolora --help lists the commands"),
    Bad("export: a scale of zero", "cli", ["export", Finished(), "--lora_alpha", "0"],
        "lora_alpha must be at least 1, got 0. LoRA's usual is 16."),
    Bad("export: a scale below zero", "cli", ["export", Finished(), "--lora_alpha", "-16"],
        "lora_alpha must be at least 1, got -16. LoRA's usual is 16."),
    Bad("export: ranks that are all zero", "cli", ["export", Ranks(modules={MODULES[0]: {"rank": 0}})],
        "Every module has rank 0, so there is no adapter to train. Set min_rank 1 or a rank_budget."),
    Bad("export: parts of fused modules", "cli", ["export", Ranks(modules={"h.0.attn.c_attn#q": {"rank": 1}})],
        "'h.0.attn.c_attn#q' is a part of a fused module, and peft … itself, or --ranks of this package's scripts."),
    Bad("export: an argument that there is not", "cli", ["export", Finished(), "--fromat", "peft"],
        "unrecognized arguments: --fromat peft; autolora --help lists the commands"),
    Bad("diff: one pattern", "cli", ["diff", Finished()],
        "the following arguments are required: B; autolora --help lists the commands"),
    Bad("diff: a pattern that is not there", "cli", ["diff", Finished(), "nothing/here"],
        "'nothing/here' is neither a folder or file here nor a … the `HF_HUB_OFFLINE` environment variable."),
    Bad("diff: a pattern that is broken", "cli", ["diff", Ranks(), File("other.json", "[")],
        "…/argument2/other.json is not a ranks.json: Expecting … it, or give the ranks.json of a finished run."),
    Bad("diff: an argument that there is not", "cli", ["diff", Ranks(), Finished(), "--sort"],
        "unrecognized arguments: --sort; autolora --help lists the commands"),
]

# ---- in Python


def arguments(place, **changes):
    return AutoLoraTrainingArguments(output_dir=str(place), use_cpu=True, report_to=[], **changes)


def trainer(place, **changes):
    rows = Dataset.from_list([{"input_ids": [3, 4, 5], "labels": label} for label in (0, 1, 0, 1)])
    settings = {
        "model": tiny_roberta(),
        "args": arguments(place, initial_rank=4),
        "train_dataset": rows,
        "peft_config": LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]),
    }
    return AutoLoraTrainer(**{**settings, **changes})


def written(place, content):
    path = place / "ranks.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


ONE = LearnedRanks({MODULES[0]: ModuleRank(2)})

LIBRARY = [
    Bad("load: ranks cut off", "library", lambda place: LearnedRanks.load(written(place, Ranks().content()[:50])),
        "…/ranks.json is not a ranks.json: Unterminated string … it, or give the ranks.json of a finished run."),
    Bad("load: no text", "library", lambda place: LearnedRanks.load(written(place, b"\xff\xfe")),
        "…/ranks.json is not a ranks.json: 'utf-8' codec can't … it, or give the ranks.json of a finished run."),
    Bad("load: nothing there", "library", lambda place: LearnedRanks.from_pretrained(place),
        "… holds no ranks.json. Give the output directory of a finished run."),
    Bad("from_pretrained: no repository", "library", lambda place: LearnedRanks.from_pretrained("nothing/here"),
        "'nothing/here' is neither a folder or file here nor a … the `HF_HUB_OFFLINE` environment variable."),
    Bad("push_to_hub: no name", "library", lambda place: ONE.push_to_hub("a b"),
        "Could not push the ranks to a b: Repo id must use … or '.' and the maximum length is 96: 'a b'."),
    Bad("to_lora_config: a scaling that there is not", "library", lambda place: ONE.to_lora_config(scaling="linear"),
        "scaling must be constant or paper, got 'linear'."),
    Bad("to_lora_config: all zero", "library", lambda place: LearnedRanks({"q": ModuleRank(0)}).to_lora_config(),
        "Every module has rank 0, so there is no adapter to train. Set min_rank 1 or a rank_budget."),
    Bad("to_lora_config: no modules", "library", lambda place: LearnedRanks().to_lora_config(),
        "Every module has rank 0, so there is no adapter to train. Set min_rank 1 or a rank_budget."),
    Bad("check_names: another model", "library", lambda place: ONE.check_names(["a", "b"]),
        "ranks.json names 1 modules, and the model lacks 1 of … Was it learned on another checkpoint (None)?"),
    Bad("save: NaN", "library",
        lambda place: LearnedRanks({"q": ModuleRank(1, (float("nan"),))}).save(place / "ranks.json"),
        "The selection of 'q' must hold finite numbers, got (nan,)."),
    Bad("arguments: rank one under softmax", "library", lambda place: arguments(place, initial_rank=1),
        "initial_rank must be at least 2 (with softmax a single … is learned), got 1. The paper uses 8."),
    Bad("arguments: fp16", "library", lambda place: arguments(place, fp16=True),
        "The search does not run in fp16: its loss scale hides the hypergradient. Use bf16=True or fp32."),
    Bad("arguments: the rate of a step that is not taken", "library", lambda place: arguments(place, inner_lr=0.1),
        "inner_lr has no effect on hypergradient first_order, it is for finite_difference and exact. Drop it, or add"),
    Bad("arguments: a schedule that follows evaluations", "library",
        lambda place: arguments(place, lr_scheduler_type="greedy"),
        "lr_scheduler_type greedy follows evaluations, and the search makes none. Type another, e.g. linear, or sear"),
    Bad("arguments: the best model", "library",
        lambda place: arguments(place, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch"),
        "load_best_model_at_end is not for the search (weights and … together). Set it for the retrain instead."),
    Bad("arguments: a constraint that there is not", "library", lambda place: arguments(place, constraint="softmx"),
        "constraint must be one of softmax, sigmoid, none, got 'softmx'. Did you mean softmax?"),
    Bad("trainer: ordinary arguments", "library", lambda place: trainer(place, args=None),
        "args must be AutoLoraTrainingArguments, got NoneType. They take every argument of TrainingArguments."),
    Bad("trainer: no model", "library", lambda place: trainer(place, model=None),
        "The search needs the model itself, got none. Pass model=..., e.g. model_init()."),
    Bad("trainer: no rows", "library", lambda place: trainer(place, train_dataset=None),
        "The search needs train_dataset, got none. D_tr and D_val both come from it."),
    Bad("trainer: one row", "library", lambda place: trainer(place, train_dataset=[{"input_ids": [1]}]),
        "val_fraction=0.5 of 1 training rows leaves 1 for D_tr and … more training rows or another val_fraction."),
    Bad("trainer: no adapter", "library", lambda place: trainer(place, peft_config=None),
        "The search needs a LoRA adapter, got a plain … or wrap the model with get_peft_model."),
    Bad("trainer: a dict for a LoraConfig", "library", lambda place: trainer(place, peft_config={"r": 4}),
        "peft_config must be a peft.LoraConfig, got dict."),
    Bad("trainer: an adapter of another rank", "library",
        lambda place: trainer(place, peft_config=None, model=lora(tiny_roberta(), 8)),
        "The adapter has rank 8, and the search asks for initial_rank=4. Use LoraConfig(r=4) or initial_rank=8."),
    Bad("trainer: modules that match nothing", "library",
        lambda place: trainer(place, peft_config=LoraConfig(target_modules=["q_proj"])),
        "Target modules {'q_proj'} not found in the base model. Please check the target modules and try again."),
    Bad("trainer: both model and model_init", "library",
        lambda place: trainer(place, model=None, model_init=tiny_roberta),
        "The search needs the model itself, got model_init. Pass model=..., e.g. model_init()."),
]


def _numbers(numbers, script, **given):
    """A row for each value of tables like `NUMBERS`."""
    for name, values, says in numbers:
        for value in values:
            line = f"{name} {says}".replace(" …", "…").replace("{}", str(value))
            yield Bad(f"{name} {value}", script, {**given, name: value}, line)


TABLE = [
    *FILES,
    *GLUE,
    *NER,
    *NLG,
    *_numbers(NUMBERS, "glue"),
    *_numbers(NUMBERS_OF_ADAPTERS, "glue", method="adapter"),
    *_numbers(NUMBERS_OF_GRIDS, "glue", method="grid"),
    *_numbers(NUMBERS_OF_TEXTS, "nlg"),
    *(Bad(f"{name} {value}", "glue", {name: value}, f"{name}…{says}") for name, value, says in CHOICES),
    *ARGUMENTS,
    *CONFIGS,
    *RANKS,
    *MODELS,
    *OUTPUT,
    *RESUME,
    *EVALUATE,
    *CLI,
    *LIBRARY,
]
