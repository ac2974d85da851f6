"""The built-in sample through the script, cut short: does it say what it should, also where AutoLoRA does not win?"""

import json
import re

import run_glue
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.scripts.arguments import MethodArguments
from autolora_trainer.scripts.demo import verdict

COST = {"search": {"wall_seconds": 10.0}, "retrain": {"wall_seconds": 40.0}}


def argv(*typed):
    settings = "--task_name sample --method autolora --use_cpu --max_train_samples 96 --max_eval_samples 64"
    return [*settings.split(), "--max_steps", "2", "--hypergradient_interval", "1", *typed]


def test_sample_needs_nothing_but_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results = run_glue.main(argv("--search_max_steps", "3"))
    output = capsys.readouterr().out
    ranks = LearnedRanks.load(tmp_path / "outputs" / "sample-autolora" / "ranks.json")
    assert len(ranks.modules) == 36 and ranks.curve is not None
    assert re.search(r"majority class +50\.0", output) or re.search(r"majority class +0\.5", output), output
    for text in (
        "query",
        "total rank",
        "uniform LoRA, same size",
        "uniform LoRA, rank 8",
        "AutoLoRA",
        "held-out loss",
        "rank_heatmap.png in",
        "run took",
    ):
        assert text in output
    places = tmp_path / "outputs" / "sample-autolora" / "uniform"
    sizes = [
        json.loads((places / name / "all_results.json").read_text())["adapter_params"]
        for name in ("same-size", "rank-8")
    ]
    assert abs(sizes[0] - results["adapter_params"]) < 640 and sizes[1] == 8 * 17_280


def test_uniform_lora_has_the_settings_of_the_retrain_without_what_is_autoloras_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    typed = "--search_max_steps 3 --retrain_cut 0.5 --retrain_epochs 1 --save_strategy steps --save_steps 1"
    run_glue.main(argv(*typed.split(), "--save_total_limit", "1"))
    assert "the retrain began with" not in capsys.readouterr().out
    for folder in ("", "search", "uniform/same-size", "uniform/rank-8"):
        assert len(list((tmp_path / "outputs" / "sample-autolora" / folder).glob("checkpoint-*"))) == 1


def test_without_a_score_nothing_is_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_glue.main(argv("--search_max_steps", "3", "--do_train"))
    assert "for comparison" not in capsys.readouterr().out
    assert not (tmp_path / "outputs" / "sample-autolora" / "uniform").exists()


def test_verdict_says_who_is_ahead():
    def said(autolora, same, eight=0.8, **settings):
        scores = [{"eval_accuracy": value, "adapter_params": n} for value, n in ((autolora, 2), (same, 2), (eight, 8))]
        return verdict(*scores, COST, MethodArguments(**settings))

    assert "AutoLoRA is 1.0 points above uniform LoRA of the same" in said(0.81, 0.80)
    assert "AutoLoRA does not win here: 1.0 points below uniform LoRA of the same" in said(0.80, 0.81)
    assert "score the same" in said(0.8, 0.8)
    assert "With 25% of the parameters of rank 8 it is 2.0 points below it." in said(0.78, 0.8)
    assert "it is 1.0 points above it." in said(0.81, 0.8)
    assert said(0.8, 0.8).endswith("25% of the time of one training, and the retrain began with what it had learned.")
    for cold in ({"retrain_init": "scratch"}, {"retrain_cut": 0.5}):
        assert said(0.8, 0.8, **cold).endswith("25% of the time of one training.")
