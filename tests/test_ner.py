"""Named entities: is every word read, labelled and scored exactly once, and is bad data named in one line?"""

import json
import random
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    EvalPrediction,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

import run_ner
from autolora_trainer import LearnedRanks
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.script_arguments import parse_arguments
from autolora_trainer.tasks import ner
from tests.tiny import as_argv, data_error, tiny_checkpoint, write_rows

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


def byte_tokenizer(make=PreTrainedTokenizerFast, **arguments):
    """A byte-level BPE that knows `gene` after a blank, and otherwise only its letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("g", "e"), ("n", "e"), ("ge", "ne"), ("Ġ", "gene")]
    names = ["<pad>", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {name: index for index, name in enumerate(names)}
    if make is RobertaTokenizer:
        vocabulary.update({name: len(vocabulary) + i for i, name in enumerate(("<s>", "</s>", "<unk>", "<mask>"))})
        return RobertaTokenizer(vocab=vocabulary, merges=merges, **arguments)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return make(tokenizer_object=tokenizer, pad_token="<pad>", **arguments)


def rows(*sentences):
    """("a b", "O B-x") -> a row a sentence."""
    made = {"tokens": [words.split() for words, _ in sentences], "tags": [tags.split() for _, tags in sentences]}
    return Dataset.from_dict(made)


# ---- scores


def test_scores_by_hand():
    gold = ["B-DNA I-DNA O B-protein".split(), "B-protein I-protein I-protein O".split(), "O O B-RNA".split()]
    guess = ["B-DNA I-DNA O B-protein".split(), "B-protein I-protein O O".split(), "B-DNA O B-protein".split()]
    # gold: 1 DNA, 2 protein, 1 RNA; guessed: 2 DNA, 3 protein; right: the first DNA, the first protein
    assert ner.entity_scores(gold, guess) == pytest.approx(
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
    assert ner.entity_scores(["B-DNA I-DNA O".split()], [guess.split()])["recall"] == found


def test_scores_without_an_entity_are_zero_and_silent(recwarn):
    assert ner.entity_scores([["O", "O"]], [["O", "O"]]) == {
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
    scores = ner.entity_scores(gold, guess)
    for kind in ("", *{entity[-1] for entity in true | predicted}):
        t, p = ({e for e in found if kind in ("", e[-1])} for found in (true, predicted))
        suffix = f"_{kind}" if kind else ""
        assert scores["f1" + suffix] == pytest.approx(2 * len(t & p) / (len(t) + len(p)))
        assert scores["recall" + suffix] == pytest.approx(len(t & p) / len(t) if t else 0.0)


def test_without_seqeval_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval", None)
    assert data_error(ner.require_seqeval) == (
        "The scores of named entities need seqeval, which is not installed. Type: pip install 'autolora_trainer[ner]'"
    )


# ---- windows


@pytest.mark.parametrize(
    "pieces, room, expected",
    [
        ([1, 2, 1], 4, [(0, 3, [0, 1, 2])]),
        ([1] * 6, 4, [(0, 4, [0, 1, 2]), (2, 6, [3, 4, 5])]),
        ([1] * 14, 8, [(0, 8, [0, 1, 2, 3, 4, 5, 6]), (6, 14, [7, 8, 9, 10, 11, 12, 13])]),
        ([9, 1], 4, [(0, 1, [0]), (1, 2, [1])]),  # a word longer than the window has one of its own
        ([1, 0, 1], 4, [(0, 3, [0, 2])]),
        ([0, 0], 4, []),
        ([1, 1], 1, [(0, 1, [0]), (1, 2, [1])]),
    ],
)
def test_windows_of_a_sentence(pieces, room, expected):
    assert ner.plan_windows(pieces, room) == expected


def test_every_word_is_scored_once_where_it_has_most_context():
    generator = random.Random(0)
    for _ in range(500):
        room = generator.randint(1, 20)
        pieces = [generator.choice((0, 1, 1, 1, 2, 3, 30)) for _ in range(generator.randint(1, 40))]
        windows = ner.plan_windows(pieces, room)
        assert sorted(word for *_, scored in windows for word in scored) == [i for i, n in enumerate(pieces) if n]
        sizes = [min(count, room) for count in pieces]

        def context(word, start, end):
            before = sum(sizes[start:word]) if start else room
            return min(before, sum(sizes[word + 1 : end]) if end < len(pieces) else room)

        for start, end, scored in windows:
            assert sum(sizes[start:end]) <= room and all(start <= word < end for word in scored)
            for word in scored:
                others = [context(word, a, b) for a, b, _ in windows if a <= word < b]
                assert context(word, start, end) == max(others)


SENTENCES = rows(
    ("a b-c d", "O B-praise I-praise"),
    ("a b c d e f g h i j a-b c d e", "O B-blame I-blame O O B-praise O O B-blame I-blame I-blame O B-praise O"),
    ("e", "B-blame"),
    ("a \u200d b", "B-praise I-praise O"),  # the joiner has no token
)


def gold_logits(windows, width):
    """Logits that are right wherever there is a label, padded to one width, as `Trainer` gathers them."""
    logits = np.full((len(windows.rows), width, len(LABELS)), -100.0, dtype=np.float32)
    for row, labels in enumerate(windows.rows["labels"]):
        logits[row, : len(labels)] = 0
        for position, label in enumerate(labels):
            if label != ner.IGNORED:
                logits[row, position, label] = 1
    return logits


@pytest.mark.parametrize("length", [3, 5, 6, 9, 20, 64])
def test_no_label_is_lost_and_none_counts_twice(length):
    windows = ner.tokenize(SENTENCES, word_tokenizer(), IDS, length)
    assert max(map(len, windows.rows["input_ids"])) <= length
    labels = [label for row in windows.rows["labels"] for label in row if label != ner.IGNORED]
    expected = [tag for words in SENTENCES for word, tag in zip(words["tokens"], words["tags"]) if word != "\u200d"]
    assert sorted(labels) == sorted(IDS[tag] for tag in expected)
    joined = windows.join(gold_logits(windows, length + 3), LABELS)
    assert joined[:3] == SENTENCES["tags"][:3] and joined[3] == ["B-praise", "O", "O"]
    assert windows.words == [3, 14, 1, 3]
    if length == 64:
        assert len(windows.rows) == 4


def test_label_stands_at_the_first_sub_token_of_a_word():
    windows = ner.tokenize(SENTENCES.select([0]), word_tokenizer(), IDS, 20)
    assert windows.rows[0]["labels"] == [-100, IDS["O"], IDS["B-praise"], -100, -100, IDS["I-praise"], -100]
    assert len(windows.rows[0]["input_ids"]) == 7


@pytest.mark.parametrize("length", [4, 7, 12])
def test_f1_of_windows_is_that_of_whole_sentences(length):
    """A labeller that looks at one token only cannot tell a window from a sentence, and so must score the same."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, len(LABELS), generator=generator).numpy()
    scores = []
    for size in (length, 64):
        windows = ner.tokenize(SENTENCES, word_tokenizer(), IDS, size)
        batches = [table[np.array(ids)][None] for ids in windows.rows["input_ids"]]  # (1, tokens, labels)
        scores.append(ner.compute_metrics(windows, LABELS)(EvalPrediction(predictions=batches, label_ids=None)))
    assert scores[0] == scores[1] and 0 < scores[0]["accuracy"] < 1


def test_word_longer_than_a_window_keeps_its_label():
    windows = ner.tokenize(rows(("a b-c-d-e f", "O B-praise O")), word_tokenizer(), IDS, 5)
    assert [len(ids) for ids in windows.rows["input_ids"]] == [3, 5, 3]
    assert windows.join(gold_logits(windows, 5), LABELS) == [["O", "B-praise", "O"]]


def test_rows_without_tags_have_places_and_no_labels():
    windows = ner.tokenize(SENTENCES.remove_columns("tags"), word_tokenizer(), IDS, 6)
    assert "labels" not in windows.rows.column_names and windows.tags is None
    labelled = ner.tokenize(SENTENCES, word_tokenizer(), IDS, 6)
    assert windows.places == labelled.places


def test_rows_without_any_token_are_refused():
    dataset = rows(("\u200d", "O"))
    assert data_error(ner.tokenize, dataset, word_tokenizer(), IDS, 20) == (
        "No word of these rows gives a token of this model. Check the text, or give another model."
    )


def test_window_length_is_held_within_the_model_and_above_the_special_tokens(caplog):
    tokenizer = word_tokenizer()
    assert ner.window_length(tokenizer, 128) == 128 and not caplog.records
    assert ner.window_length(tokenizer, 128, positions=40) == 38
    assert caplog.messages == ["max_seq_length 128 is more than the model takes; using 38."]
    tokenizer.model_max_length = 16
    assert ner.window_length(tokenizer, 128, positions=40) == 16
    assert data_error(ner.window_length, tokenizer, 2) == (
        "max_seq_length=2 leaves no room for words: the tokenizer adds 2 special tokens. Give --max_seq_length 3 or "
        "more."
    )
    assert ner.window_length(word_tokenizer(special=False), 1) == 1


# ---- byte-level tokenizers


def run_for(folder, **changes):
    argv = ["--model_name_or_path", str(folder), "--task_name", "jnlpba"]
    model, data, _, training = parse_arguments(argv, data_arguments=run_ner.NerDataArguments)
    return SimpleNamespace(model=model, data=data, training=training)


@pytest.mark.parametrize("kind", ["class", "generic", "sequence"])
def test_words_of_a_byte_level_vocabulary_start_with_a_blank(tmp_path, kind):
    """RoBERTa's class, ModernBERT's way without one, and Llama 3's, which splits by an expression first."""
    made = byte_tokenizer(RobertaTokenizer if kind == "class" else PreTrainedTokenizerFast)
    if kind == "sequence":
        split = pre_tokenizers.Split(Regex(r" ?\w+|[^\w ]+"), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert ner.lacks_prefix_space(plain)
    assert "Ġgene" not in plain(["the", "gene"], is_split_into_words=True).tokens()  # and it says nothing
    tokenizer = run_ner.NerApplication().load_tokenizer(run_for(tmp_path))
    windows = ner.tokenize(rows(("the gene-gene", "O B-praise")), tokenizer, IDS, 20)
    ids = windows.rows[0]["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids).count("Ġgene") == 1
    assert ids == plain(" the gene-gene")["input_ids"]
    assert [label for label in windows.rows[0]["labels"] if label >= 0] == [IDS["O"], IDS["B-praise"]]
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.add_prefix_space and ner.lacks_prefix_space(saved) == (kind == "sequence")


def test_other_tokenizers_are_left_alone():
    assert not ner.lacks_prefix_space(word_tokenizer())
    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert not ner.lacks_prefix_space(PreTrainedTokenizerFast(tokenizer_object=bare))


def test_padding_is_on_the_right_whatever_the_tokenizer_says(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    loaded = run_ner.NerApplication().load_tokenizer(run_for(tmp_path))
    assert (loaded.padding_side, loaded.truncation_side) == ("right", "right")


# ---- files


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


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


def jsonl(path, *rows, column="tags"):
    return write(path, "".join(json.dumps({"tokens": w.split(), column: t}) + "\n" for w, t in rows))


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


# ---- the script


def reviews(count=20, seed=0, longest=3):
    """Sentences of the tiny checkpoint's words: an adjective and the noun after it are praise or blame."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(generator.randint(1, longest)):
            kind = generator.choice(("praise", "blame"))
            words += ["the", generator.choice(("good", "great", "fine") if kind == "praise" else ("bad", "poor"))]
            tags += ["O", f"B-{kind}"]
            if generator.random() < 0.5:
                words.append(generator.choice(("film", "plot-story")))
                tags.append(f"I-{kind}")
            words.append(generator.choice(("was", "is", "and")))
            tags.append("O")
        made.append({"tokens": words, "tags": tags})
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint and rows."""
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder / "tiny-roberta")
    write_rows(folder / "train.jsonl", reviews(20))
    write_rows(folder / "validation.jsonl", reviews(20, seed=1, longest=6))
    write_rows(folder / "test.jsonl", reviews(6, seed=2, longest=6))
    return folder


def command(place, output, **changes):
    settings = {
        "model_name_or_path": place / "tiny-roberta",
        "train_file": place / "train.jsonl",
        "validation_file": place / "validation.jsonl",
        "output_dir": output,
        "max_seq_length": 16,
        "learning_rate": 3e-2,
        "num_train_epochs": 6,
        "per_device_train_batch_size": 4,
        "initial_rank": 4,
        "hypergradient": "finite_difference",
        "hypergradient_interval": 2,
        "search_epochs": 1,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return as_argv({**settings, **changes})


@pytest.fixture(scope="module")
def finished(place):
    """One whole run of `--method autolora`: (output_dir, results)."""
    output = place / "autolora"
    return output, run_ner.main(command(place, output, test_file=place / "test.jsonl"))


def tags_by(model, tokenizer, sentences, length, labels):
    """The tags that a model gives, a window at a time, without Trainer and its padding."""
    found = []
    for words in sentences:
        tags = ["O"] * len(words)
        encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False).word_ids()
        for start, end, scored in ner.plan_windows([encoded.count(word) for word in range(len(words))], length - 2):
            batch = tokenizer(words[start:end], is_split_into_words=True, return_tensors="pt")
            with torch.no_grad():
                best = model(**batch).logits[0].argmax(-1).tolist()
            for word in scored:
                tags[word] = labels[best[batch.word_ids(0).index(word - start)]]
        found.append(tags)
    return found


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("length", [6, 16])
def test_script_scores_what_the_adapter_does_in_windows(place, tmp_path, length):
    """`plain PEFT` loads the adapter, and its tags, window by window, have the scores and the file of the run."""
    output = tmp_path / "o"
    results = run_ner.main(
        command(place, output, method="lora", max_seq_length=length, test_file=place / "test.jsonl")
    )
    labels = json.loads((output / "labels.json").read_text())["labels"]
    assert labels == list(LABELS)
    base = AutoModelForTokenClassification.from_pretrained(place / "tiny-roberta", num_labels=5)
    model = PeftModel.from_pretrained(base, output).eval()
    tokenizer = AutoTokenizer.from_pretrained(output)
    for split, prefix in (("validation", "eval_"), ("test", "predict_")):
        rows = read(place / f"{split}.jsonl")
        found = tags_by(model, tokenizer, [row["tokens"] for row in rows], length, labels)
        expected = ner.entity_scores([row["tags"] for row in rows], found)
        assert {name: results[prefix + name] for name in expected} == expected
    lines = (output / "predict_results_ner.txt").read_text().splitlines()
    assert lines == [" ".join(tags) for tags in found]
    assert results["eval_samples"] > 20 and 0.2 < results["eval_f1"] < 1  # windows, and neither nothing nor all
    assert not (output / "ranks.json").exists()


def test_autolora_learns_ranks_and_writes_every_file(place, finished):
    output, results = finished
    names = """adapter_config.json adapter_model.safetensors ranks.json rank_heatmap.png all_results.json cost.json
        eval_results.json predict_results.json predict_results_ner.txt README.md labels.json""".split()
    assert [name for name in names if not (output / name).is_file()] == []
    base = AutoModelForTokenClassification.from_pretrained(place / "tiny-roberta", num_labels=5)
    model = PeftModel.from_pretrained(base, output)
    ranks = LearnedRanks.load(output / "ranks.json").ranks
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert {name.removeprefix("base_model.model."): layer.r["default"] for name, layer in layers.items()} == ranks
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["task_type"] == "TOKEN_CLS" and "classifier" in config["modules_to_save"]
    assert results["head_params"] == 16 * 5 + 5 and results["method"] == "autolora"
    names = ("precision", "recall", "f1", "accuracy", "f1_blame", "f1_praise", "recall_praise", "precision_blame")
    assert all(0 <= results[prefix + name] <= 1 for prefix in ("eval_", "predict_") for name in names)
    assert json.loads((output / "predict_results.json").read_text())["predict_f1"] == results["predict_f1"]


def test_model_card_shows_the_scores_and_no_local_path(place, finished):
    card = ModelCard.load(finished[0] / "README.md")
    assert card.data.pipeline_tag == "token-classification" and "autolora" in card.data.tags
    scores = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    for split, prefix in (("validation", "eval"), ("test", "predict")):
        assert scores[split, "f1"] == pytest.approx(finished[1][f"{prefix}_f1"], abs=1e-6)
        assert (split, "f1_praise") in scores
    assert str(place) not in str(card) and "AutoModelForTokenClassification" in str(card)


def test_do_eval_alone_gives_the_same_numbers(place, finished):
    """Without training rows: labels.json of the run tells the labels."""
    argv = command(place, finished[0], train_file=None, task_name="ner", test_file=place / "test.jsonl")
    before = {path: path.read_bytes() for path in finished[0].iterdir() if path.is_file()}
    again = run_ner.main([*argv, "--do_eval", "--do_predict"])
    scores = [name for name in finished[1] if name.startswith(("eval_", "predict_")) and not name.endswith("second")]
    scores = [name for name in scores if not name.endswith("runtime")]
    assert len(scores) >= 22 and all(again[name] == finished[1][name] for name in scores)
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert set(changed) <= {"eval_results.json", "all_results.json"}  # the time it took


def test_rows_to_predict_say_the_task_too(place, finished, tmp_path):
    output = shutil.copytree(finished[0], tmp_path / "o")
    argv = command(place, output, train_file=None, validation_file=None, test_file=place / "test.jsonl")
    assert run_ner.main([*argv, "--do_predict"])["predict_f1"] == finished[1]["predict_f1"]


def test_bionlp_is_jnlpba_and_files_may_be_iob2(place, tmp_path):
    kinds = {"praise": "protein", "blame": "cell_type"}
    for split in ("train", "validation"):
        lines = []
        for row in read(place / f"{split}.jsonl"):
            for word, tag in zip(row["tokens"], row["tags"]):
                lines.append(f"{word}\t{tag[:2] + kinds[tag[2:]] if tag != 'O' else tag}\n")
            lines.append("\n")
        (tmp_path / f"{split}.iob2").write_text("###MEDLINE:1\n\n" + "".join(lines))
    files = {f"{split}_file": tmp_path / f"{split}.iob2" for split in ("train", "validation")}
    output = tmp_path / "o"
    results = run_ner.main(command(place, output, task_name="bionlp", method="lora", **files))
    assert results["task"] == "jnlpba" and results["head_params"] == 16 * 11 + 11
    assert "eval_f1_protein" in results and "eval_f1_praise" not in results
    assert json.loads((output / "labels.json").read_text())["labels"] == list(ner.JNLPBA_LABELS)
    card = ModelCard.load(output / "README.md")
    assert card.data.eval_results[0].dataset_name == "own rows in the form of JNLPBA (BioNLP-2004)"


def test_untagged_test_rows_are_predicted_and_not_scored(place, tmp_path):
    tokens = [row["tokens"] for row in read(place / "test.jsonl")]
    write_rows(tmp_path / "bare.jsonl", [{"tokens": words} for words in tokens])
    argv = command(place, tmp_path / "o", method="lora", max_steps=1, test_file=tmp_path / "bare.jsonl")
    results = run_ner.main(argv)
    lines = (tmp_path / "o" / "predict_results_ner.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [len(words) for words in tokens]
    assert not any(name.startswith("predict_") for name in results)


def test_evaluation_during_training_and_a_cut_validation_set(place, tmp_path):
    settings = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "f1",
        "max_eval_samples": 7,
        "max_seq_length": 8,
        "pad_to_max_length": True,
        "eval_do_concat_batches": False,
        "per_device_eval_batch_size": 3,
    }
    results = run_ner.main(command(place, tmp_path / "o", method="lora", **settings))
    history = json.loads((tmp_path / "o" / "trainer_state.json").read_text())["log_history"]
    assert results["eval_f1"] == max(entry["eval_f1"] for entry in history if "eval_f1" in entry)


def test_labels_of_the_base_model_keep_their_order(place, tmp_path):
    names = [*reversed(LABELS)]
    model = AutoModelForTokenClassification.from_pretrained(place / "tiny-roberta", num_labels=5)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(place / "tiny-roberta").save_pretrained(tmp_path / "base")
    settings = {"model_name_or_path": tmp_path / "base", "method": "lora"}
    results = run_ner.main(command(place, tmp_path / "o", **settings))
    assert json.loads((tmp_path / "o" / "labels.json").read_text())["labels"] == names
    argv = command(place, tmp_path / "o", train_file=None, task_name="ner", **settings)
    assert run_ner.main([*argv, "--do_eval"])["eval_f1"] == results["eval_f1"] > 0.2


def test_batches_have_32_sentences_as_in_the_paper():
    for argv in ([], ["--preset", "paper"]):
        with pytest.raises(UsageError, match="--task_name is missing. Give one of jnlpba, ner."):
            run_ner.main(argv)
    batch = {"per_device_train_batch_size": 32}
    for argv in ([], ["--preset", "paper"], ["--preset", "paper", "--per_device_train_batch_size", "8"]):
        training = parse_arguments(argv, preset_changes=batch, **batch)[3]
        assert training.per_device_train_batch_size == (8 if "8" in argv else 32)


def test_defaults_of_the_script(place, monkeypatch):
    seen = {}
    monkeypatch.setattr(run_ner, "execute", lambda application, *groups: seen.update(groups=groups) or {})
    run_ner.main(["--preset", "paper", "--train_file", "a.iob2"])
    model, data, method, training = seen["groups"]
    assert (model.model_name_or_path, data.max_seq_length) == ("roberta-base", 128)
    assert training.per_device_train_batch_size == 32 and training.learning_rate == 1e-4
    assert (method.initial_rank, method.lora_alpha, method.lora_dropout) == (8, 16, 0.1)


BAD_INPUT = [
    ({"train_file": None, "validation_file": None}, "--task_name is missing. Give one of jnlpba, ner."),
    ({"train_file": None}, "validation.jsonl: ner takes its labels from the training rows, got none"),
    ({"task_name": "conll"}, "task_name must be one of jnlpba, ner, got 'conll'."),
    ({"task_name": "ner", "train_file": None}, "validation.jsonl: ner takes its labels from the training rows"),
    ({"task_name": "jnlpba", "train_file": None, "validation_file": None}, "Hub for the data set tner/bionlp2004"),
    ({"task_name": "jnlpba"}, "train.jsonl, row 1: the tag is 'B-"),
    ({"train_file": "nowhere.iob2"}, "There is no file nowhere.iob2."),
    ({"validation_file": None}, "--do_eval needs rows, got no validation rows. Add --validation_file."),
    ({"train_file": "OUTSIDE"}, "outside.jsonl: every tag of the 3 rows is O, and there is no entity to learn."),
    ({"train_file": "LENGTHS"}, "lengths.jsonl, row 1: 2 tokens, but 1 tags; every token needs one tag."),
    ({"max_seq_length": 3}, "max_seq_length must be at least 4, got 3."),
    (
        {"tokenizer_name": "SLOW"},
        "run_ner needs a fast tokenizer, .*, and ByT5Tokenizer is none. Give another model",
    ),
]


@pytest.mark.parametrize("changes, expected", BAD_INPUT)
def test_bad_input_gets_one_line_and_status_2_and_writes_nothing(place, tmp_path, capsys, changes, expected):
    if "SLOW" in changes.values():
        ByT5Tokenizer().save_pretrained(tmp_path / "slow")
        (tmp_path / "slow" / "config.json").write_text('{"model_type": "t5"}')
    write_rows(tmp_path / "outside.jsonl", [{"tokens": ["a"], "tags": ["O"]}] * 3)
    write_rows(tmp_path / "lengths.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}])
    made = {"SLOW": "slow", "OUTSIDE": "outside.jsonl", "LENGTHS": "lengths.jsonl"}
    changes = {name: tmp_path / made[value] if value in made else value for name, value in changes.items()}
    output = tmp_path / "o"
    status = run_guarded(lambda: run_ner.main(command(place, output, **changes)), "run_ner.py")
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("run_ner.py: error: "), lines
    assert re.search(expected, lines[0]) and not output.exists()
