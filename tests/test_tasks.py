"""Do GLUE rows arrive as they were written, in the task's labels and metrics, and is bad data named in one line?"""

import json
import math
import socket
import threading
import time
import warnings

import datasets
import evaluate
import huggingface_hub
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import EvalPrediction, PreTrainedTokenizerFast, RobertaConfig

from autolora_trainer.tasks import (
    GLUE_TASKS,
    DataError,
    align_labels,
    check_split,
    hub_data,
    load_task,
    read_rows,
    tokenize,
)
from autolora_trainer.tasks.metrics import Glue, compute_metrics
from tests.tiny import data_error


def tiny_tokenizer():
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "sat", "dog", "ran"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=32,
    )


def write(path, content):
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def pair_rows(*labels):
    return [{"sentence1": "the cat", "sentence2": "the dog", "label": label} for label in labels]


# ---- files


@pytest.mark.parametrize(
    "name, content",
    [
        ("rows.jsonl", '{"text": "a ", "label": 0}\n\n{"text": "b", "label": 1}'),
        ("rows.json", '{"text": "a ", "label": 0}\n{"text": "b", "label": 1}\n'),
        ("rows.json", '[{"text": "a ", "label": 0},\n {"text": "b", "label": 1}]'),
        ("rows.json", '{"data": [\n{"text": "a ", "label": 0}, {"text": "b", "label": 1}]}'),
        ("rows.JSON", '{\n"version": 1, "data": [{"text": "a ", "label": 0}, {"text": "b", "label": 1}]\n}'),
        ("rows.csv", "text,label\na ,0\n\nb,1\n"),
        ("rows.csv", b'\xef\xbb\xbftext,label\r\na ,0\r\n"b",1\r\n'),
        ("rows.tsv", "text\tlabel\r\na \t0\r\nb\t1"),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    dataset = read_rows(write(tmp_path / name, content))
    assert dataset.column_names == ["text", "label"]
    assert [(row["text"], int(row["label"])) for row in dataset] == [("a ", 0), ("b", 1)]
    assert [path.name for path in tmp_path.iterdir()] == [name] and not dataset.cache_files


@pytest.mark.parametrize(
    "text", ["blank at the end ", 'one " quote', "a\u2028b\x85c\x0bd", "tab\tand\nbreak", "NA", "x" * 200_000]
)
def test_texts_are_verbatim(tmp_path, text):
    assert read_rows(write(tmp_path / "a.jsonl", [{"text": text}]))[0]["text"] == text
    assert read_rows(write(tmp_path / "a.json", json.dumps([{"text": text}])))[0]["text"] == text
    quoted = text.replace('"', '""')
    assert read_rows(write(tmp_path / "a.csv", f'text\n"{quoted}"\n'))[0]["text"] == text
    if "\t" not in text:
        assert read_rows(write(tmp_path / "a.tsv", f"text\tlabel\n{text}\t1\n"))[0]["text"] == text


def test_csv_field_limit_of_the_process_is_left_alone(tmp_path):
    import csv

    before = csv.field_size_limit()
    read_rows(write(tmp_path / "a.csv", "text\n" + "x" * 200_000))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "name, content, expected",
    [
        (
            "a.txt",
            "x",
            "a.txt: cannot tell the format from the ending '.txt'. Give a .jsonl, .json, .csv or .tsv file.",
        ),
        ("a.jsonl", "", "a.jsonl is empty. Give a file with at least one row."),
        ("a.csv", "\n \n", "a.csv is empty. Give a file with at least one row."),
        ("a.csv", "text,label\n", "a.csv has no rows. Give a file with at least one row."),
        ("a.json", "[]", "a.json has no rows. Give a file with at least one row."),
        ("a.json", '{"data": []}', "a.json has no rows. Give a file with at least one row."),
        ("a.json", "3", "a.json holds 3. Give a JSON array of objects, or one object a line."),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}\n',
            "a.jsonl, line 2: byte 11 (0xe9) is not UTF-8. Save the file as UTF-8.",
        ),
        ("a.csv", "text\na\n".encode("utf-16"), "a.csv, line 1: byte 1 (0xff) is not UTF-8. Save the file as UTF-8."),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"text": "b"\n',
            "a.jsonl, line 3: broken JSON: Expecting ',' delimiter (column 13). Correct it, or leave the row out.",
        ),
        (
            "a.json",
            '[{"text": "a"},\n{"text": b}]',
            "a.json, line 2: broken JSON: Expecting value (column 10). Correct it, or leave the row out.",
        ),
        (
            "a.json",
            '{"text": a}\n{"text": "b"}\n',
            "a.json, line 1: broken JSON: Expecting value (column 10). Correct it, or leave the row out.",
        ),
        (
            "a.jsonl",
            '{"label": 0, "label": 1}\n',
            "a.jsonl, line 1: broken JSON: the key 'label' appears twice. Correct it, or leave the row out.",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n["b"]\n',
            "a.jsonl, line 2: ['b'] is no JSON object. Write every row as {\"column\": value, ...}.",
        ),
        (
            "a.json",
            '[{"text": "a"}, 5]',
            'a.json, row 2: 5 is no JSON object. Write every row as {"column": value, ...}.',
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": "b"}\n',
            "a.jsonl, line 2: the row lacks 'label'; every row needs the keys of line 1. Correct the row.",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b", "label": 0}\n',
            "a.jsonl, line 2: the row has the extra key 'label'; every row needs the keys of line 1. Correct the row.",
        ),
        ("a.jsonl", "{}\n", "a.jsonl, line 1: the object is empty. Give every row its columns."),
        ("a.tsv", "te\0xt\na\n", "a.tsv: 'te\\x00xt' is no column name that can be stored. Rename the column."),
        ("a.jsonl", '{"": 1}\n', "a.jsonl, line 1: a key is empty. Give every column a name."),
        (
            "a.jsonl",
            '{"label": 0}\n{"label": 1}\n{"label": "one"}\n',
            "a.jsonl, line 3: 'one' in label does not go with the values above it. Give the column one type (all "
            "text, or all "
            "numbers), in valid Unicode.",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "\\ud800"}\n',
            "a.jsonl, line 2: '\\ud800' in text does not go with the values above it. Give the column one type (all "
            "text, or "
            "all numbers), in valid Unicode.",
        ),
        (
            "a.csv",
            'text,label\n"a\nb",0\nc\n',
            "a.csv, line 4: 1 fields, but the header names 2 columns (text, label). Correct the row or the header.",
        ),
        (
            "a.tsv",
            "text\tlabel\na\t0\nb\tc\t1\n",
            "a.tsv, line 3: 3 fields, but the header names 2 columns (text, label). Correct the row or the header.",
        ),
        ("a.csv", "text,text\na,b\n", "a.csv, line 1: the header names 'text' twice. Rename one of the two."),
        (
            "a.csv",
            ",text\n0,a\n",
            "a.csv, line 1: column 1 of the header has no name. Name it, or leave the column out (with pandas: "
            "to_csv(..., "
            "index=False)).",
        ),
        (
            "a.csv",
            'text,label\na,0\n"b,1\nc,0\n',
            "a.csv, line 3: broken CSV: unexpected end of data. Put a field that holds a quote in double quotes and "
            "write the "
            "quote twice.",
        ),
    ],
)
def test_malformed_file_is_named_with_its_line(tmp_path, name, content, expected):
    path = write(tmp_path / name, content)
    assert data_error(read_rows, path) == f"{tmp_path.name}/{expected}"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": 1}}', "\0"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_hostile_json_is_one_line(tmp_path, name, content):
    assert "a.json" in data_error(read_rows, write(tmp_path / name, content))


def test_missing_file_and_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", pair_rows(0, 1))
    (tmp_path / "folder.csv").mkdir()
    assert data_error(read_rows, "trian.jsonl") == "There is no file trian.jsonl. Did you mean 'train.jsonl'?"
    assert data_error(read_rows, "data/x/dev.csv") == "There is no file x/dev.csv. Check the path."
    assert (
        data_error(read_rows, "folder.csv")
        == "folder.csv is a folder. Give one .jsonl, .json, .csv or .tsv file in it."
    )


# ---- tasks


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_every_task_loads_tokenizes_and_scores_two_rows(tmp_path, name):
    task = GLUE_TASKS[name]
    labels = [0.5, 4.0] if task.is_regression else [0, 1]
    texts = ["the cat sat ", "a dog"]
    rows = [
        {**{column: text for column in task.text_columns}, "label": label, "idx": 7}
        for text, label in zip(texts, labels)
    ]
    path = write(tmp_path / "train.jsonl", rows)
    loaded = load_task(name, train_file=path, validation_file=path)
    assert list(loaded) == ["train", "validation"] and list(loaded["train"]) == rows
    assert getattr(loaded["train"].features["label"], "names", None) == (
        list(task.label_names) if task.label_names else None
    )

    encoded = tokenize(loaded["train"], tiny_tokenizer(), name, max_seq_length=12)
    assert sorted(encoded.column_names) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
    first = [1, 4, 5, 6, 2] + ([4, 5, 6, 2] if len(task.text_columns) == 2 else [])
    assert encoded["input_ids"][0] == first and encoded["labels"][:] == labels
    assert encoded["token_type_ids"][0] == [0] * 5 + [1] * (len(first) - 5)

    outputs = np.array(labels)[:, None] if task.is_regression else np.eye(task.num_labels)[labels]
    scores = compute_metrics(name)(EvalPrediction(predictions=(outputs, "hidden"), label_ids=np.array(labels)))
    assert set(task.metrics) <= set(scores) and task.reported_metric in task.metrics
    assert all(type(score) is float and score == pytest.approx(1.0) for score in scores.values())


def test_table_names_the_hub_and_what_the_paper_reports():
    hub = {name: task.hub_config for name, task in GLUE_TASKS.items() if task.hub_id == "nyu-mll/glue"}
    assert hub == {name: name for name in ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "stsb", "wnli")}
    reported = {name: task.reported_metric for name, task in GLUE_TASKS.items() if task.reported_metric != "accuracy"}
    assert reported == {"cola": "matthews_correlation", "stsb": "spearmanr"}
    assert GLUE_TASKS["mnli"].label_names == ("entailment", "neutral", "contradiction")
    assert dict(GLUE_TASKS["mnli"].splits)["validation_mm"] == "validation_mismatched"


def test_labels_may_be_names_or_digits(tmp_path):
    path = write(
        tmp_path / "a.csv", "sentence1,sentence2,label\na,b,Equivalent\nc,d,0\ne,f, not_equivalent\ng,h,1.0\n"
    )
    assert load_task("mrpc", train_file=path)["train"]["label"][:] == [1, 0, 0, 1]
    names = datasets.Dataset.from_list(pair_rows("equivalent", "not_equivalent"))
    assert tokenize(names, tiny_tokenizer(), "mrpc")["labels"][:] == [1, 0]
    scores = write(tmp_path / "b.tsv", "sentence1\tsentence2\tlabel\na\tb\t3.8\n")
    assert load_task("stsb", validation_file=scores)["validation"]["label"][0] == pytest.approx(3.8)


def test_test_rows_may_have_no_labels(tmp_path):
    marked = write(tmp_path / "marked.jsonl", pair_rows(-1, -1))
    bare = write(tmp_path / "bare.csv", "sentence1,sentence2\nthe cat,the dog\n")
    for path in (marked, bare):
        dataset = load_task("rte", test_file=path)["test"]
        assert set(tokenize(dataset, tiny_tokenizer(), "rte")["labels"]) == {-1}


@pytest.mark.parametrize(
    "task, split, rows, expected",
    [
        (
            "mrpc",
            "train",
            [{"text": "a", "label": 0}],
            "The train split has no column 'sentence1': mrpc needs sentence1, sentence2, label, and the columns "
            "given are text, "
            "label. Rename the columns, or choose another --task_name.",
        ),
        (
            "sst2",
            "validation",
            [{"sentence": "a"}],
            "The validation split has no column 'label': sst2 needs sentence, label, and the columns given are "
            "sentence. Rename "
            "the columns, or choose another --task_name.",
        ),
        (
            "mrpc",
            "train",
            pair_rows(0, 1, 2),
            "The train split, row 3: the label is 2, and mrpc has 0 (not_equivalent), 1 (equivalent). Correct the "
            "label, or "
            "leave the row out.",
        ),
        (
            "mrpc",
            "validation",
            pair_rows("equivalent", "same"),
            "The validation split, row 2: the label is 'same', and mrpc has 0 (not_equivalent), 1 (equivalent). "
            "Correct the "
            "label, or leave the row out.",
        ),
        (
            "rte",
            "train",
            pair_rows(1, 1, 1),
            "The train split: every row (3) has the label 1 (not_entailment), and training needs two labels at "
            "least. Add rows "
            "with another label, or check the label column.",
        ),
        (
            "rte",
            "train",
            pair_rows(1, -1, 0),
            "The train split, row 2: the row has no label (label -1), and every row for train needs one. Give the "
            "label, or "
            "leave the row out.",
        ),
        (
            "rte",
            "validation",
            pair_rows(None, 1),
            "The validation split, row 1: the row has no label (label None), and every row for validation needs one. "
            "Give the "
            "label, or leave the row out.",
        ),
        (
            "rte",
            "test",
            [{"sentence1": "a", "sentence2": "b"}, {"sentence1": "a", "sentence2": None}],
            "The test split, row 2: sentence2 is None, and text is needed. Write it as a string, or leave the row "
            "out.",
        ),
        (
            "sst2",
            "train",
            [{"sentence": 5, "label": 0}],
            "The train split, row 1: sentence is 5, and text is needed. Write it as a string, or leave the row out.",
        ),
        (
            "stsb",
            "train",
            pair_rows(1.0, math.nan),
            "The train split, row 2: the label is nan, and stsb needs a finite number. Correct the label, or leave "
            "the row out.",
        ),
        (
            "stsb",
            "train",
            pair_rows(math.inf),
            "The train split, row 1: the label is inf, and stsb needs a finite number. Correct the label, or leave "
            "the row out.",
        ),
        (
            "stsb",
            "validation",
            pair_rows("high"),
            "The validation split, row 1: the label is 'high', and stsb needs a finite number. Correct the label, or "
            "leave the "
            "row out.",
        ),
        ("rte", "train", [], "The train split has no rows. Give at least one row for train."),
    ],
)
def test_rows_that_are_not_the_tasks_are_refused(task, split, rows, expected):
    assert data_error(check_split, datasets.Dataset.from_list(rows), task, split) == expected


@pytest.mark.parametrize("label", [True, 0.5, [0], 7, "2", "nan"])
def test_no_other_value_passes_for_a_label(label):
    assert "row 1: the label is" in data_error(
        check_split, datasets.Dataset.from_list(pair_rows(label)), "rte", "validation"
    )


def test_a_bad_row_is_named_with_its_file(tmp_path):
    path = write(tmp_path / "dev.jsonl", pair_rows(0, 9))
    with pytest.raises(DataError, match=r"/dev\.jsonl, row 2: the label is 9, and rte has 0 \(entailment\)"):
        load_task("rte", validation_file=path)


def test_unknown_task():
    assert data_error(load_task, "mprc") == f"task_name must be one of {', '.join(GLUE_TASKS)}, got 'mprc'."


def test_sample_comes_from_the_loader_it_is_given():
    rows = datasets.DatasetDict({"train": datasets.Dataset.from_list(pair_rows(0, 1))})
    assert load_task("sample", loader=lambda: rows) is rows
    assert "is not on the hub" in data_error(load_task, "sample")


# ---- the hub

UNREACHABLE = (
    "Could not reach the Hugging Face Hub for the data set nyu-mll/glue (mrpc). Give local files with --train_file "
    "and "
    "--validation_file, or connect to the network once so that the data is cached."
)


def test_hub_in_offline_mode_is_one_line(tmp_path):
    assert data_error(load_task, "mrpc", cache_dir=tmp_path) == UNREACHABLE
    assert list(tmp_path.iterdir()) == []


def test_hub_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_data, "hub_answers", lambda: False)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("load_dataset went to the network"))
    assert data_error(load_task, "mrpc", cache_dir=tmp_path) == UNREACHABLE
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    "reply, answers", [(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", True), (b"", False)]
)
def test_one_question_tells_whether_thehub_answers(reply, answers, monkeypatch):
    monkeypatch.setattr(hub_data, "HUB_TIMEOUT", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:%d" % server.getsockname()[1])

        def serve():
            connection, _ = server.accept()
            connection.recv(4096)
            if reply:
                connection.sendall(reply)
            done.wait(5)
            connection.close()

        done = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        began = time.monotonic()
        assert hub_data.hub_answers() is answers
        assert time.monotonic() - began < 3
        done.set()
        thread.join(5)


def test_hub_splits_get_our_names(monkeypatch):
    row = datasets.Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 0}])
    hub = {name: row for name in ("train", "validation_matched", "validation_mismatched", "test_matched")}
    monkeypatch.setattr(hub_data, "load_dataset", lambda *args, **kwargs: hub)
    assert list(load_task("mnli")) == ["train", "validation", "validation_mm", "test"]
    hub["test_mismatched"] = row
    assert list(load_task("mnli")) == ["train", "validation", "validation_mm", "test", "test_mm"]


def test_other_hub_failures_keep_their_reason(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_data, "load_dataset", full)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_data, "hub_answers", lambda: True)
    assert "from the hub: [Errno 28] No space left on device. Give local files" in data_error(load_task, "mrpc")


# ---- tokenization


def test_long_texts_are_cut_and_padding_is_asked_for():
    dataset = datasets.Dataset.from_list(pair_rows(0, 1))
    encoded = tokenize(dataset, tiny_tokenizer(), "mrpc", max_seq_length=6)
    assert [len(ids) for ids in encoded["input_ids"]] == [6, 6]
    padded = tokenize(dataset, tiny_tokenizer(), "mrpc", max_seq_length=12, pad_to_max_length=True)
    assert padded["input_ids"][0][-5:] == [0] * 5 and sum(padded["attention_mask"][0]) == 7


def test_length_is_held_within_the_model_and_above_the_special_tokens(caplog):
    dataset = datasets.Dataset.from_list(pair_rows(0, 1))
    padded = tokenize(dataset, tiny_tokenizer(), "mrpc", max_seq_length=99, pad_to_max_length=True)
    assert len(padded["input_ids"][0]) == 32 and "max_seq_length 99 is more than the model takes" in caplog.text
    assert data_error(tokenize, dataset, tiny_tokenizer(), "mrpc", max_seq_length=4) == (
        "max_seq_length=4 leaves no room for text: mrpc needs 3 special tokens and at least one token for each text. "
        "Give "
        "--max_seq_length 5 or more."
    )


def test_padding_needs_a_padding_token():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    dataset = datasets.Dataset.from_list(pair_rows(0, 1))
    assert "needs a padding token" in data_error(tokenize, dataset, tokenizer, "mrpc", pad_to_max_length=True)


# ---- labels of a model that was trained before (transformers PR #10401)


def test_permuted_labels_of_the_base_model_are_kept():
    names = {"CONTRADICTION": 0, "Neutral": 1, "ENTAILMENT": 2}
    config = RobertaConfig(label2id=names, id2label={index: name for name, index in names.items()})
    label2id, id2label = align_labels(config, "mnli")
    assert label2id == {"entailment": 2, "neutral": 1, "contradiction": 0}
    assert id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 1, 2, -1)]
    encoded = tokenize(datasets.Dataset.from_list(rows), tiny_tokenizer(), "mnli", label2id=label2id)
    assert encoded["labels"][:] == [2, 1, 0, -1]


def test_metric_of_permuted_labels_is_the_tasks():
    logits = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    labels = np.array([1, 0, 0, 0])
    task_order = compute_metrics("mrpc")(EvalPrediction(predictions=logits, label_ids=labels))
    label2id = {"equivalent": 0, "not_equivalent": 1}
    model_order = compute_metrics("mrpc", label2id)(EvalPrediction(predictions=logits[:, ::-1], label_ids=1 - labels))
    assert model_order == task_order
    assert task_order["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("label2id", [{"LABEL_0": 0, "LABEL_1": 1}, {}, None])
def test_unnamed_labels_say_nothing(label2id, caplog):
    config = RobertaConfig()
    config.label2id = label2id
    assert align_labels(config, "rte") == (
        {"entailment": 0, "not_entailment": 1},
        {0: "entailment", 1: "not_entailment"},
    )
    assert align_labels(config, "stsb") == ({"LABEL_0": 0}, {0: "LABEL_0"})
    assert not caplog.records


@pytest.mark.parametrize("label2id", [{"negative": 0, "positive": 1}, {"entailment": 1, "not_entailment": 2}])
def test_labels_of_another_task_are_warned_about(label2id, caplog):
    config = RobertaConfig()
    config.label2id = label2id
    assert align_labels(config, "rte")[0] == {"entailment": 0, "not_entailment": 1}
    assert "the labels are numbered as in the task" in caplog.text


# ---- metrics


def test_metrics_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
    references = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    scores = Glue("mrpc").compute(predictions=predictions, references=references)
    assert scores == pytest.approx({"accuracy": 0.7, "f1": 2 / 3, "combined_score": (0.7 + 2 / 3) / 2})
    scores = Glue("cola").compute(predictions=predictions, references=references)
    assert scores == pytest.approx({"matthews_correlation": (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)})
    scores = Glue("stsb").compute(predictions=[1.0, 2.0, 3.0], references=[1.0, 3.0, 2.0])
    assert scores == pytest.approx({"pearsonr": 0.5, "spearmanr": 0.5, "combined_score": 0.5})


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_scikit_learn_and_scipy(seed):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(2500, 2)), generator.integers(0, 2, 2500)
    predictions = logits.argmax(-1)
    assert compute_metrics("sst2")(EvalPrediction(logits, labels))["accuracy"] == accuracy_score(labels, predictions)
    assert compute_metrics("qqp")(EvalPrediction(logits, labels))["f1"] == f1_score(labels, predictions)
    matthews = compute_metrics("cola")(EvalPrediction(logits, labels))["matthews_correlation"]
    assert matthews == pytest.approx(matthews_corrcoef(labels, predictions))
    outputs, scores = generator.normal(size=(2500, 1)).astype(np.float32), generator.uniform(0, 5, 2500)
    computed = compute_metrics("stsb")(EvalPrediction(outputs, scores))
    assert computed["pearsonr"] == pytest.approx(pearsonr(outputs[:, 0], scores).statistic, abs=1e-6)
    assert computed["spearmanr"] == pytest.approx(spearmanr(outputs[:, 0], scores).statistic, abs=1e-12)


@pytest.mark.parametrize("rows", [1, 4])
def test_constant_predictions_score_zero_without_a_warning(rows):
    labels = np.arange(rows) % 2
    constant = np.tile([1.0, 0.0], (rows, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_metrics("cola")(EvalPrediction(constant, labels)) == {"matthews_correlation": 0.0}
        assert compute_metrics("mrpc")(EvalPrediction(constant, labels))["f1"] == 0.0
        computed = compute_metrics("stsb")(EvalPrediction(np.ones((rows, 1)), labels.astype(float)))
    assert computed == {"pearsonr": 0.0, "spearmanr": 0.0, "combined_score": 0.0}


@pytest.mark.parametrize("name", ["mrpc", "cola", "stsb"])
def test_metrics_open_no_socket_and_leave_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("a metric opened a socket"))
    for _ in range(2):
        Glue(name).compute(predictions=[0, 1, 1], references=[0, 1, 0])
    assert list(tmp_path.iterdir()) == []


def test_metric_of_several_processes_goes_through_files(tmp_path):
    metric = Glue("sst2", num_process=2, process_id=1, cache_dir=str(tmp_path))
    assert not metric.keep_in_memory and list(tmp_path.rglob("*"))
