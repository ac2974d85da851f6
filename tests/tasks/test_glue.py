"""Do GLUE rows have the task's labels, is bad data named in one line, are long texts cut?"""

import math

import datasets
import numpy as np
import pytest
from transformers import EvalPrediction, RobertaConfig

from autolora_trainer.tasks.files import DataError
from autolora_trainer.tasks.glue import GLUE_TASKS, align_labels, check_split, load_task, tokenize
from autolora_trainer.tasks.metrics import compute_metrics
from tests.helpers.measures import data_error
from tests.helpers.models import tiny_tokenizer
from tests.helpers.rows import pair_rows, write

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
        scored = load_task("stsb", test_file=path)["test"]
        assert set(tokenize(scored, tiny_tokenizer(), "stsb")["labels"]) == ({-1} if path is marked else {None})


def test_every_finite_number_is_a_score(tmp_path):
    """-1 too, which marks a missing class; what is no number in fp32 is refused, and so is what lacks a score."""
    texts, columns = [-1.0, 0.0, -2.5, 1e30, -1.0], ("sentence1", "sentence2", "label")
    path = write(tmp_path / "a.csv", ",".join(columns) + "\n" + "".join(f"a,b,{label}\n" for label in texts))
    for split in ("train", "validation"):
        rows = load_task("stsb", **{f"{split}_file": path})[split]
        assert rows["label"][:] == tokenize(rows, tiny_tokenizer(), "stsb")["labels"][:] == pytest.approx(texts)
    for label, said in (("1e39", "is '1e39', and stsb needs"), ("nan", "needs"), ("1_0", "needs"), ("", "no label")):
        path = write(tmp_path / "b.csv", ",".join(columns) + f"\na,b,1\na,b,{label}\n")
        assert said in data_error(load_task, "stsb", train_file=path)


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
