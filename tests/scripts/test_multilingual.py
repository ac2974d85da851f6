"""Chinese, Arabic, Hindi, German: scripts without blanks, from the right, and with marks, through the scripts."""

import json
import math
import random

import pytest
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaTokenizer,
    set_seed,
)

import run_glue
import run_ner
from autolora_trainer import LearnedRanks
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.tasks import ner_windows
from tests.helpers.commands import as_argv
from tests.helpers.rows import write_rows

# A sentence with a gap, and what makes it bad or good there.
OPINIONS = {
    "zh": ("这部电影的故事{}", ("糟糕", "无聊"), ("精彩", "感人")),
    "ar": ("كانت قصة هذا الفيلم {}", ("سيئة", "مملة"), ("رائعة", "مؤثرة")),
    "hi": ("इस फ़िल्म की कहानी {} है", ("ख़राब", "उबाऊ"), ("बढ़िया", "शानदार")),
    "de": ("Die Geschichte des Films war {}", ("schlecht", "öde"), ("großartig", "schön")),
}
# Words of a sentence and their tags; a name may be several words, or stand in the middle of Chinese without blanks.
NAMES = {
    "zh": (["王小明", "在", "上海", "的", "银行", "工作", "。"], "B-PER O B-LOC O O O O"),
    "ar": (["يعيش", "أحمد", "حسن", "في", "القاهرة", "."], "O B-PER I-PER O B-LOC O"),
    "hi": (["राम", "कुमार", "दिल्ली", "में", "रहते", "हैं", "।"], "B-PER I-PER B-LOC O O O O"),
    "de": (["Jürgen", "Groß", "wohnt", "in", "Köln", "."], "B-PER I-PER O O B-LOC O"),
}
POSITIONS = 48
SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=POSITIONS,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    pad_token_id=1,
    initializer_range=0.1,
)


def opinions(count=48, seed=0):
    generator = random.Random(seed)
    made = []
    for index in range(count):
        frame, *words = OPINIONS[list(OPINIONS)[index % 4]]
        label = index // 4 % 2
        made.append({"sentence": frame.format(generator.choice(words[label])), "label": label, "idx": index})
    return made


def entities():
    return [{"tokens": words, "tags": tags.split()} for words, tags in NAMES.values()]


def paragraphs(count=40, seed=0):
    """One to four sentences a row, of any of the languages."""
    generator = random.Random(seed)
    return [joined(generator.choices(entities(), k=generator.randint(1, 4))) for _ in range(count)]


def joined(rows):
    return {column: [item for row in rows for item in row[column]] for column in ("tokens", "tags")}


def corpus():
    return [row["sentence"] for row in opinions()] + [" ".join(row["tokens"]) for row in entities()]


def in_order(vocabulary, special):
    """The learned pieces, special tokens first: their numbers and scores differ from one process to the next."""
    return [*special, *sorted(set(vocabulary) - set(special))]


def unigram():
    """As XLM-R has it: SentencePiece's Unigram, blanks written as ▁, and no word boundaries needed."""
    learner = Tokenizer(models.Unigram())
    learner.normalizer, learner.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    learner.train_from_iterator(
        corpus(), trainers.UnigramTrainer(vocab_size=200, special_tokens=names, unk_token="<unk>", show_progress=False)
    )
    pieces = in_order(learner.get_vocab(), names)
    text = "▁".join(["", *" ".join(corpus()).split()])
    scores = [math.log(max(1, text.count(piece)) / len(text)) for piece in pieces[len(names) :]]
    vocabulary = [*zip(pieces, [0.0] * len(names) + scores), ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocabulary, model_max_length=POSITIONS - 2)


def wordpiece():
    """As multilingual BERT has it: cased, accents kept, every Chinese character a word. Its pieces are characters and
    the beginnings of words: a trainer's would differ from one process to the next."""
    normalizer = normalizers.BertNormalizer(lowercase=False)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = {word for text in corpus() for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    pieces = {word[:3] for word in words} | {piece for word in words for c in word for piece in (c, f"##{c}")}
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: index for index, piece in enumerate(in_order(pieces, names))}
    return BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=POSITIONS)


KINDS = {
    "xlm-r": (
        unigram,
        XLMRobertaConfig,
        {"SEQ_CLS": XLMRobertaForSequenceClassification, "TOKEN_CLS": XLMRobertaForTokenClassification},
    ),
    "m-bert": (
        wordpiece,
        BertConfig,
        {"SEQ_CLS": BertForSequenceClassification, "TOKEN_CLS": BertForTokenClassification},
    ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def place(request, tmp_path_factory):
    """A folder with both checkpoints of a family and rows in four languages."""
    folder = tmp_path_factory.mktemp(request.param)
    make, config, classes = KINDS[request.param]
    tokenizer = make()
    for task, model in classes.items():
        set_seed(0)
        model(config(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder / task)
        tokenizer.save_pretrained(folder / task)
    write_rows(folder / "train.jsonl", opinions(80))
    write_rows(folder / "validation.jsonl", opinions(32, seed=1))
    write_rows(folder / "train_names.jsonl", paragraphs())
    write_rows(folder / "long_names.jsonl", long_rows())
    return folder


def long_rows():
    """A sentence of every language repeated until it needs several windows, and one of all four together."""
    return [*(joined([row] * 8) for row in entities()), joined(entities() * 2)]


def command(place, output, **changes):
    settings = {
        "output_dir": output,
        "lora_target_modules": "all-linear",
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 10,
        "lora_dropout": 0.0,
        "initial_rank": 4,
        "search_max_steps": 12,
        "size": "lora:2",  # of so few sentences, each several times, held-out ones say nothing of the size
        "save_strategy": "no",
        "use_cpu": True,
    }
    return as_argv({**settings, **changes})


# ---- tokens


def test_every_script_is_read_whole(place):
    """No unknown token in any of the four, and the text comes back."""
    tokenizer = AutoTokenizer.from_pretrained(place / "SEQ_CLS")
    assert type(tokenizer) in (XLMRobertaTokenizer, BertTokenizer)
    for text in corpus():
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        read = tokenizer.decode(ids, skip_special_tokens=True)
        assert read.replace(" ", "") == normalizers.NFKC().normalize_str(text).replace(" ", "")


def test_words_of_four_scripts_have_a_labelled_token_each(place):
    """Also where the tokenizer splits a word into characters, and where words follow each other without blanks."""
    tokenizer = AutoTokenizer.from_pretrained(place / "TOKEN_CLS")
    rows = Dataset.from_list(entities())
    labels = {name: index for index, name in enumerate(sorted({tag for row in rows for tag in row["tags"]}))}
    windows = ner_windows.tokenize(rows, tokenizer, labels, POSITIONS - 2)
    assert len(windows.rows) == len(rows)
    for row, window in zip(rows, windows.rows):
        labelled = [label for label in window["labels"] if label != ner_windows.IGNORED]
        assert labelled == [labels[tag] for tag in row["tags"]]


# ---- scripts


def test_sentences_of_four_languages_are_told_apart(place, tmp_path):
    files = {f"{split}_file": place / f"{split}.jsonl" for split in ("train", "validation")}
    own = {"task_name": "sst2", "model_name_or_path": place / "SEQ_CLS", **files}
    results = run_glue.main(command(place, tmp_path, **own))
    assert results["eval_accuracy"] >= 0.75  # the majority: 0.5
    ranks = LearnedRanks.load(tmp_path / "ranks.json")
    base = AutoModelForSequenceClassification.from_pretrained(place / "SEQ_CLS")
    loaded = PeftModel.from_pretrained(base, tmp_path)
    kept = {name: rank for name, rank in ranks.ranks.items() if rank}
    assert {name: layer.r["default"] for name, layer in lora_layers(loaded).items()} == kept


def test_entities_of_four_languages_in_windows(place, tmp_path):
    """Long sentences are read in windows of 24 tokens, and every word has one tag, in its own script."""
    files = {"train_file": place / "train_names.jsonl", "validation_file": place / "long_names.jsonl"}
    own = {"model_name_or_path": place / "TOKEN_CLS", "test_file": place / "long_names.jsonl", **files}
    results = run_ner.main(
        command(
            place,
            tmp_path,
            **own,
            max_seq_length=24,
            num_train_epochs=12,
            do_train=True,
            do_eval=True,
            do_predict=True,
        )
    )
    assert results["eval_f1"] > 0.5  # all outside: 0
    with open(tmp_path / "predict_results_ner.txt", encoding="utf-8") as file:
        predicted = [line.split() for line in file]
    assert [len(tags) for tags in predicted] == [len(row["tokens"]) for row in long_rows()]
    scores = ner_windows.entity_scores([row["tags"] for row in long_rows()], predicted)
    assert results["predict_f1"] == pytest.approx(scores["f1"])
    assert json.loads((tmp_path / "labels.json").read_text())["labels"][0] == "O"
    base = AutoModelForTokenClassification.from_pretrained(
        place / "TOKEN_CLS", num_labels=4, ignore_mismatched_sizes=True
    )
    assert lora_layers(PeftModel.from_pretrained(base, tmp_path))
