"""The built-in sample through the script, cut short: does it say what it should, also where AutoLoRA does not win?"""

import re

import run_glue
from autolora_trainer.demo import verdict
from autolora_trainer.ranks import LearnedRanks

COST = {"search": {"wall_seconds": 10.0}, "retrain": {"wall_seconds": 40.0}}


def test_sample_needs_nothing_but_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = "--task_name sample --method autolora --use_cpu --max_train_samples 96 --max_eval_samples 64"
    results = run_glue.main(
        [*argv.split(), "--max_steps", "2", "--search_max_steps", "3", "--hypergradient_interval", "1"]
    )
    output = capsys.readouterr().out
    ranks = LearnedRanks.load(tmp_path / "outputs" / "sample-autolora" / "ranks.json")
    assert len(ranks.modules) == 12 and results["adapter_params"] == 320 * ranks.total_rank
    assert re.search(r"majority class +50\.0", output) or re.search(r"majority class +0\.5", output), output
    for text in ("query", "total rank", "uniform LoRA, same size", "AutoLoRA", "rank_heatmap.png in", "run took"):
        assert text in output
    uniform = LearnedRanks.load(tmp_path / "outputs" / "sample-autolora" / "uniform" / "ranks.json")
    assert uniform.total_rank == ranks.total_rank


def test_verdict_says_who_is_ahead():
    def said(autolora, uniform):
        return verdict({"eval_accuracy": autolora}, {"eval_accuracy": uniform}, COST)

    assert "AutoLoRA is 1.0 points above uniform LoRA" in said(0.81, 0.80)
    assert "AutoLoRA does not win here: 1.0 points below uniform LoRA" in said(0.80, 0.81)
    assert "score the same" in said(0.8, 0.8)
    assert "search took 25% of the time of one training" in said(0.8, 0.8)
