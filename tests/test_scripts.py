"""The scripts as users type them, on a tiny checkpoint and twenty rows."""

import csv
import gc
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    TrainingArguments,
)

import autolora_trainer.pipeline
import run_glue
from autolora_trainer import AutoLoraTrainer, LearnedRanks, hub
from autolora_trainer.checks import learned_settings
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.fused import lora_layers
from autolora_trainer.methods import autolora
from autolora_trainer.methods.adapter import load_bottleneck_adapter
from autolora_trainer.methods.uniform import uniform_ranks
from autolora_trainer.ranks import ModuleRank
from autolora_trainer.script_arguments import PRESETS, hide_secrets, parse_arguments
from autolora_trainer.trainer_utils import RetrainTrainer
from tests.tiny import WORDS, sst2_command, tiny_checkpoint, tiny_roberta, write_rows

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(place, output, **changes):
    settings = {
        "num_train_epochs": 2,
        "hypergradient": "finite_difference",
        "hypergradient_interval": 2,
        "search_epochs": None if "search_max_steps" in changes else 1,
    }
    return sst2_command(place, output, **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(place):
    """One whole run of `--method autolora`: (output_dir, results)."""
    output = place / "autolora"
    return output, run_glue.main(command(place, output, test_file=place / "test.jsonl"))


def evaluation_batch(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "tiny-roberta")
    rows = [json.loads(line) for line in (place / "validation.jsonl").read_text().splitlines()]
    batch = tokenizer([row["sentence"] for row in rows], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([row["label"] for row in rows])}


def accuracy(place, model):
    batch = evaluation_batch(place)
    with torch.no_grad():
        return (model.eval()(**batch).logits.argmax(-1) == batch["labels"]).double().mean().item()


def loss(place, model):
    with torch.no_grad():
        return model.eval()(**evaluation_batch(place)).loss.item()


# ---- what a run leaves


def test_every_file_of_the_contract_is_there(finished):
    output, _ = finished
    files = (
        """adapter_config.json adapter_model.safetensors ranks.json rank_heatmap.png rank_heatmap.svg all_results.json
        train_results.json eval_results.json predict_results_sst2.txt trainer_state.json cost.json README.md
        search/selection_history.csv search/selection_history.png search/trainer_state.json""".split()
    )
    assert [name for name in files if not (output / name).is_file()] == []


def test_plain_peft_loads_the_adapter_to_the_same_accuracy_and_ranks(place, finished):
    output, results = finished
    base = AutoModelForSequenceClassification.from_pretrained(place / "tiny-roberta")
    model = PeftModel.from_pretrained(base, output)
    assert accuracy(place, model) == results["eval_accuracy"]
    ranks = LearnedRanks.load(output / "ranks.json").ranks
    assert {name: layer.r["default"] for name, layer in lora_layers(model).items()} == ranks
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and len(config["rank_pattern"]) == len(config["alpha_pattern"]) == 4
    merged = model.merge_and_unload()
    assert accuracy(place, merged) == results["eval_accuracy"]


def test_results_carry_method_parameters_and_scores(finished):
    output, results = finished
    assert json.loads((output / "all_results.json").read_text()) == results
    tensors = load_file(output / "adapter_model.safetensors")
    assert results["adapter_params"] == sum(t.numel() for n, t in tensors.items() if "lora_" in n)
    assert results["head_params"] == sum(t.numel() for n, t in tensors.items() if "classifier" in n)
    assert results["method"] == "autolora" and results["resumed_from"] is None
    assert 0 <= results["eval_accuracy"] <= 1 and results["train_samples"] == 40
    assert len((output / "predict_results_sst2.txt").read_text().splitlines()) == 7


def test_cost_counts_passes_and_examples(finished):
    cost = json.loads((finished[0] / "cost.json").read_text())
    assert cost["search"]["passes"] == 5 + 3 * 3  # 20 rows in batches of 4; three selection steps of three passes
    assert cost["retrain"]["passes"] == 20 and cost["retrain"]["examples"] == 80
    assert cost["search"]["examples"] == 4 * cost["search"]["passes"]
    for key in ("passes", "examples"):
        assert cost["total"][key] == cost["search"][key] + cost["retrain"][key]
    assert cost["total"]["wall_seconds"] > 0 and cost["total"]["peak_memory_mb"] > 0 and "command" in cost


def test_model_card_has_ranks_scores_and_no_local_path(place, finished):
    card = ModelCard.load(finished[0] / "README.md")
    assert card.data.library_name == "peft" and {"peft", "lora", "autolora"} <= set(card.data.tags)
    assert card.data.eval_results[0].metric_type == "accuracy"
    assert str(place) not in str(card)
    assert card.data.get("datasets") is None and "trained on own rows in the form of GLUE SST2, with" in str(card)


def test_history_names_the_modules_of_ranks_json(finished):
    with open(finished[0] / "search" / "selection_history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ranks = LearnedRanks.load(finished[0] / "ranks.json")
    assert {row["module"] for row in rows} == set(ranks.modules)
    last = {row["module"]: float(row["alpha_1"]) for row in rows[-4:]}
    assert all(last[name] == pytest.approx(module.selection[0]) for name, module in ranks.modules.items())


def test_the_same_command_gives_the_same_bits(place, finished, tmp_path):
    results = run_glue.main(command(place, tmp_path / "again", test_file=place / "test.jsonl"))
    assert results["eval_loss"] == finished[1]["eval_loss"]
    for name in ("adapter_model.safetensors",):
        assert (tmp_path / "again" / name).read_bytes() == (finished[0] / name).read_bytes()


# ---- methods and settings


def test_ranks_file_skips_the_search_and_uniform_matches_its_size(place, finished, tmp_path):
    ranks = finished[0] / "ranks.json"
    again = run_glue.main(command(place, tmp_path / "ranks", ranks=ranks))
    assert not (tmp_path / "ranks" / "search").exists() and again["adapter_params"] == finished[1]["adapter_params"]
    scratch = run_glue.main(command(place, tmp_path / "scratch", retrain_init="scratch"))
    assert again["eval_loss"] == scratch["eval_loss"]  # the retrain does not depend on what the search drew
    uniform = run_glue.main(command(place, tmp_path / "uniform", method="uniform", ranks=ranks))
    assert uniform["adapter_params"] == finished[1]["adapter_params"]
    spread = LearnedRanks.load(tmp_path / "uniform" / "ranks.json").ranks.values()
    assert max(spread) - min(spread) <= 1
    assert "search" not in json.loads((tmp_path / "uniform" / "cost.json").read_text())


def test_random_ranks_match_the_size_and_differ_between_seeds(place, finished, tmp_path):
    ranks = finished[0] / "ranks.json"
    patterns = []
    for seed in (1, 2, 3):
        output = tmp_path / str(seed)
        results = run_glue.main(
            command(place, output, method="random", ranks=ranks, seed=seed, min_rank=0, max_steps=1)
        )
        assert results["adapter_params"] == finished[1]["adapter_params"]
        patterns.append(LearnedRanks.load(output / "ranks.json").ranks)
    assert any(pattern != patterns[0] for pattern in patterns)


@pytest.mark.parametrize("method", ["autolora", "uniform"])
def test_a_budget_beside_given_ranks_is_said_to_have_no_effect(place, finished, tmp_path, caplog, method):
    ranks = finished[0] / "ranks.json"
    results = run_glue.main(
        command(place, tmp_path / "o", method=method, ranks=ranks, rank_budget="lora:1", max_steps=1)
    )
    assert "--rank_budget lora:1 has no effect: the size is that of --ranks" in caplog.text
    assert results["adapter_params"] == finished[1]["adapter_params"]


def test_uniform_without_a_size_has_rank_4_and_takes_a_budget(place, tmp_path):
    plain = run_glue.main(command(place, tmp_path / "a", method="uniform", max_steps=1))
    assert plain["adapter_params"] == 4 * 4 * 32
    budget = run_glue.main(command(place, tmp_path / "b", method="uniform", max_steps=1, rank_budget=32 * 6))
    assert budget["adapter_params"] == 32 * 6


def test_uniform_ranks_spread_what_is_left():
    assert uniform_ranks(dict.fromkeys("abcd", 10), 160) == dict.fromkeys("abcd", 4)
    assert sum(uniform_ranks(dict.fromkeys("abcdefg", 10), 390).values()) == 39
    assert uniform_ranks({"a": 10, "b": 30}, 70) in ({"a": 4, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1})


def test_lora_is_pefts_own_scale_and_rank(place, tmp_path):
    results = run_glue.main(command(place, tmp_path / "lora", method="lora", lora_r=2, max_steps=1))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 16 and not config["rank_pattern"]
    assert results["adapter_params"] == 4 * 2 * 32 and not (tmp_path / "lora" / "ranks.json").exists()


def test_max_steps_cuts_only_the_final_training(place, tmp_path):
    run_glue.main(command(place, tmp_path / "o", max_steps=3))
    cost = json.loads((tmp_path / "o" / "cost.json").read_text())
    assert cost["search"]["passes"] == 14 and cost["retrain"]["passes"] == 3
    run_glue.main(command(place, tmp_path / "p", search_max_steps=3, retrain_epochs=1))
    cost = json.loads((tmp_path / "p" / "cost.json").read_text())
    assert cost["search"]["passes"] == 3 + 2 * 3 and cost["retrain"]["passes"] == 10


def test_search_has_80_steps_unless_told_otherwise(place):
    from autolora_trainer.pipeline import Run

    for changes, steps, epochs in (
        ({"search_epochs": None}, 80, 1),
        ({"search_epochs": 3}, -1, 3),
        ({"search_epochs": None, "search_max_steps": 7}, 7, 1),
    ):
        parsed = parse_arguments(command(place, place / "never", **changes))
        arguments = autolora.search_arguments(Run(*parsed, run_glue.GlueApplication()))
        assert (arguments.max_steps, arguments.num_train_epochs) == (steps, epochs)
    for typed, steps in (([], 300), (["--search_epochs", "2"], -1), (["--preset", "paper"], -1)):
        argv = ["--task_name", "sample", "--output_dir", str(place / "never"), "--use_cpu", *typed]
        parsed = parse_arguments(argv, {"sample": run_glue.SAMPLE_DEFAULTS})
        assert autolora.search_arguments(Run(*parsed, run_glue.GlueApplication())).max_steps == steps


@pytest.mark.parametrize("optim", ["adafactor", "sgd"])
def test_a_search_without_virtual_steps_takes_any_optimizer(place, tmp_path, optim):
    run_glue.main(command(place, tmp_path / "o", hypergradient="first_order", optim=optim, max_steps=1))
    selections = [module.selection for module in LearnedRanks.load(tmp_path / "o" / "ranks.json").modules.values()]
    assert any(len(set(selection)) > 1 for selection in selections)  # it has searched


def test_a_schedule_that_follows_evaluations_is_for_a_retrain(place, finished, tmp_path):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "search_epochs": None}
    results = run_glue.main(command(place, tmp_path / "o", ranks=finished[0] / "ranks.json", **settings))
    assert "eval_accuracy" in results


@pytest.mark.parametrize("trend, says", [(0.3, True), (2.5, False)])
def test_search_whose_held_out_loss_did_not_fall_says_so(place, tmp_path, caplog, monkeypatch, trend, says):
    monkeypatch.setattr(autolora.AutoLoraTrainer, "held_out_evidence", lambda self: (0.0, trend))
    run_glue.main(command(place, tmp_path / "o", max_steps=1))
    assert ("the held-out loss did not fall during the search (t = 0.3)" in caplog.text) == says


def test_budget_and_rank_zero_reach_the_adapter(place, tmp_path):
    results = run_glue.main(command(place, tmp_path / "o", rank_budget="lora:1", min_rank=0, max_steps=1))
    ranks = LearnedRanks.load(tmp_path / "o" / "ranks.json").ranks
    assert results["adapter_params"] == 4 * 32 and sum(ranks.values()) == 4
    assert len(json.loads((tmp_path / "o" / "adapter_config.json").read_text())["rank_pattern"]) == sum(
        rank > 0 for rank in ranks.values()
    )


@pytest.mark.parametrize(
    "setting", [{"retrain_init": "scratch"}, {"scaling": "paper"}, {"use_rslora": True}, {"lora_alpha": 3}]
)
def test_retrain_settings_have_an_effect(place, finished, tmp_path, setting):
    results = run_glue.main(command(place, tmp_path / "o", **setting))
    assert results["eval_loss"] != finished[1]["eval_loss"]


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


@pytest.mark.parametrize("changes", [{}, {"method": "svd", "rank_budget": "lora:2"}, {"retrain_cut": 0.5}])
def test_score_of_a_bf16_run_is_that_of_the_adapter_as_it_loads(place, tmp_path, changes):
    results = run_glue.main(command(place, tmp_path / "o", bf16=True, **changes))
    base = AutoModelForSequenceClassification.from_pretrained(place / "tiny-roberta")
    model = PeftModel.from_pretrained(base, tmp_path / "o")
    assert accuracy(place, model) == results["eval_accuracy"]
    assert loss(place, model) == pytest.approx(results["eval_loss"], rel=1e-5)  # bf16 would be off by 1e-3
    again = run_glue.main(command(place, tmp_path / "o", bf16=True, **changes) + ["--do_eval"])
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)


def test_evaluation_alone_uses_the_adapter_in_output_dir_and_adds_to_its_results(place, finished, tmp_path):
    output = shutil.copytree(finished[0], tmp_path / "o")
    results = run_glue.main(command(place, output) + ["--do_eval"])
    assert results["eval_accuracy"] == finished[1]["eval_accuracy"]
    assert json.loads((output / "all_results.json").read_text()) == {**finished[1], **results}
    few = run_glue.main(command(place, output, max_eval_samples=6) + ["--do_eval"])
    written = json.loads((output / "all_results.json").read_text())
    assert written == {**finished[1], **few} and written["eval_samples"] == 6 and not list(output.glob("*.tmp"))
    for name, content in (("run.json", "{}"), ("all_results.json", "[]"), ("all_results.json", "{")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RetrainTrainer, "evaluate", lambda *args: {"eval_loss": 1.0})
            (output / name).write_text(content)
            before = (output / "all_results.json").read_bytes()
            run_glue.main(command(place, output) + ["--do_eval"])
            assert (output / "all_results.json").read_bytes() == before


@pytest.mark.parametrize(
    "typed, warm",
    [
        ([], True),
        (["--retrain_init", "scratch"], False),
        (["--retrain_cut", "0.5"], False),
        (["--ranks", "ranks.json"], False),  # there is no search to begin from
        (["--preset", "paper"], False),
        (["--preset", "paper", "--retrain_init", "search"], True),
    ],
)
def test_retrain_begins_where_the_search_ended_if_there_is_one(typed, warm):
    assert parse_arguments(["--task_name", "mrpc", *typed])[2].warm_start is warm


def test_preset_paper_is_section_4_and_5_1(place):
    """Every setting that §4, §5.1 and §5.2 state, one by one; what is typed still wins."""
    _, _, method, training = parse_arguments(["--task_name", "mrpc", "--preset", "paper"])
    assert method.initial_rank == 8  # §5.1: k_l = 8
    assert method.constraint == "softmax"  # Eq. 3
    assert (method.rank_rule, method.threshold, method.min_rank) == (
        "threshold",
        None,
        1,
    )  # §4.4: λ = 1/k_l, at least one
    assert method.val_fraction == 0.5  # §5.2: ratio 1:1
    assert method.search_learning_rate == 1e-4 and method.selection_learning_rate == 1e-3  # §5.1
    assert (method.hypergradient, method.hypergradient_interval) == ("finite_difference", 1)  # §4.3: every iteration
    assert (method.virtual_step, method.inner_lr) == ("sgd", None)  # Eq. 4, η = the weights' rate
    assert method.retrain_init == "scratch" and method.ranks is None  # §4.5
    assert method.search_patience == 0 and method.rank_budget is None
    assert (
        training.optim == "adamw_torch"
        and training.learning_rate == 1e-4
        and training.per_device_train_batch_size == 16
    )
    assert (method.scaling, method.lora_alpha, method.lora_dropout) == ("paper", 16, 0.1)
    assert parse_arguments(["--preset", "paper", "--initial_rank", "4"])[2].initial_rank == 4
    assert parse_arguments(["--initial_rank", "4", "--preset=paper"])[2].initial_rank == 4


def test_preset_paper_runs_as_written(place, tmp_path):
    """k=8, the count of α >= 1/k, a selection step at every weight step, lora_alpha fixed."""
    run_glue.main(
        command(place, tmp_path / "o", preset="paper", initial_rank=None, hypergradient_interval=None, search_epochs=3)
    )
    ranks = LearnedRanks.load(tmp_path / "o" / "ranks.json")
    assert (ranks.initial_rank, ranks.rank_rule, ranks.threshold) == (8, "threshold", 0.125)
    for module in ranks.modules.values():
        assert module.rank == sum(alpha >= 0.125 for alpha in module.selection) >= 1
    config = json.loads((tmp_path / "o" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 16 and config["alpha_pattern"] == {}
    assert json.loads((tmp_path / "o" / "cost.json").read_text())["search"]["passes"] == 4 * 15


def test_typed_wins_over_yaml_and_yaml_over_preset(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "preset: paper\nselection_learning_rate: 0.5\nlora_alpha: 7\nlora_target_modules: [q, v]\nbf16: false\n"
    )
    _, _, method, _ = parse_arguments(["--config", str(config), "--lora_alpha", "9"])
    assert (method.lora_alpha, method.selection_learning_rate, method.initial_rank) == (9, 0.5, 8)
    assert method.scaling == PRESETS["paper"]["scaling"] and method.lora_target_modules == ["q", "v"]
    assert parse_arguments([str(config)])[2].lora_alpha == 7


def test_yaml_cannot_smuggle_an_argument_in(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("cache_dir: --trust_remote_code\n")
    assert parse_arguments(["--config", str(config)])[0].trust_remote_code is False
    config.write_text("lora_target_modules: [q, --trust_remote_code]\n")
    with pytest.raises(UsageError, match="the list lora_target_modules holds '--trust_remote_code', an argument"):
        parse_arguments(["--config", str(config)])


def test_evaluation_during_training_does_not_replace_training(place, tmp_path):
    settings = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "save_total_limit": 1,
    }
    results = run_glue.main(command(place, tmp_path / "o", num_train_epochs=3, **settings))
    assert results["train_samples"] == 40 and "eval_accuracy" in results
    kept = [name for name in os.listdir(tmp_path / "o") if name.startswith("checkpoint-")]
    assert 1 <= len(kept) <= 2  # the newest and the best


def test_the_best_checkpoint_is_that_of_the_loss_unless_told_otherwise(place, tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "best", "num_train_epochs": 3}
    results = run_glue.main(command(place, tmp_path / "o", **settings))
    assert "eval_accuracy" in results  # and no error once the search is over
    state = json.loads((tmp_path / "o" / "trainer_state.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    assert state["best_metric"] == min(losses.values())
    assert (tmp_path / "o" / f"checkpoint-{min(losses, key=losses.get)}").is_dir()


def test_scores_do_not_depend_on_how_batches_are_kept(place, tmp_path):
    argv = command(place, tmp_path / "o", method="lora", test_file=place / "test.jsonl", per_device_eval_batch_size=3)
    first = run_glue.main(argv)
    lines = (tmp_path / "o" / "predict_results_sst2.txt").read_text()
    again = run_glue.main([*argv, "--do_eval", "--do_predict", "--eval_do_concat_batches", "false"])
    assert again["eval_accuracy"] == first["eval_accuracy"] and again["eval_loss"] == first["eval_loss"]
    assert (tmp_path / "o" / "predict_results_sst2.txt").read_text() == lines


def test_token_reaches_no_file(place, tmp_path):
    run_glue.main(
        command(place, tmp_path / "o", max_steps=1, hub_token="hf_secret", token="hf_secret", save_strategy="epoch")
    )
    for folder, _, names in os.walk(tmp_path / "o"):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                assert b"hf_secret" not in file.read(), name


def test_the_search_s_model_is_gone_before_the_retrain_s_is_loaded(place, tmp_path, monkeypatch):
    """A GPU has seldom room for both."""
    models, alive = [], []
    base_model = autolora_trainer.pipeline.Run.base_model

    def recorded(run):
        gc.disable()  # as if no collection were due
        alive.append(len({id(reference()) for reference in models if reference() is not None}))
        model = base_model(run)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(autolora_trainer.pipeline.Run, "base_model", recorded)
    try:
        run_glue.main(command(place, tmp_path / "o", max_steps=1))
    finally:
        gc.enable()
    assert max(alive) == 1 and alive[-1] == 0  # looked at ahead and used by the search, then the retrain's


def test_an_evaluation_strategy_asks_for_the_final_scores_too(place, tmp_path):
    results = run_glue.main([*command(place, tmp_path / "o", eval_strategy="epoch", max_steps=2), "--do_train"])
    assert "eval_accuracy" in results and (tmp_path / "o" / "eval_results.json").exists()


def test_a_mean_of_metrics_can_choose_the_best_checkpoint(place):
    from autolora_trainer.tasks.glue import GLUE_TASKS

    application = run_glue.GlueApplication()
    for name, several in (("mrpc", True), ("sst2", False)):
        application.task = GLUE_TASKS[name]
        assert ("combined_score" in application.metric_names(None)) == several


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


def test_a_model_card_has_the_scores_of_the_test_rows(place, tmp_path, monkeypatch):
    output, pushed = tmp_path / "o", []
    monkeypatch.setattr(run_glue.GlueApplication, "predict", lambda *args: {"accuracy": 0.75})
    argv = command(place, output, method="lora", max_steps=1, test_file=place / "test.jsonl", base_model_id="a/b")
    run_glue.main([*argv, "--do_train", "--do_predict"])
    assert "0.75" in (output / "README.md").read_text()
    monkeypatch.setattr(hub, "push_to_hub", lambda folder, name, **kwargs: pushed.append((folder, name)) or name)
    run_glue.main([*argv, "--do_eval", "--push_to_hub", "--hub_model_id", "me/mine"])
    assert pushed == [(str(output), "me/mine")]


@pytest.mark.parametrize(
    "typed, loads_as",
    [
        ({"hub_model_id": "me/mine"}, '"me/mine"'),
        ({"hub_model_id": "mine"}, '"."  # this folder'),  # whose it is, the Hub knows
        ({"hub_model_id": "me/mine", "hub_revision": "dev"}, '"."  # this folder'),
    ],
)
def test_a_pushed_card_loads_what_was_pushed(place, tmp_path, monkeypatch, typed, loads_as):
    pushed = []
    monkeypatch.setattr(hub, "push_to_hub", lambda folder, name, **kwargs: pushed.append((name, kwargs["revision"])))
    run_glue.main(command(place, tmp_path, method="lora", max_steps=1, base_model_id="a/b", push_to_hub=True, **typed))
    assert pushed == [(typed["hub_model_id"], typed.get("hub_revision"))]
    assert f"adapter = {loads_as}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("script", ["run_glue", "run_ner", "run_nlg"])
def test_help_lists_every_argument(script, capsys):
    """argparse formats help texts with %: a percent sign in one of them ends in an error, and only here."""
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "--search_patience" in text and "--learning_rate" in text


def test_bf16_without_an_accelerator_runs_on_the_cpu(place, tmp_path, capsys):
    argv = command(place, tmp_path / "o", max_steps=1, use_cpu=None, bf16=True)
    run_glue.main(argv)
    assert "bf16 without an accelerator: running on the CPU" in capsys.readouterr().out


# ---- interruption


def interrupt(monkeypatch, trainer_class, after):
    """Die at the so-many-th training step, as a killed process does."""
    original, calls = trainer_class.training_step, [0]

    def dying(self, *args, **kwargs):
        if type(self) is trainer_class:
            calls[0] += 1
            if calls[0] > after:
                raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer_class, "training_step", dying)


@pytest.mark.parametrize(
    "phase, after, expected",
    [
        ("search", 3, {"phase": "search", "step": 2}),
        ("retrain", 0, {"phase": "retrain", "step": 0}),
        ("retrain", 15, {"phase": "retrain", "step": 14}),
    ],
)
@pytest.mark.parametrize("init", [{"retrain_init": "search"}, {"retrain_init": "scratch"}, {"retrain_cut": 0.5}])
def test_interrupted_run_goes_on_to_the_same_bits(
    place, tmp_path, whole_run, monkeypatch, phase, after, expected, init
):
    settings = {"save_strategy": "steps", "save_steps": 2, **init}
    resumes_to_the_same_bits(place, tmp_path, whole_run, monkeypatch, phase, [after], expected, settings)


@pytest.mark.parametrize("phase, steps", [("search", 5), ("retrain", 10)])  # of an epoch
@pytest.mark.parametrize("kills", [(3,), (0, 3)])  # steps into the second epoch
def test_resume_goes_on_with_the_rows_of_its_epoch_when_they_are_grouped_by_length(
    place, tmp_path, whole_run, monkeypatch, phase, steps, kills
):
    """An epoch's order depends on what the ones before it have drawn for dropout."""
    settings = {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "group_by_length"}
    settings |= {"search_epochs": 2, "search_patience": 0}
    expected = {"phase": phase, "step": steps + kills[-1]}
    afters = [steps + kills[0], *(late - early for early, late in zip(kills, kills[1:]))]
    resumes_to_the_same_bits(place, tmp_path, whole_run, monkeypatch, phase, afters, expected, settings)


@pytest.fixture(scope="module")
def whole_run(place, tmp_path_factory):
    """A function of settings: (output_dir, results) of the run of them that nobody stops, made once."""
    made = {}

    def run(settings):
        key = json.dumps(settings)
        if key not in made:
            output = tmp_path_factory.mktemp("whole") / "o"
            made[key] = output, run_glue.main(command(place, output, **settings))
        return made[key]

    return run


def resumes_to_the_same_bits(place, tmp_path, whole_run, monkeypatch, phase, afters, expected, settings):
    output, whole = whole_run(settings)
    for after in afters:
        with monkeypatch.context() as patch:
            interrupt(patch, AutoLoraTrainer if phase == "search" else RetrainTrainer, after)
            with pytest.raises(KeyboardInterrupt):
                run_glue.main([*command(place, tmp_path / "part", **settings), "--resume_from_checkpoint"])
    assert not (tmp_path / "part" / "all_results.json").exists()
    resumed = run_glue.main([*command(place, tmp_path / "part", **settings), "--resume_from_checkpoint"])
    assert resumed["resumed_from"] == expected
    for name in ("adapter_model.safetensors", "ranks.json"):
        assert (tmp_path / "part" / name).read_bytes() == (output / name).read_bytes()
    assert resumed["eval_loss"] == whole["eval_loss"]
    costs = [json.loads((folder / "cost.json").read_text()) for folder in (output, tmp_path / "part")]
    assert all(costs[0][p]["passes"] == costs[1][p]["passes"] for p in ("search", "retrain"))


@pytest.mark.parametrize("phase", ["search", "retrain"])
def test_resume_from_the_last_checkpoint_of_a_phase_trains_nothing_more(
    place, tmp_path, whole_run, monkeypatch, phase
):
    """Killed after the last checkpoint, with a length that is no whole number of epochs and a constant rate."""
    settings = {
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
        "search_max_steps": 6,
        "max_steps": 13,
    }
    output, whole = whole_run(settings)
    with monkeypatch.context() as patch:
        cls = AutoLoraTrainer if phase == "search" else RetrainTrainer
        patch.setattr(cls, "_finalize_training", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_glue.main(command(place, tmp_path / "part", **settings))
    resumed = run_glue.main([*command(place, tmp_path / "part", **settings), "--resume_from_checkpoint"])
    assert resumed["resumed_from"] == {"phase": phase, "step": 6 if phase == "search" else 13}
    assert resumed["eval_loss"] == whole["eval_loss"]
    for name in ("ranks.json", "adapter_model.safetensors"):
        assert (tmp_path / "part" / name).read_bytes() == (output / name).read_bytes()


def test_ctrl_c_is_one_line_that_says_how_to_go_on(place, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, AutoLoraTrainer, 1)
    assert run_guarded(lambda: run_glue.main(command(place, tmp_path / "o")), "run_glue.py") == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "run_glue.py: interrupted; type the same command with --resume_from_checkpoint to go on."


def test_debugging_shows_where_it_failed(monkeypatch, capsys):
    monkeypatch.setenv("AUTOLORA_DEBUG", "1")
    assert run_guarded(lambda: 1 / 0, "run_glue.py") == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[0].startswith("Traceback") and said[-1] == "run_glue.py: error: ZeroDivisionError: division by zero"


def test_nothing_to_resume_starts_over_and_says_so(place, tmp_path, capsys):
    run_glue.main([*command(place, tmp_path / "o", max_steps=1), "--resume_from_checkpoint"])
    assert f"no whole checkpoint in {tmp_path / 'o'}: starting from the beginning" in capsys.readouterr().out


def test_damaged_checkpoint_is_passed_over_and_named(place, tmp_path, monkeypatch, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1}
    with monkeypatch.context() as patch:
        interrupt(patch, AutoLoraTrainer, 3)
        with pytest.raises(KeyboardInterrupt):
            run_glue.main(command(place, tmp_path / "o", **settings))
    (tmp_path / "o" / "search" / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    results = run_glue.main(command(place, tmp_path / "o", resume_from_checkpoint=True, **settings))
    assert results["resumed_from"] == {"phase": "search", "step": 2}
    assert re.search("passed over: .*checkpoint-3 has a damaged optimizer.pt", caplog.text)


def test_finished_run_is_refused_and_overwrite_replaces_only_its_own_files(place, tmp_path):
    output = tmp_path / "o"
    run_glue.main(command(place, output, max_steps=1))
    (output / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="holds a finished run. Add --overwrite to replace it"):
        run_glue.main(command(place, output, max_steps=1))
    run_glue.main([*command(place, output, max_steps=1, method="lora"), "--overwrite"])
    assert not (output / "ranks.json").exists() and not (output / "search").exists()
    assert (output / "mine.txt").read_text() == "kept"


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
    ({"rank_budget": "lora:9"}, "asks for .* adapter parameters, and rank 4 in every module has"),
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


@pytest.fixture
def drawn(place, tmp_path, monkeypatch):
    """The labels of the training rows that a run takes from a sorted file of 20 rows of each, as its arguments say."""
    rows = [{"sentence": "a good film", "label": int(i >= 20)} for i in range(40)]
    path = write_rows(tmp_path / "sorted.jsonl", rows)

    def tokenize(self, run, dataset, split):
        raise UsageError(" ".join(map(str, dataset["label"])))

    monkeypatch.setattr(run_glue.GlueApplication, "tokenize", tokenize)

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


def test_ranks_of_another_model_are_refused_before_anything_is_written(place, tmp_path):
    LearnedRanks({"model.layers.0.q_proj": ModuleRank(2)}, base_model="org/llama").save(tmp_path / "ranks.json")
    with pytest.raises(UsageError, match="the model lacks 1 of them; the first is 'model.layers.0.q_proj'.*org/llama"):
        run_glue.main(command(place, tmp_path / "o", ranks=tmp_path / "ranks.json"))
    assert not (tmp_path / "o").exists()


def test_files_of_others_are_never_cleared(place, tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "README.md").write_text("mine")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(UsageError, match=r"holds files that no run of this package wrote \(README.md, search\)"):
            run_glue.main([*command(place, tmp_path), *extra])
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "spiece.model", "run.json"])
def test_files_that_a_run_writes_and_never_clears_are_not_written_over(place, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"holds files that no run of this package wrote \({name}\)"):
        run_glue.main([*command(place, tmp_path), "--overwrite", "--resume_from_checkpoint"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"command": "x", "version": "1"}', '{"settings": {}}'])
@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--resume_from_checkpoint"]], ids=str)
def test_a_run_json_of_another_program_makes_no_folder_ours(place, tmp_path, content, extra):
    (tmp_path / "search").mkdir()
    for name, text in (("run.json", content), ("search/notes.txt", "mine"), ("all_results.json", "{}")):
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="wrote .all_results.json, run.json, search., and the run would replace them"):
        run_glue.main([*command(place, tmp_path), *extra])
    assert (tmp_path / "search" / "notes.txt").read_text() == "mine" and (tmp_path / "run.json").read_text() == content


def test_names_that_begin_like_ours_are_not_cleared(place, tmp_path):
    run_glue.main(command(place, tmp_path, method="lora", max_steps=1, test_file=place / "test.jsonl"))
    (tmp_path / "predictions_plots").mkdir()
    mine = ["predictions_plots/a.png", "predictions_mine.csv", "predict_results_mine.txt", "checkpoint-best"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    run_glue.main([*command(place, tmp_path, method="lora", max_steps=1), "--overwrite"])
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert not (tmp_path / "predict_results_sst2.txt").exists()  # of the first run


def test_where_run_json_is_damaged_a_run_goes_on_and_clears_nothing(place, tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1, "method": "lora", "max_steps": 4}
    with monkeypatch.context() as patch:
        interrupt(patch, RetrainTrainer, 3)
        with pytest.raises(KeyboardInterrupt):
            run_glue.main(command(place, tmp_path, **settings))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="holds files that no run of this package wrote"):
        run_glue.main([*command(place, tmp_path, **settings), "--overwrite"])
    newest = tmp_path / "checkpoint-3" / "optimizer.pt"
    whole = newest.read_bytes()
    newest.write_bytes(b"")  # so it would be passed over, and removed
    argv = [*command(place, tmp_path, **settings), "--resume_from_checkpoint"]
    with pytest.raises(
        UsageError, match="a damaged run.json, and to go on .* remove checkpoint-3. Remove it yourself"
    ):
        run_glue.main(argv)
    newest.write_bytes(whole)
    assert run_glue.main(argv)["resumed_from"] == {"phase": "retrain", "step": 3}
    assert "settings" in json.loads((tmp_path / "run.json").read_text())


def test_ranks_file_in_its_own_output_dir_is_refused(place, finished):
    argv = [*command(place, finished[0], ranks=finished[0] / "ranks.json"), "--overwrite"]
    with pytest.raises(UsageError, match="lies where this run writes its own. Give another --output_dir"):
        run_glue.main(argv)
    assert (finished[0] / "ranks.json").exists()


def test_a_model_in_its_own_output_dir_is_refused(place, tmp_path):
    run_glue.main(command(place, tmp_path / "o", method="full", max_steps=1))
    argv = [*command(place, tmp_path / "o", method="lora", model_name_or_path=tmp_path / "o"), "--overwrite"]
    with pytest.raises(UsageError, match="--model_name_or_path .* lies where this run writes its own"):
        run_glue.main(argv)
    assert (tmp_path / "o" / "model.safetensors").exists()


def test_resume_false_does_not_replace_a_finished_run(place, finished):
    with pytest.raises(UsageError, match="holds a finished run"):
        run_glue.main(command(place, finished[0], resume_from_checkpoint=False))


def test_output_dir_on_a_file_is_refused(place, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    status = run_guarded(lambda: run_glue.main(command(place, tmp_path / "file" / "o")), "run_glue.py")
    assert status == 2 and "lies on a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rte: 1", "sets 'learning_rte', which is no argument. Did you mean learning_rate"),
        ("a: [", "is not YAML"),
        ("- a", "must hold 'name: value' lines, got list"),
        ("trust_remote_code: true", "Type --trust_remote_code yourself"),
    ],
)
def test_bad_config_file_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        parse_arguments(["--config", str(tmp_path / "c.yaml")])


def test_failure_while_running_has_status_1(capsys):
    def fails():
        raise RuntimeError("first line\nsecond line")

    assert run_guarded(fails, "run_glue.py") == 1
    assert capsys.readouterr().err == "run_glue.py: error: RuntimeError: first line second line\n"


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


def evaluator(folder, **arguments):
    """A `RetrainTrainer` for rows of ids, and its model."""
    settings = {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "report_to": [], **arguments}
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(tiny_checkpoint(folder / "tiny")))
    model = tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).eval()
    return RetrainTrainer(model=model, args=TrainingArguments(**settings), data_collator=collator)


def rows_of_ids(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [(9, 3, 12, 5, 12, 3, 7, 4)[index % 8] for index in range(count)]
    ids = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in lengths]
    return Dataset.from_list([{"input_ids": row, "labels": index % 2} for index, row in enumerate(ids)])


@pytest.mark.parametrize(
    "arguments", [{"train_sampling_strategy": "group_by_length"}, {"dataloader_drop_last": True}], ids=str
)
def test_predictions_are_those_of_all_rows_in_their_order_whatever_training_takes(tmp_path, arguments):
    rows, trainer = rows_of_ids(35), evaluator(tmp_path, **arguments)  # in batches of 8
    predictions = torch.from_numpy(trainer.predict(rows).predictions)
    with torch.no_grad():
        expected = torch.cat([trainer.model(torch.tensor([row["input_ids"]])).logits for row in rows])
    torch.testing.assert_close(predictions, expected, rtol=1e-4, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor(rows["labels"][:])).item()
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert all(getattr(trainer.args, name) == value for name, value in arguments.items())  # training is as asked for


def test_persistent_workers_serve_the_rows_that_are_asked_for(tmp_path):
    trainer = evaluator(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    first, second = rows_of_ids(8), rows_of_ids(8, seed=1)
    loader = trainer.get_eval_dataloader(first)
    assert trainer.get_eval_dataloader(first) is loader  # as Trainer keeps it between the evaluations of a training
    for rows in (second, first):
        asked = [row["input_ids"] for row in rows]
        assert [row["input_ids"] for row in trainer.get_eval_dataloader(rows).dataset] == asked


@pytest.fixture(scope="module")
def without_pooler(place):
    """A BERT as it comes from masked language modelling: `bert.pooler` is not in its checkpoint."""
    folder = place / "tiny-bert"
    AutoTokenizer.from_pretrained(place / "tiny-roberta").save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=64, pad_token_id=1, **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["autolora", "uniform", "adalora", "svd", "ia3", "prefix_tuning"])
def test_what_a_checkpoint_lacks_is_trained_and_saved_with_the_adapter(place, without_pooler, tmp_path, method):
    changes = {"rank_budget": "lora:2"} if method in ("uniform", "svd") else {}
    changes |= {"method": method, "model_name_or_path": without_pooler}
    results = run_glue.main(command(place, tmp_path / "o", **changes))
    assert results["head_params"] == 16 * 16 + 16 + 2 * 16 + 2  # pooler and classifier
    torch.manual_seed(123)  # whoever loads it draws other weights
    base = AutoModelForSequenceClassification.from_pretrained(without_pooler)
    model = PeftModel.from_pretrained(base, tmp_path / "o").eval()
    batch = evaluation_batch(place)
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    assert torch.nn.functional.cross_entropy(logits, batch["labels"]).item() == pytest.approx(
        results["eval_loss"], rel=1e-5
    )


def test_a_bottleneck_adapter_brings_what_its_checkpoint_lacks(place, without_pooler, tmp_path):
    argv = command(place, tmp_path / "o", method="adapter", model_name_or_path=without_pooler)
    results = run_glue.main(argv)
    torch.manual_seed(123)
    base = AutoModelForSequenceClassification.from_pretrained(without_pooler)
    assert loss(place, load_bottleneck_adapter(base, tmp_path / "o")) == pytest.approx(results["eval_loss"], rel=1e-5)


def test_an_evaluation_alone_does_not_ask_what_a_search_needs(place, finished, monkeypatch):
    monkeypatch.setattr("autolora_trainer.checks.search_arguments", lambda run: 1 / 0)
    argv = [*command(place, finished[0]), "--do_eval", "--use_cpu"]
    assert run_glue.main(argv)["eval_loss"] == pytest.approx(finished[1]["eval_loss"], abs=1e-6)


def test_a_base_model_of_a_regression_becomes_a_classifier(place, tmp_path):
    shutil.copytree(place / "tiny-roberta", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    results = run_glue.main(command(place, tmp_path / "o", method="lora", model_name_or_path=tmp_path / "m"))
    assert 0.3 < results["eval_loss"] < 1.5


def test_hyphens_and_capitals_mean_the_same(place):
    argv = ["--task-name", "SAMPLE", "--output-dir", "o", "--resume-from-checkpoint", "--use-cpu"]
    _, data, method, training = parse_arguments(argv, {"sample": run_glue.SAMPLE_DEFAULTS})
    assert (data.task_name, method.search_max_steps, training.resume_from_checkpoint) == ("SAMPLE", 300, "True")
    assert hide_secrets(["--hub-token", "hf_a", "--hub-token=hf_a"]) == ["--hub-token", "***", "--hub-token=***"]


def test_numbers_of_yaml_are_numbers(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-3\nlr_scheduler_kwargs: {min_lr: 1e-6, steps: 5}\n")
    *_, training = parse_arguments(["--config", str(tmp_path / "run.yaml"), "--output_dir", "o", "--use_cpu"])
    assert training.learning_rate == 1e-3 and training.lr_scheduler_kwargs == {"min_lr": 1e-6, "steps": 5}


OTHER_SETTINGS = [
    {"initial_rank": 6},
    {"method": "lora"},
    {"rank_rule": "strength"},
    {"seed": 1},
    {"sample_seed": 1, "max_train_samples": 20},
    {"max_train_samples": 20},
    {"learning_rate": 0.5},
    {"weight_decay": 0.5},
    {"lr_scheduler_type": "cosine"},
    {"warmup_steps": 0.5},
    {"label_smoothing_factor": 0.1},
    {"max_grad_norm": 0.5},
    {"optim": "adamw_torch"},
    {"adam_beta1": 0.5},
    {"adam_beta2": 0.5},
    {"adam_epsilon": 1e-05},
    {"bf16": True},
    {"non_finite": "stop"},
    {"data_seed": 1},
]


@pytest.fixture(scope="module")
def begun(place):
    """The output_dir of a run that was killed in its search."""
    output = place / "begun"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, AutoLoraTrainer, 3)
        run_glue.main(command(place, output, save_strategy="steps", save_steps=1))
    return output


@pytest.mark.parametrize("changes", OTHER_SETTINGS, ids=str)
def test_resume_with_other_settings_is_refused(place, begun, capsys, changes):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    argv = [
        *command(place, begun, **{"save_strategy": "steps", "save_steps": 1, **changes}),
        "--resume_from_checkpoint",
    ]
    assert run_guarded(lambda: run_glue.main(argv), "run_glue.py") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    name = next(name for name in changes if f"was begun with {name} " in line)
    assert f"this command has {changes[name]}. Type it as it was" in line
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}


@pytest.mark.parametrize("old", [False, True])
def test_resume_with_other_lengths_and_files_goes_on(place, begun, tmp_path, old):
    output = shutil.copytree(begun, tmp_path / "o")
    if old:  # a run.json of a version that noted less
        note = json.loads((output / "run.json").read_text())
        for name in ("weight_decay", "optim", "bf16", "dtype", "non_finite"):
            del note["settings"][name]
        (output / "run.json").write_text(json.dumps(note))
    changes = {"num_train_epochs": 3, "retrain_epochs": 1, "eval_strategy": "epoch", "save_strategy": "epoch"}
    changes |= {"max_steps": 2, "logging_steps": 1, **({"weight_decay": 0.5} if old else {})}
    results = run_glue.main([*command(place, output, **changes), "--resume_from_checkpoint"])
    assert results["resumed_from"] == {"phase": "search", "step": 3}
    assert "optim" in json.loads((output / "run.json").read_text())["settings"]


@pytest.mark.parametrize("method", ["autolora", "lora", "full", "uniform", "adalora", "grid"])
@pytest.mark.parametrize("changes", [{"num_train_epochs": 3}, {"max_steps": 7}], ids=str)
def test_a_length_is_a_setting_where_more_than_more_steps_hangs_on_it(place, tmp_path, method, changes):
    def settings(**changes):
        parsed = parse_arguments(command(place, tmp_path / "o", method=method, **changes))
        return learned_settings(autolora_trainer.pipeline.Run(*parsed, run_glue.GlueApplication()))

    assert (settings() != settings(**changes)) == (method in ("adalora", "grid"))
