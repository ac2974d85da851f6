"""Is every word read, labelled and scored exactly once, where it has most context?"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, EvalPrediction, PreTrainedTokenizerFast, RobertaTokenizer

import run_ner
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.tasks import ner_windows
from tests.helpers.entities import IDS, LABELS, rows, word_tokenizer
from tests.helpers.measures import data_error

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
    assert ner_windows.plan_windows(pieces, room) == expected


def test_every_word_is_scored_once_where_it_has_most_context():
    generator = random.Random(0)
    for _ in range(500):
        room = generator.randint(1, 20)
        pieces = [generator.choice((0, 1, 1, 1, 2, 3, 30)) for _ in range(generator.randint(1, 40))]
        windows = ner_windows.plan_windows(pieces, room)
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
            if label != ner_windows.IGNORED:
                logits[row, position, label] = 1
    return logits


@pytest.mark.parametrize("length", [3, 5, 6, 9, 20, 64])
def test_no_label_is_lost_and_none_counts_twice(length):
    windows = ner_windows.tokenize(SENTENCES, word_tokenizer(), IDS, length)
    assert max(map(len, windows.rows["input_ids"])) <= length
    labels = [label for row in windows.rows["labels"] for label in row if label != ner_windows.IGNORED]
    expected = [tag for words in SENTENCES for word, tag in zip(words["tokens"], words["tags"]) if word != "\u200d"]
    assert sorted(labels) == sorted(IDS[tag] for tag in expected)
    joined = windows.join(gold_logits(windows, length + 3), LABELS)
    assert joined[:3] == SENTENCES["tags"][:3] and joined[3] == ["B-praise", "O", "O"]
    assert windows.words == [3, 14, 1, 3]
    if length == 64:
        assert len(windows.rows) == 4


def test_label_stands_at_the_first_sub_token_of_a_word():
    windows = ner_windows.tokenize(SENTENCES.select([0]), word_tokenizer(), IDS, 20)
    assert windows.rows[0]["labels"] == [-100, IDS["O"], IDS["B-praise"], -100, -100, IDS["I-praise"], -100]
    assert len(windows.rows[0]["input_ids"]) == 7


@pytest.mark.parametrize("length", [4, 7, 12])
def test_f1_of_windows_is_that_of_whole_sentences(length):
    """A labeller that looks at one token only cannot tell a window from a sentence, and so must score the same."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, len(LABELS), generator=generator).numpy()
    scores = []
    for size in (length, 64):
        windows = ner_windows.tokenize(SENTENCES, word_tokenizer(), IDS, size)
        batches = [table[np.array(ids)][None] for ids in windows.rows["input_ids"]]  # (1, tokens, labels)
        scores.append(
            ner_windows.compute_metrics(windows, LABELS)(EvalPrediction(predictions=batches, label_ids=None))
        )
    assert scores[0] == scores[1] and 0 < scores[0]["accuracy"] < 1


def test_word_longer_than_a_window_keeps_its_label():
    windows = ner_windows.tokenize(rows(("a b-c-d-e f", "O B-praise O")), word_tokenizer(), IDS, 5)
    assert [len(ids) for ids in windows.rows["input_ids"]] == [3, 5, 3]
    assert windows.join(gold_logits(windows, 5), LABELS) == [["O", "B-praise", "O"]]


def test_rows_without_tags_have_places_and_no_labels():
    windows = ner_windows.tokenize(SENTENCES.remove_columns("tags"), word_tokenizer(), IDS, 6)
    assert "labels" not in windows.rows.column_names and windows.tags is None
    labelled = ner_windows.tokenize(SENTENCES, word_tokenizer(), IDS, 6)
    assert windows.places == labelled.places


def test_rows_without_any_token_are_refused():
    dataset = rows(("\u200d", "O"))
    assert data_error(ner_windows.tokenize, dataset, word_tokenizer(), IDS, 20) == (
        "No word of these rows gives a token of this model. Check the text, or give another model."
    )


def test_window_length_is_held_within_the_model_and_above_the_special_tokens(caplog):
    tokenizer = word_tokenizer()
    assert ner_windows.window_length(tokenizer, 128) == 128 and not caplog.records
    assert ner_windows.window_length(tokenizer, 128, positions=40) == 38
    assert caplog.messages == ["max_seq_length 128 is more than the model takes; using 38."]
    tokenizer.model_max_length = 16
    assert ner_windows.window_length(tokenizer, 128, positions=40) == 16
    assert data_error(ner_windows.window_length, tokenizer, 2) == (
        "max_seq_length=2 leaves no room for words: the tokenizer adds 2 special tokens. Give --max_seq_length 3 or "
        "more."
    )
    assert ner_windows.window_length(word_tokenizer(special=False), 1) == 1


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
    assert ner_windows.lacks_prefix_space(plain)
    assert "Ġgene" not in plain(["the", "gene"], is_split_into_words=True).tokens()  # and it says nothing
    tokenizer = run_ner.Ner().load_tokenizer(run_for(tmp_path))
    windows = ner_windows.tokenize(rows(("the gene-gene", "O B-praise")), tokenizer, IDS, 20)
    ids = windows.rows[0]["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids).count("Ġgene") == 1
    assert ids == plain(" the gene-gene")["input_ids"]
    assert [label for label in windows.rows[0]["labels"] if label >= 0] == [IDS["O"], IDS["B-praise"]]
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.add_prefix_space and ner_windows.lacks_prefix_space(saved) == (kind == "sequence")


def test_other_tokenizers_are_left_alone():
    assert not ner_windows.lacks_prefix_space(word_tokenizer())
    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert not ner_windows.lacks_prefix_space(PreTrainedTokenizerFast(tokenizer_object=bare))


def test_padding_is_on_the_right_whatever_the_tokenizer_says(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    loaded = run_ner.Ner().load_tokenizer(run_for(tmp_path))
    assert (loaded.padding_side, loaded.truncation_side) == ("right", "right")
