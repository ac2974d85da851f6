"""What does a run leave, what does an evaluation add to it, and who may replace it?"""

import csv
import json
import os
import shutil

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import run_glue
from autolora_trainer import LearnedRanks
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.methods import autolora
from autolora_trainer.scripts import results as outcome
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.measures import accuracy


def test_every_file_of_the_contract_is_there(finished):
    output, _ = finished
    files = (
        """adapter_config.json adapter_model.safetensors ranks.json rank_heatmap.png rank_heatmap.svg all_results.json
        train_results.json eval_results.json predict_results_sst2.txt trainer_state.json cost.json README.md
        search/selection_history.csv search/selection_history.png search/trainer_state.json
        report.html""".split()
    )
    assert [name for name in files if not (output / name).is_file()] == []


def test_the_page_shows_scores_and_cost(finished):
    output, results = finished
    page = (output / "report.html").read_text()
    for text in (f"{results['eval_accuracy']:.4f}", f"{results['adapter_params']:,}", "retrain", "held-out loss"):
        assert text in page


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
    # 20 rows in batches of 4; three selection steps of three passes; contributions at three points of three batches;
    # the curve and a head trained alone for five steps, forward passes of which three count as one
    trained, measured = 5 + 3 * 3, 3 * 3
    assert trained + measured < cost["search"]["passes"] <= trained + measured + 10 + 2
    assert cost["retrain"]["passes"] == 20 and cost["retrain"]["examples"] == 80
    assert abs(cost["search"]["examples"] - 4 * cost["search"]["passes"]) <= 4
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


def test_token_reaches_no_file(place, tmp_path):
    run_glue.main(
        command(place, tmp_path / "o", max_steps=1, hub_token="hf_secret", token="hf_secret", save_strategy="epoch")
    )
    for folder, _, names in os.walk(tmp_path / "o"):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                assert b"hf_secret" not in file.read(), name


def test_a_model_card_has_the_scores_of_the_test_rows(place, tmp_path, monkeypatch):
    output, pushed = tmp_path / "o", []
    monkeypatch.setattr(run_glue.Glue, "predict", lambda *args: {"accuracy": 0.75})
    argv = command(place, output, method="lora", max_steps=1, test_file=place / "test.jsonl", base_model_id="a/b")
    run_glue.main([*argv, "--do_train", "--do_predict"])
    assert "0.75" in (output / "README.md").read_text()
    monkeypatch.setattr(outcome, "push_to_hub", lambda folder, name, **kwargs: pushed.append((folder, name)) or name)
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
    monkeypatch.setattr(
        outcome, "push_to_hub", lambda folder, name, **kwargs: pushed.append((name, kwargs["revision"]))
    )
    run_glue.main(command(place, tmp_path, method="lora", max_steps=1, base_model_id="a/b", push_to_hub=True, **typed))
    assert pushed == [(typed["hub_model_id"], typed.get("hub_revision"))]
    assert f"adapter = {loads_as}" in (tmp_path / "README.md").read_text()


# ---- what an evaluation adds to it


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
            patch.setattr(FinalTrainer, "evaluate", lambda *args: {"eval_loss": 1.0})
            (output / name).write_text(content)
            before = (output / "all_results.json").read_bytes()
            run_glue.main(command(place, output) + ["--do_eval"])
            assert (output / "all_results.json").read_bytes() == before


def test_an_evaluation_alone_does_not_ask_what_a_search_needs(place, finished, monkeypatch):
    monkeypatch.setattr(autolora, "search_arguments", lambda request: 1 / 0)
    argv = [*command(place, finished[0]), "--do_eval", "--use_cpu"]
    assert run_glue.main(argv)["eval_loss"] == pytest.approx(finished[1]["eval_loss"], abs=1e-6)


# ---- who may replace it


def test_ranks_file_in_its_own_output_dir_is_refused(place, finished):
    argv = [*command(place, finished[0], ranks=finished[0] / "ranks.json"), "--overwrite"]
    with pytest.raises(UsageError, match="lies where this run writes its own. Give another --output_dir"):
        run_glue.main(argv)
    assert (finished[0] / "ranks.json").exists()


def test_resume_false_does_not_replace_a_finished_run(place, finished):
    with pytest.raises(UsageError, match="holds a finished run"):
        run_glue.main(command(place, finished[0], resume_from_checkpoint=False))
