"""The built-in sample: are the rows the same everywhere, are the labels right, can nothing simple guess them?"""

import hashlib
import json
import os
import random
from collections import Counter

import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from autolora_trainer.sample import SAMPLE_LABELS, encoder_path
from autolora_trainer.sample.data import _Event, generate, generate_text, load_sample
from autolora_trainer.sample.decoder import lines, save_decoder
from autolora_trainer.sample.lexicon import CONFIRMS, DENIES, DID_NOT_HAPPEN, HAPPENED, VERBS
from autolora_trainer.tasks.glue import GLUE_TASKS


@pytest.fixture(scope="module")
def sample():
    return load_sample()


def test_rows_are_the_same_on_every_machine(sample):
    text = json.dumps([[row["sentence"], row["label"]] for split in sample.values() for row in split])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "78df907c21ef2841"


def test_splits_are_balanced_and_share_no_sentence(sample):
    assert {name: len(split) for name, split in sample.items()} == {"train": 4000, "validation": 1000, "test": 1000}
    sentences = [sentence for split in sample.values() for sentence in split["sentence"]]
    assert len(set(sentences)) == 6000
    assert all(2 * sum(split["label"]) == len(split) for split in sample.values())
    assert list(GLUE_TASKS["sample"].label_names) == SAMPLE_LABELS


def test_every_sign_occurs_with_both_labels(sample):
    counts = Counter(zip(sample["train"]["phenomenon"], sample["train"]["label"]))
    assert len(counts) == 8 and min(counts.values()) > 150


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2)])
def test_counting_words_does_not_solve_it(sample, ngrams):
    vectorizer = CountVectorizer(ngram_range=ngrams, min_df=2)
    model = LogisticRegression(max_iter=300, C=0.3)
    model.fit(vectorizer.fit_transform(sample["train"]["sentence"]), sample["train"]["label"])
    assert model.score(vectorizer.transform(sample["validation"]["sentence"]), sample["validation"]["label"]) < 0.75


def test_label_is_the_product_of_the_signs():
    """Read off the words of the main clause, against the label."""
    for seed in range(2000):
        event = _Event(random.Random(seed))
        text = event.statement()
        good, bad = ({form for verb in side for form in verb} for side in event.synonyms)
        signs = [any(f" {form}" in text for form in good) - any(f" {form}" in text for form in bad)]
        if signs[0] == 0:  # one verb is part of another's object or modal
            continue
        if event.modal:
            assert event.modal in HAPPENED + DID_NOT_HAPPEN
            signs.append(1 if event.modal in HAPPENED else -1)
        if event.report:
            signs.append(1 if event.report in CONFIRMS else -1)
            assert event.report in CONFIRMS + DENIES and event.report in text
        product = 1
        for sign in signs:
            product *= sign
        assert (product > 0) == event.favourable, text


def test_no_verb_is_both_good_and_bad():
    for good, bad, _ in VERBS:
        assert not {form for verb in good for form in verb} & {form for verb in bad for form in verb}


def test_text_for_pre_training_is_unlabelled_and_says_what_happened():
    lines = generate_text(200, seed=0)
    assert lines == generate_text(200, seed=0) != generate_text(200, seed=1)
    assert all(isinstance(line, str) and line.endswith(".") for line in lines)


def test_generate_gives_what_is_asked_and_no_row_twice():
    rows = generate(300, seed=5)
    assert rows == generate(300, seed=5) and len({row["sentence"] for row in rows}) == 300
    assert [row["idx"] for row in rows] == list(range(300))


# ---- the encoder


def test_encoder_is_small_and_its_making_is_on_record():
    size = sum(entry.stat().st_size for entry in os.scandir(encoder_path()))
    assert size <= 8_000_000
    with open(os.path.join(encoder_path(), "training.json"), encoding="utf-8") as file:
        record = json.load(file)
    assert record["held_out_loss"]["lines"] < record["held_out_loss"]["text"] < 8.3  # ln 4096: what chance gives
    assert "/" not in record["command"].replace("benchmarks/pretrain_sample.py", "")


def test_encoder_loads_in_float32_and_its_tokenizer_loses_nothing(sample):
    model, loading = AutoModel.from_pretrained(encoder_path(), output_loading_info=True, add_pooling_layer=False)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    for sentence in sample["test"]["sentence"][:50]:
        ids = tokenizer(sentence)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == sentence
        assert tokenizer.unk_token_id not in ids and len(ids) < 100


def test_the_decoder_reads_from_left_to_right_and_nothing_of_it_is_drawn(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_decoder(tmp_path / str(seed))
    first, second = ((tmp_path / str(seed) / "model.safetensors").read_bytes() for seed in (0, 1))
    assert first == second
    model, read = AutoModelForCausalLM.from_pretrained(tmp_path / "0").eval(), torch.tensor([[0, 300, 400, 500]])
    with torch.no_grad():
        seen, other = (model(ids).logits for ids in (read, torch.tensor([[0, 300, 400, 600]])))
    assert torch.allclose(seen[:, :3], other[:, :3]) and not torch.allclose(seen[:, 3], other[:, 3])


def test_no_line_of_the_demo_is_in_two_of_its_parts():
    parts, collate = lines([30, 20, 10])
    assert [len(part) for part in parts] == [30, 20, 10]
    assert len({tuple(row) for part in parts for row in part["input_ids"]}) == 60
    batch = collate([parts[2][0], parts[2][1]])
    assert (batch["labels"] == batch["input_ids"])[batch["attention_mask"] == 1].all()
