"""Do the settings of a run do what they say, in the search and in the retrain?"""

import gc
import json
import os
import weakref

import pytest
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import run_glue
from autolora_trainer import LearnedRanks
from autolora_trainer.scripts.source import Source
from tests.helpers.commands import command
from tests.helpers.measures import accuracy, loss


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


def test_random_ranks_match_the_size_and_differ_between_seeds(place, tmp_path):
    patterns = []
    for seed in (1, 2, 3):
        output = tmp_path / str(seed)
        results = run_glue.main(
            command(place, output, method="random", size="lora:2", seed=seed, min_rank=0, max_steps=1)
        )
        assert results["adapter_params"] == 2 * 4 * 32
        patterns.append(LearnedRanks.load(output / "ranks.json").ranks)
    assert any(pattern != patterns[0] for pattern in patterns)


@pytest.mark.parametrize("method", ["autolora", "uniform"])
def test_a_budget_beside_given_ranks_is_said_to_have_no_effect(place, finished, tmp_path, caplog, method):
    ranks = finished[0] / "ranks.json"
    results = run_glue.main(command(place, tmp_path / "o", method=method, ranks=ranks, size="lora:1", max_steps=1))
    assert "--size lora:1 has no effect: the size is that of --ranks" in caplog.text
    assert results["adapter_params"] == finished[1]["adapter_params"]


def test_uniform_without_a_size_has_rank_4_and_takes_a_budget(place, tmp_path):
    plain = run_glue.main(command(place, tmp_path / "a", method="uniform", max_steps=1))
    assert plain["adapter_params"] == 4 * 4 * 32
    budget = run_glue.main(command(place, tmp_path / "b", method="uniform", max_steps=1, size=32 * 6))
    assert budget["adapter_params"] == 32 * 6


def test_lora_is_pefts_own_scale_and_rank(place, tmp_path):
    results = run_glue.main(command(place, tmp_path / "lora", method="lora", lora_r=2, max_steps=1))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 16 and not config["rank_pattern"]
    assert results["adapter_params"] == 4 * 2 * 32 and not (tmp_path / "lora" / "ranks.json").exists()


def test_max_steps_cuts_only_the_final_training(place, tmp_path):
    run_glue.main(command(place, tmp_path / "o", max_steps=3))
    cost = json.loads((tmp_path / "o" / "cost.json").read_text())
    assert cost["search"]["passes"] > 14 and cost["retrain"]["passes"] == 3
    run_glue.main(command(place, tmp_path / "p", search_max_steps=3, retrain_epochs=1))
    cost = json.loads((tmp_path / "p" / "cost.json").read_text())
    assert cost["search"]["passes"] > 3 + 2 * 3 and cost["retrain"]["passes"] == 10


@pytest.mark.parametrize("optim", ["adafactor", "sgd"])
def test_a_search_without_virtual_steps_takes_any_optimizer(place, tmp_path, optim):
    run_glue.main(command(place, tmp_path / "o", hypergradient="first_order", optim=optim, max_steps=1))
    selections = [module.selection for module in LearnedRanks.load(tmp_path / "o" / "ranks.json").modules.values()]
    assert any(len(set(selection)) > 1 for selection in selections)  # it has searched


def test_a_schedule_that_follows_evaluations_is_for_a_retrain(place, finished, tmp_path):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "search_epochs": None}
    results = run_glue.main(command(place, tmp_path / "o", ranks=finished[0] / "ranks.json", **settings))
    assert "eval_accuracy" in results


def test_search_that_has_learned_nothing_says_so_and_is_uniform(place, tmp_path, caplog):
    run_glue.main(command(place, tmp_path / "o", max_steps=1, learning_rate=1e-7))
    ranks = LearnedRanks.load(tmp_path / "o" / "ranks.json")
    assert "undecided: " in caplog.text and ranks.curve.decided is False and set(ranks.ranks.values()) == {4}


def test_old_name_of_size_acts(place, tmp_path):
    results = run_glue.main(command(place, tmp_path / "o", rank_budget="lora:1", min_rank=1, max_steps=1))
    assert results["adapter_params"] == 4 * 32


def test_counted_search_shortens_the_retrain(place, tmp_path, capsys):
    run_glue.main(command(place, tmp_path / "o", count_search=True, num_train_epochs=20))
    cost = json.loads((tmp_path / "o" / "cost.json").read_text())
    assert cost["total"]["passes"] == 20 * 10
    left = 200 - cost["search"]["passes"]
    assert f"the search took {cost['search']['passes']} of 200 steps, {left} are left" in capsys.readouterr().out


def test_budget_and_rank_zero_reach_the_adapter(place, tmp_path):
    results = run_glue.main(command(place, tmp_path / "o", size="lora:1", min_rank=0, max_steps=1))
    ranks = LearnedRanks.load(tmp_path / "o" / "ranks.json").ranks
    assert results["adapter_params"] == 4 * 32 and sum(ranks.values()) == 4
    assert len(json.loads((tmp_path / "o" / "adapter_config.json").read_text())["rank_pattern"]) == sum(
        rank > 0 for rank in ranks.values()
    )


@pytest.fixture(scope="module")
def sized(place):
    """A run of seven components in four modules, whose ranks are unequal."""
    results = run_glue.main(command(place, place / "sized", size=7 * 32))
    assert len(set(LearnedRanks.load(place / "sized" / "ranks.json").ranks.values())) > 1
    return results


@pytest.mark.parametrize(
    "setting", [{"retrain_init": "scratch"}, {"scaling": "paper"}, {"use_rslora": True}, {"lora_alpha": 3}]
)
def test_retrain_settings_have_an_effect(place, sized, tmp_path, setting):
    results = run_glue.main(command(place, tmp_path / "o", size=7 * 32, **setting))
    assert results["eval_loss"] != sized["eval_loss"]


@pytest.mark.parametrize("changes", [{}, {"method": "svd", "size": "lora:2"}, {"retrain_cut": 0.5}])
def test_score_of_a_bf16_run_is_that_of_the_adapter_as_it_loads(place, tmp_path, changes):
    results = run_glue.main(command(place, tmp_path / "o", bf16=True, **changes))
    base = AutoModelForSequenceClassification.from_pretrained(place / "tiny-roberta")
    model = PeftModel.from_pretrained(base, tmp_path / "o")
    assert accuracy(place, model) == results["eval_accuracy"]
    assert loss(place, model) == pytest.approx(results["eval_loss"], rel=1e-5)  # bf16 would be off by 1e-3
    again = run_glue.main(command(place, tmp_path / "o", bf16=True, **changes) + ["--do_eval"])
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)


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


def test_the_search_s_model_is_gone_before_the_retrain_s_is_loaded(place, tmp_path, monkeypatch):
    """A GPU has seldom room for both."""
    models, alive = [], []
    base_model = Source.base_model

    def recorded(source):
        gc.disable()  # as if no collection were due
        alive.append(len({id(reference()) for reference in models if reference() is not None}))
        model = base_model(source)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(Source, "base_model", recorded)
    try:
        run_glue.main(command(place, tmp_path / "o", max_steps=1))
    finally:
        gc.enable()
    assert max(alive) == 1 and alive[-1] == 0  # looked at ahead and used by the search, then the retrain's


def test_an_evaluation_strategy_asks_for_the_final_scores_too(place, tmp_path):
    results = run_glue.main([*command(place, tmp_path / "o", eval_strategy="epoch", max_steps=2), "--do_train"])
    assert "eval_accuracy" in results and (tmp_path / "o" / "eval_results.json").exists()


def test_bf16_without_an_accelerator_runs_on_the_cpu(place, tmp_path, capsys):
    argv = command(place, tmp_path / "o", max_steps=1, use_cpu=None, bf16=True)
    run_glue.main(argv)
    assert "bf16 without an accelerator: running on the CPU" in capsys.readouterr().out
