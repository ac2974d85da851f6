"""Does run_glue.py train, score and predict every kind of GLUE task, and name bad input?"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import DistilBertConfig, DistilBertForSequenceClassification

import run_glue
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.tasks.glue import GLUE_TASKS
from tests.helpers.commands import ROOT, command
from tests.helpers.rows import WORDS, write_rows


def test_regression_reports_both_correlations(place, tmp_path):
    rows = [{"sentence1": "the film", "sentence2": "the plot", "label": i / 4, "idx": i} for i in range(20)]
    files = {f"{name}_file": write_rows(tmp_path / f"{name}.jsonl", rows) for name in ("train", "validation")}
    unlabelled = [{name: row[name] for name in ("sentence1", "sentence2")} for row in rows[:3]]
    files["test_file"] = write_rows(tmp_path / "test.jsonl", unlabelled)
    phases = ["--do_train", "--do_eval", "--do_predict"]
    results = run_glue.main([*command(place, tmp_path / "o", task_name="stsb", max_steps=2, **files), *phases])
    assert {"eval_pearsonr", "eval_spearmanr"} <= results.keys() and results["head_params"] == 16 * 17 + 17
    lines = (tmp_path / "o" / "predict_results_stsb.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 4
    assert all(re.fullmatch(rf"{i}\t-?\d+\.\d{{3}}", line) for i, line in enumerate(lines[1:]))


def test_both_halves_of_mnli_are_scored_and_predicted(place, tmp_path, monkeypatch):
    def rows(count, label=None):
        made = [{"premise": "the film", "hypothesis": f"was {WORDS[i % 6]}", "label": i % 3} for i in range(count)]
        return Dataset.from_list([{**row, "label": row["label"] if label is None else label} for row in made])

    splits = {"train": rows(24), "validation": rows(9), "validation_mm": rows(10, label=0)}
    splits |= {"test": rows(5, label=-1), "test_mm": rows(7, label=-1)}  # as the Hub has them
    monkeypatch.setattr("autolora_trainer.tasks.glue.load_from_hub", lambda *args, **kwargs: DatasetDict(splits))
    files = {"train_file": None, "validation_file": None, "task_name": "mnli", "max_predict_samples": 6}
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_drop_last": True}
    argv = command(place, tmp_path / "o", method="lora", max_steps=2, eval_strategy="epoch", **workers, **files)
    results = run_glue.main([*argv, "--do_train", "--do_predict"])
    assert (results["eval_samples"], results["eval_samples_mm"]) == (9, 10)
    alone = run_glue.main([*command(place, tmp_path / "o", method="lora", **files), "--do_eval"])
    for name in ("eval_loss", "eval_loss_mm", "eval_accuracy_mm"):
        assert results[name] == pytest.approx(alone[name], abs=1e-6)
    assert results["eval_loss"] != results["eval_loss_mm"]
    for name, count in (("mnli", 5), ("mnli-mm", 6)):
        lines = (tmp_path / "o" / f"predict_results_{name}.txt").read_text().splitlines()
        assert len(lines) == 1 + count and lines[1].split("\t")[1] in ("entailment", "neutral", "contradiction")
    run_glue.main([*argv, "--overwrite", "--do_train"])
    assert not list((tmp_path / "o").glob("predict_results_*"))
    card = ModelCard.load(tmp_path / "o" / "README.md")
    assert [result.dataset_split for result in card.data.eval_results] == [
        "validation_matched",
        "validation_mismatched",
    ]


def test_scores_do_not_depend_on_how_batches_are_kept(place, tmp_path):
    argv = command(place, tmp_path / "o", method="lora", test_file=place / "test.jsonl", per_device_eval_batch_size=3)
    first = run_glue.main(argv)
    lines = (tmp_path / "o" / "predict_results_sst2.txt").read_text()
    again = run_glue.main([*argv, "--do_eval", "--do_predict", "--eval_do_concat_batches", "false"])
    assert again["eval_accuracy"] == first["eval_accuracy"] and again["eval_loss"] == first["eval_loss"]
    assert (tmp_path / "o" / "predict_results_sst2.txt").read_text() == lines


def test_a_mean_of_metrics_can_choose_the_best_checkpoint(place):
    kind = run_glue.Glue()
    for name, several in (("mrpc", True), ("sst2", False)):
        kind.task = GLUE_TASKS[name]
        assert ("combined_score" in kind.metric_names()) == several


@pytest.mark.parametrize("targets, sizes", [(["q_lin", "v_lin"], 4), (["all-linear"], 12)])
def test_distilbert_and_an_evaluation_that_asks_no_targets(place, tmp_path, targets, sizes):
    """PEFT has no default targets for it, and would adapt its second head with all the other linear layers."""
    config = DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40)
    shutil.copytree(place / "tiny-roberta", tmp_path / "m")
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    argv = command(place, tmp_path / "o", method="lora", model_name_or_path=tmp_path / "m", max_steps=1)
    results = run_glue.main([*argv, "--lora_target_modules", *targets])
    adapted = PeftModel.from_pretrained(DistilBertForSequenceClassification(config), tmp_path / "o")
    assert len(lora_layers(adapted)) == sizes
    assert run_glue.main([*argv, "--do_eval"])["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)


def test_a_base_model_of_a_regression_becomes_a_classifier(place, tmp_path):
    shutil.copytree(place / "tiny-roberta", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    results = run_glue.main(command(place, tmp_path / "o", method="lora", model_name_or_path=tmp_path / "m"))
    assert 0.3 < results["eval_loss"] < 1.5


@pytest.fixture
def drawn(place, tmp_path, monkeypatch):
    """The labels of the training rows that a run takes from a sorted file of 20 rows of each, as its arguments say."""
    rows = [{"sentence": "a good film", "label": int(i >= 20)} for i in range(40)]
    path = write_rows(tmp_path / "sorted.jsonl", rows)

    def tokenize(self, run, dataset, split):
        raise UsageError(" ".join(map(str, dataset["label"])))

    monkeypatch.setattr(run_glue.Glue, "tokenize", tokenize)

    def labels(**changes):
        with pytest.raises((UsageError, ValueError)) as caught:
            run_glue.main(command(place, tmp_path / "o", train_file=path, **changes))
        return str(caught.value)

    return labels


def test_sample_seed_draws_rows_of_a_sorted_file(drawn):
    assert "every row (8) has the label 0" in drawn(max_train_samples=8)
    first, again, other = (drawn(max_train_samples=8, sample_seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert all(len(labels.split()) == 8 and set(labels.split()) == {"0", "1"} for labels in (first, other))
    assert sorted(drawn(max_train_samples=100, sample_seed=0).split()) == ["0"] * 20 + ["1"] * 20


def test_without_the_hub_one_line_says_what_to_type(tmp_path):
    """The command of README's first screen on a machine without the Hub, in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "run_glue.py"), "--method", "autolora", "--task_name", "mrpc"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Could not reach the Hugging Face Hub" in done.stderr and "--train_file" in done.stderr
    assert not os.path.exists(tmp_path / "outputs")


# ---- bad input

BAD_INPUT = [
    ({"task_name": "mrcp"}, "task_name must be one of .*, got 'mrcp'"),
    ({"task_name": None}, "--task_name is missing. Give one of cola"),
    ({"method": "loar"}, "method must be one of autolora, lora, full, adapter, adalora, eva, grid, .*, got 'loar'"),
    ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl"),
    ({"validation_file": None}, "--do_eval needs rows, got no validation rows. Add --validation_file."),
    ({"initial_rank": "eight"}, "initial[-_]rank: invalid int value: 'eight'; --help lists the arguments"),
    ({"initial_rank": 0}, "initial_rank must be at least 2, got 0"),
    ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
    ({"size": "lora:9"}, "asks for .* adapter parameters, and rank 4 in every module has"),
    (
        {"lora_target_modules": ["q_proj"]},
        "--lora_target_modules q_proj fits no module of Roberta.* Its linear layers are named like 'roberta.encoder",
    ),
    ({"model_name_or_path": "/nowhere"}, "Could not load '/nowhere': it is no folder here, and .* Give a folder with"),
    (
        {"model_name_or_path": "roberta-base"},
        "Could not load 'roberta-base': .* --model_name_or_path, or connect once",
    ),
    ({"ranks": "nowhere.json"}, "nowhere.json"),
    ({"scaling": "linear"}, "scaling must be constant or paper|scaling must be one of constant, paper"),
    ({"fp16": True}, "fp16"),
    ({"learning_rate": -1}, "learning_rate must be a positive number, got -1"),
    ({"num_train_epochs": 0}, "num_train_epochs must be a positive number"),
    ({"max_train_samples": 0}, "max_train_samples must be at least 1, got 0"),
    ({"sample_seed": 3}, "--sample_seed 3 draws no rows without --max_train_samples N. Add it."),
    ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere is no folder"),
    ({"config": "nowhere.yaml"}, "--config nowhere.yaml cannot be read"),
    ({"no_such_argument": 1}, "no_such_argument"),
    (
        {"push_to_hub": True},
        r"--push_to_hub needs the base model's Hub id, got a folder \(tiny-roberta\). Add --base_model_id",
    ),
]


@pytest.mark.parametrize("changes, message", BAD_INPUT, ids=[f"{n}={v}" for c, _ in BAD_INPUT for n, v in c.items()])
def test_bad_input_gets_one_line_and_status_2_and_leaves_output_dir_alone(place, tmp_path, capsys, changes, message):
    output = tmp_path / "o"
    status = run_guarded(lambda: run_glue.main(command(place, output, **changes)), "run_glue.py")
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("run_glue.py: error: ")
    assert re.search(message, lines[0]) and "Traceback" not in lines[0]
    assert not output.exists()
