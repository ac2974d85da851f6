"""Does run_ner.py score what its adapter does, word by word, and name bad data in one line?"""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForTokenClassification, AutoTokenizer, ByT5Tokenizer

import run_ner
from autolora_trainer import LearnedRanks
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.tasks import ner, ner_windows
from tests.helpers.commands import as_argv
from tests.helpers.entities import LABELS
from tests.helpers.models import tiny_checkpoint
from tests.helpers.rows import reviews, write_rows


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
        for start, end, scored in ner_windows.plan_windows(
            [encoded.count(word) for word in range(len(words))], length - 2
        ):
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
        expected = ner_windows.entity_scores([row["tags"] for row in rows], found)
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
    ranks = {name: rank for name, rank in LearnedRanks.load(output / "ranks.json").ranks.items() if rank}
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
    assert set(changed) <= {"eval_results.json", "all_results.json", "written.json"}  # the time it took


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
