"""Are files of tagged words read as they are written, and are entities scored strictly?"""

import json
import random
import sys

import pytest
from datasets import Dataset, DatasetDict

from autolora_trainer.tasks import ner, ner_windows
from tests.helpers.entities import LABELS, jsonl, rows
from tests.helpers.measures import data_error
from tests.helpers.rows import write

# ---- scores


def test_scores_by_hand():
    gold = ["B-DNA I-DNA O B-protein".split(), "B-protein I-protein I-protein O".split(), "O O B-RNA".split()]
    guess = ["B-DNA I-DNA O B-protein".split(), "B-protein I-protein O O".split(), "B-DNA O B-protein".split()]
    # gold: 1 DNA, 2 protein, 1 RNA; guessed: 2 DNA, 3 protein; right: the first DNA, the first protein
    assert ner_windows.entity_scores(gold, guess) == pytest.approx(
        {
            **{"precision": 2 / 5, "recall": 2 / 4, "f1": 4 / 9, "accuracy": 8 / 11},
            **{"precision_DNA": 1 / 2, "recall_DNA": 1.0, "f1_DNA": 2 / 3},
            **{"precision_protein": 1 / 3, "recall_protein": 1 / 2, "f1_protein": 2 / 5},
            **{"precision_RNA": 0.0, "recall_RNA": 0.0, "f1_RNA": 0.0},
        }
    )


@pytest.mark.parametrize(
    "guess, found",
    [
        ("B-DNA I-DNA O", 1.0),
        ("I-DNA I-DNA O", 0.0),  # an entity starts with B-
        ("O I-DNA O", 0.0),
        ("B-DNA I-RNA O", 0.0),  # this one ends before another type
        ("B-DNA I-DNA I-DNA", 0.0),
        ("B-DNA B-DNA O", 0.0),
    ],
)
def test_scores_are_strict(guess, found):
    assert ner_windows.entity_scores(["B-DNA I-DNA O".split()], [guess.split()])["recall"] == found


def test_scores_without_an_entity_are_zero_and_silent(recwarn):
    assert ner_windows.entity_scores([["O", "O"]], [["O", "O"]]) == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "accuracy": 1.0,
    }
    assert not recwarn.list


def entities(tags):
    """{(first word, word after the last, type)}, by another way than seqeval's."""
    found = set()
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start + 1
            while end < len(tags) and tags[end] == "I" + tag[1:]:
                end += 1
            found.add((start, end, tag[2:]))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_scores_agree_with_counting(seed):
    generator = random.Random(seed)
    gold = [[generator.choice(ner.JNLPBA_LABELS) for _ in range(generator.randint(1, 12))] for _ in range(60)]
    guess = [[tag if generator.random() < 0.8 else generator.choice(LABELS) for tag in tags] for tags in gold]
    true = {(i, *entity) for i, tags in enumerate(gold) for entity in entities(tags)}
    predicted = {(i, *entity) for i, tags in enumerate(guess) for entity in entities(tags)}
    scores = ner_windows.entity_scores(gold, guess)
    for kind in ("", *{entity[-1] for entity in true | predicted}):
        t, p = ({e for e in found if kind in ("", e[-1])} for found in (true, predicted))
        suffix = f"_{kind}" if kind else ""
        assert scores["f1" + suffix] == pytest.approx(2 * len(t & p) / (len(t) + len(p)))
        assert scores["recall" + suffix] == pytest.approx(len(t & p) / len(t) if t else 0.0)


def test_without_seqeval_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval", None)
    assert data_error(ner_windows.require_seqeval) == (
        'The scores of named entities need seqeval, which is not installed. Type: pip install ".[ner]"'
    )


# ---- files

IOB2 = [
    ("a.iob2", "IL-2\tB-DNA\ngene\tI-DNA\n\nthe\tO\n"),
    ("a.iob2", "###MEDLINE:95369245\n\nIL-2\tB-DNA\ngene\tI-DNA\n\n\n###MEDLINE:95333264\n\nthe\tO"),
    ("a.tsv", b"\xef\xbb\xbfIL-2\tB-DNA\r\ngene\tI-DNA\r\n\r\nthe\tO\r\n"),
    ("a.conll", "-DOCSTART- -X- O O\n\nIL-2 NN B-NP B-DNA\ngene NN I-NP I-DNA\n\nthe DT B-NP O\n"),
    ("a.conll", "# id 7\nIL-2 _ _ B-DNA \ngene _ _ I-DNA\n \t\n# text = the\nthe _ _ O\n-DOCSTART- O\n"),
    ("a.CONLL", "IL-2  B-DNA\ngene  I-DNA\n-DOCSTART- -X- O O\nthe  O\n"),
]


@pytest.mark.parametrize("name, content", IOB2)
def test_every_iob2_file_gives_the_same_rows(tmp_path, name, content):
    sentences = ner.read_sentences(write(tmp_path / name, content))
    assert sentences.tokens == [["IL-2", "gene"], ["the"]] and sentences.tags == [["B-DNA", "I-DNA"], ["O"]]


def test_odd_words_of_an_iob2_file_are_words(tmp_path):
    content = '#\tO\n\u00a0\tO\n"\tO\n# O\na b\tO\n\u2028 O\n-\tB-x\n'
    sentences = ner.read_iob2(write(tmp_path / "a.iob2", content))
    assert sentences.tokens == [["#", "\u00a0", '"', "#", "a b", "\u2028", "-"]]
    assert sentences.place(0, 6) == f"{tmp_path.name}/a.iob2, line 7"


def test_test_rows_may_have_no_tags(tmp_path):
    plain = write(tmp_path / "a.iob2", "the\ngene\n\nof\n")
    lists = write(tmp_path / "b.jsonl", '{"tokens": ["the", "gene"], "tags": []}\n{"tokens": ["of"], "tags": null}\n')
    column = write(tmp_path / "c.json", '[{"tokens": ["the", "gene"]}, {"tokens": ["of"]}]')
    for path in (plain, lists, column):
        loaded = ner.load_task("jnlpba", test_file=path)[0]["test"]
        assert loaded.column_names == ["tokens"] and loaded["tokens"][:] == [["the", "gene"], ["of"]]


def test_partly_tagged_test_rows_are_not_scored(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", '{"tokens": ["the"], "tags": ["O"]}\n{"tokens": ["of"], "tags": null}\n')
    assert ner.load_task("jnlpba", test_file=path)[0]["test"].column_names == ["tokens"]
    assert caplog.messages == [f"{tmp_path.name}/a.jsonl: 1 rows have no tags, so none are scored."]


def test_jnlpba_has_names_or_ids(tmp_path):
    train = jsonl(tmp_path / "a.jsonl", ("IL-2 gene of", [1, 2, 0]), ("p53", [3]))
    names = jsonl(tmp_path / "b.jsonl", ("IL-2 gene of", ["B-DNA", "I-DNA", "O"]), ("p53", ["B-protein"]))
    loaded, labels = ner.load_task("jnlpba", train_file=train, validation_file=names)
    assert loaded["train"]["tags"][:] == loaded["validation"]["tags"][:] == [["B-DNA", "I-DNA", "O"], ["B-protein"]]
    assert labels == ner.JNLPBA_LABELS and len(labels) == 11 and labels[9:] == ("B-RNA", "I-RNA")


def test_ids_of_another_numbering_need_their_names(tmp_path, caplog):
    path = jsonl(tmp_path / "a.jsonl", ("IL-2 gene", [1, 2]), ("p53", [3]), column="ner_tags")
    assert ner.load_task("jnlpba", train_file=path)[0]["train"]["tags"][1] == ["B-protein"]
    assert len(caplog.messages) == 1
    assert "the ids in ner_tags are read as those of tner/bionlp2004 (3 is B-protein)" in caplog.text
    caplog.clear()
    labels = ["O", "B-DNA", "I-DNA", "B-RNA", "I-RNA"]
    write(tmp_path / "labels.json", json.dumps({"labels": labels, "label2id": {}}))
    assert ner.load_task("jnlpba", train_file=path)[0]["train"]["tags"][:] == [["B-DNA", "I-DNA"], ["B-RNA"]]
    assert not caplog.messages


def test_own_labels_are_those_of_the_training_rows(tmp_path):
    train = jsonl(tmp_path / "a.jsonl", ("a b c", ["B-z", "I-z", "B-a"]), ("d", ["I-a"]))
    dev = write(tmp_path / "b.tsv", "a\tO\nb\tB-z\n")
    loaded, labels = ner.load_task("ner", train_file=train, validation_file=dev)
    assert labels == ("O", "B-a", "B-z", "I-a", "I-z") and loaded["validation"]["tags"][:] == [["O", "B-z"]]
    assert ner.load_task("ner", validation_file=dev, label_names=labels)[1] == labels


def test_own_ids_are_named_by_a_file_beside_them(tmp_path):
    write(tmp_path / "labels.json", '{"labels": ["B-z", "O", "I-z"]}')
    train = jsonl(tmp_path / "a.jsonl", ("a b c", [0, 2, 1]))
    (tmp_path / "dev").mkdir()
    dev = jsonl(tmp_path / "dev" / "b.jsonl", ("a b", [1, 0]))
    loaded, labels = ner.load_task("ner", train_file=train, validation_file=dev)
    assert labels == ("B-z", "O", "I-z") and loaded["validation"]["tags"][:] == [["O", "B-z"]]


def test_a_labels_file_is_nobodys_business_where_tags_are_names(tmp_path):
    write(tmp_path / "labels.json", "mine")
    train = jsonl(tmp_path / "a.jsonl", ("a b", ["B-z", "O"]))
    assert ner.load_task("ner", train_file=train)[1] == ("O", "B-z")


def test_inside_tags_that_continue_nothing_are_counted_once(tmp_path, caplog):
    path = write(tmp_path / "a.iob2", "a\tI-DNA\nb\tI-DNA\n\nc\tB-DNA\nd\tI-RNA\ne\tO\nf\tB-RNA\ng\tI-RNA\n")
    ner.load_task("jnlpba", train_file=path)
    assert caplog.messages == [
        f"{tmp_path.name}/a.iob2: 2 I- tags continue no entity of their type (the first is I-DNA in line 1); strict "
        "IOB2 scores do not count them."
    ]


def test_hub_rows_come_from_a_pinned_revision_without_a_script(monkeypatch):
    asked = {}
    hub = {name: Dataset.from_dict({"tokens": [["p53", "of"]], "tags": [[3, 0]]}) for name in ("train", "test")}

    def load(hub_id, config, splits, **arguments):
        asked.update(arguments, hub_id=hub_id, config=config)
        return DatasetDict({ours: hub[theirs] for ours, theirs in splits if theirs in hub})

    monkeypatch.setattr(ner, "load_from_hub", load)
    loaded, labels = ner.load_task("jnlpba", cache_dir="cache", token="secret")
    assert loaded["test"][0] == {"tokens": ["p53", "of"], "tags": ["B-protein", "O"]} and len(labels) == 11
    assert asked["hub_id"] == "tner/bionlp2004" and asked["config"] is None and len(asked["revision"]) == 40
    assert (asked["cache_dir"], asked["token"]) == ("cache", "secret")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("columns", [["{}", "{}"], ["{}", "NN", "B-NP", "{}"]])
@pytest.mark.parametrize("gap", ["\t", " "])
def test_lines_of_every_system_are_the_same_sentences(tmp_path, end, columns, gap):
    """And so are files with byte order marks, and such that were put one behind the other."""
    made = [("p53 \u2028 the".split(" "), ["B-DNA", "O", "O"]), (["# ", "\u200b"], ["O", "B-RNA"])]
    made = made if gap == "\t" else made[:1]  # "# " is a word only where a tab ends it
    lines = [gap.join(columns).format(*pair) for words, tags in made for pair in (*zip(words, tags), ("", ""))]
    text = end.join(line if line.strip(" \tBNP-") else "" for line in lines)
    sentences = ner.read_iob2(write(tmp_path / "a.conll", "\ufeff\ufeff" + end.join([text, "\ufeff" + text])))
    assert sentences.tokens == [[word.strip(" ") for word in words] for words, _ in made] * 2
    assert sentences.tags == [tags for _, tags in made] * 2


def test_a_word_with_a_blank_does_not_lose_its_end(tmp_path):
    path = write(tmp_path / "a.conll", "New York B-LOC\nis O\n")
    assert data_error(ner.read_iob2, path).endswith(
        "a.conll, line 2: 2 columns, and line 1 has 3. Separate columns by one tab, also where a word holds a blank."
    )
    path = write(tmp_path / "a.conll", "New York\tB-LOC\nis O\n")
    assert ner.read_iob2(path).tokens == [["New York", "is"]]


def test_a_comment_that_ends_like_a_tag_is_no_word(tmp_path):
    path = write(tmp_path / "a.conll", "# text = vitamin O\nvitamin\tO\n\n# is no comment\tO\n#\tO\n")
    assert ner.read_iob2(path).tokens == [["vitamin"], ["# is no comment", "#"]]


def test_words_in_quotes_of_csv_are_pointed_at(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", '""""\tO\n"the\tO\n"\tO\n')
    assert ner.read_iob2(path).tokens == [['""""', '"the', '"']]
    assert '1 words look quoted as in CSV (the first is \'""""\' in line 1), and are taken as they are' in caplog.text


GOOD = '{"tokens": ["a", "b"], "tags": ["B-DNA", "O"]}\n'
BAD_ROWS = [
    ("jnlpba", "a.jsonl", "", "a.jsonl is empty. Give a file with at least one row."),
    ("jnlpba", "a.iob2", "\n\n", "a.iob2 is empty. Give a file with at least one row."),
    ("jnlpba", "a.iob2", "###MEDLINE:1\n\n", "a.iob2 has no rows. Give a file with at least one row."),
    (
        "jnlpba",
        "a.csv",
        "tokens,tags\na,O\n",
        "a.csv: a CSV file cannot hold lists of words and tags. Give a .jsonl, .json, .iob2, .conll or .tsv file.",
    ),
    (
        "jnlpba",
        "a.txt",
        "a O\n",
        "a.txt: cannot tell the format from the ending '.txt'. Give a .jsonl, .json, .iob2, .conll or .tsv file.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        '{"words": ["a"], "tags": ["O"]}\n',
        "a.jsonl has no column 'tokens': the columns tokens and tags are needed, and those given are words, tags. "
        "Rename the columns.",
    ),
    (
        "ner",
        "a.jsonl",
        '{"tokens": ["a"]}\n',
        "a.jsonl has no column 'tags': the columns tokens and tags are needed, and those given are tokens. Rename the "
        "columns.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        '{"tokens": "a b", "tags": ["O", "O"]}\n',
        "a.jsonl, row 1: tokens is 'a b', and a list of words is needed. Write it as [\"word\", ...], or leave the "
        "row out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        GOOD + '{"tokens": [], "tags": []}\n',
        "a.jsonl, row 2: tokens is empty. Give at least one word, or leave the row out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        '{"tokens": [1, 2], "tags": ["O", "O"]}\n',
        "a.jsonl, row 1: word 1 is 1, and text is needed. Write every word as a string that is not empty, or leave "
        "the row out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        GOOD + '{"tokens": ["a", ""], "tags": ["O", "O"]}\n',
        "a.jsonl, row 2: word 2 is '', and text is needed. Write every word as a string that is not empty, or leave "
        "the row out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        GOOD + '{"tokens": ["a", "b"], "tags": ["O"]}\n',
        "a.jsonl, row 2: 2 tokens, but 1 tags; every token needs one tag. Correct the row, or leave it out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        '{"tokens": ["a"], "tags": "O"}\n',
        "a.jsonl, row 1: tags is 'O', and a list is needed. Write it as [\"O\", ...], or leave the row out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        GOOD + '{"tokens": ["a"], "tags": null}\n',
        "a.jsonl, row 2: the row has no tags, and every row for train needs them. Give the tags, or leave the row "
        "out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        '{"tokens": ["a", "b"], "tags": [1, 0]}\n{"tokens": ["a"], "tags": [11]}\n',
        "a.jsonl, row 2: the tag is 11, and the ids are 0 (O) to 10 (I-RNA). Correct the tag, or leave the row out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        '{"tokens": ["a", "b"], "tags": [1, -1]}\n',
        "a.jsonl, row 1: the tag is -1, and the ids are 0 (O) to 10 (I-RNA). Correct the tag, or leave the row out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        '{"tokens": ["a"], "tags": [true]}\n',
        "a.jsonl, row 1: the tag is True, and IOB2 tags are O, B-type and I-type. Correct the tag, or leave the row "
        "out.",
    ),
    (
        "jnlpba",
        "a.jsonl",
        GOOD + '{"tokens": ["a"], "tags": ["B-virus"]}\n',
        "a.jsonl, row 2: the tag is 'B-virus', and jnlpba has O, B-DNA, I-DNA, B-protein, I-protein, B-cell_type, "
        "I-cell_type, B-cell_line, I-cell_line, B-RNA, I-RNA. Correct the tag, or leave the row out.",
    ),
    (
        "ner",
        "a.jsonl",
        GOOD + '{"tokens": ["a"], "tags": ["S-DNA"]}\n',
        "a.jsonl, row 2: the tag is 'S-DNA', and IOB2 tags are O, B-type and I-type. Correct the tag, or leave the "
        "row out.",
    ),
    (
        "ner",
        "a.jsonl",
        '{"tokens": ["a"], "tags": [1]}\n',
        "a.jsonl: the tags are numbers, and nothing names them. Write them as strings such as B-protein, or put a "
        'labels.json with {"labels": ["O", "B-protein", ...]} beside the file.',
    ),
    (
        "ner",
        "a.iob2",
        "a\tO\nb\tDNA\n",
        "a.iob2, line 2: the tag is 'DNA', and IOB2 tags are O, B-type and I-type. Correct the tag, or leave the row "
        "out.",
    ),
    (
        "jnlpba",
        "a.iob2",
        "###MEDLINE:1\n\na\tO\nprotein\n",
        "a.iob2, line 4: 'protein' has no tag. Write a word, a tab and its tag, or leave the line blank to end the "
        "sentence.",
    ),
    (
        "jnlpba",
        "a.tsv",
        "a\tO\n\tO\n",
        "a.tsv, line 2: there is no word before the tag. Write a word, a tab and its tag, or leave the line blank to "
        "end the sentence.",
    ),
    (
        "jnlpba",
        "a.iob2",
        b"a\tO\n\xe9\tO\n",
        "a.iob2, line 2: byte 1 (0xe9) is not UTF-8. Save the file as UTF-8.",
    ),
]


@pytest.mark.parametrize("task, name, content, expected", BAD_ROWS)
def test_bad_rows_are_named(tmp_path, task, name, content, expected):
    path = write(tmp_path / name, content)
    assert data_error(ner.load_task, task, train_file=path) == f"{tmp_path.name}/{expected}"


def test_own_labels_that_training_rows_lack_are_refused(tmp_path):
    train = jsonl(tmp_path / "a.jsonl", ("a b", ["B-z", "O"]))
    dev = write(tmp_path / "b.iob2", "a\tO\nb\tI-z\n")
    assert data_error(ner.load_task, "ner", train_file=train, validation_file=dev) == (
        f"{tmp_path.name}/b.iob2, line 2: the tag is 'I-z', and the training rows have O, B-z. Correct the tag, or "
        "leave the row out."
    )
    assert data_error(ner.load_task, "ner", validation_file=dev) == (
        f"{tmp_path.name}/b.iob2: ner takes its labels from the training rows, got none. Give --train_file."
    )
    assert data_error(ner.load_task, "ner") == (
        "The task ner is your own data. Give it with --train_file and --validation_file."
    )


@pytest.mark.parametrize(
    "content, expected",
    [
        ('["O"]', "must hold {\"labels\": [...]}, different IOB2 tags with O among them, got ['O']. Correct it, or"),
        ('{"labels": ["B-a", "I-a"]}', "with O among them, got ['B-a', 'I-a']. Correct it, or remove it and write"),
        ('{"labels": ["O", "O"]}', "got ['O', 'O']"),
        ('{"labels": ["O", 1]}', "got ['O', 1]"),
        ('{"labels": ["O", "a"]}', "got ['O', 'a']"),
        ("{", "is no JSON: Expecting property name enclosed in double quotes"),
        ("", "is empty"),
    ],
)
def test_bad_labels_file_is_named(tmp_path, content, expected):
    write(tmp_path / "labels.json", content)
    text = data_error(ner.load_task, "ner", train_file=jsonl(tmp_path / "a.jsonl", ("a", [1])))
    assert text.startswith(f"{tmp_path.name}/labels.json ") and expected in text


def test_training_rows_need_an_entity():
    dataset = rows(("a b", "O O"), ("c", "O"))
    ner.check_split(dataset, "validation")
    assert data_error(ner.check_split, dataset, "train", "data/a.jsonl") == (
        "data/a.jsonl: every tag of the 2 rows is O, and there is no entity to learn. Add rows with entities, or "
        "check the tags column."
    )
