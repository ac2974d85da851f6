"""The command `autolora` on results whose content is known."""

import json

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from autolora_trainer import LearnedRanks
from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.ranks.learned import ModuleRank
from tests.helpers.models import tiny_roberta

NAMES = [f"roberta.encoder.layer.{i}.attention.self.{p}" for i in range(2) for p in ("query", "value")]


def ranks(*values):
    return LearnedRanks({n: ModuleRank(r) for n, r in zip(NAMES, values)}, base_model="org/base", rank_rule="adaptive")


@pytest.fixture
def folder(tmp_path):
    ranks(1, 3, 0, 2).save(tmp_path / "ranks.json")
    results = {"adapter_params": 1234, "head_params": 56, "eval_accuracy": 0.75, "eval_runtime": 3.0, "seed": 1}
    (tmp_path / "all_results.json").write_text(json.dumps(results))
    phase = {"wall_seconds": 61.0, "passes": 120, "examples": 1920, "peak_memory_mb": 512.0}
    (tmp_path / "cost.json").write_text(json.dumps({"search": phase, "retrain": phase, "total": phase}))
    return tmp_path


def test_show_tells_the_ranks_the_scores_and_the_cost(folder, capsys):
    cli.main(["show", str(folder)])
    out = capsys.readouterr().out
    assert "query  1  0" in out and "value  3  2" in out and "--max-lora-rank 8" in out
    assert "1,234 adapter parameters, 56 in the head" in out and "eval_accuracy = 0.7500" in out
    assert "eval_runtime" not in out and "1 min 01 s" in out


def test_show_takes_a_lone_file_of_ranks(tmp_path, capsys):
    ranks(1, 1, 1, 1).save(tmp_path / "shared.json")
    cli.main(["show", str(tmp_path / "shared.json")])
    assert "total rank 4" in capsys.readouterr().out


def test_ranks_that_no_server_takes_are_shown_too(tmp_path, capsys):
    ranks(600, 1, 1, 1).save(tmp_path / "ranks.json")
    cli.main(["show", str(tmp_path)])
    out = capsys.readouterr().out
    assert "query  600    1" in out and "max-lora-rank" not in out


def test_exported_settings_build_the_same_ranks(folder, capsys):
    cli.main(["export", str(folder), "--format", "peft", "--lora_alpha", "24"])
    settings = json.loads(capsys.readouterr().out)
    model = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", **settings))
    assert [layer.r["default"] for layer in lora_layers(model).values()] == [1, 3, 2]
    assert {layer.scaling["default"] for layer in lora_layers(model).values()} == {24 / 2}


def test_export_takes_the_scale_of_the_run(folder, capsys):
    def scales(*typed):
        cli.main(["export", str(folder), *typed])
        model = get_peft_model(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", **json.loads(capsys.readouterr().out)))
        return [layer.scaling["default"] for layer in lora_layers(model).values()]

    assert scales() == [16 / 2] * 3
    settings = {"lora_alpha": 32, "use_rslora": False, "scaling": "constant"}
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    assert scales() == [32 / 2] * 3 and scales("--lora_alpha", "8") == [8 / 2] * 3
    (folder / "run.json").write_text(json.dumps({"settings": {**settings, "scaling": "paper"}}))
    assert scales() == [32 / 1, 32 / 3, 32 / 2]
    (folder / "run.json").write_text(json.dumps({"settings": {**settings, "use_rslora": True}}))
    assert scales() == pytest.approx([32 / 2**0.5] * 3)
    (folder / "run.json").write_text(json.dumps({"settings": ["damaged"]}))
    assert scales() == [16 / 2] * 3


def test_axolotl_gets_its_own_names(folder, capsys):
    cli.main(["export", str(folder), "--format", "axolotl"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["lora_rank_pattern"] == {"^" + n.replace(".", r"\."): r for n, r in zip(NAMES, (1, 3, 0, 2)) if r}
    assert settings["adapter"] == "lora" and settings["lora_r"] == 3 and len(settings["lora_target_modules"]) == 3


def test_parts_of_fused_modules_are_not_exported_as_whole_ones(tmp_path):
    LearnedRanks({"h.0.attn.c_attn#q": ModuleRank(1)}).save(tmp_path / "ranks.json")
    with pytest.raises(UsageError, match="'h.0.attn.c_attn#q' is a part of a fused module"):
        cli.main(["export", str(tmp_path)])


def test_diff_names_what_differs_and_how_far_the_patterns_agree(folder, tmp_path, capsys):
    ranks(2, 3, 0, 2).save(tmp_path / "other.json")
    cli.main(["diff", str(folder), str(tmp_path / "other.json")])
    out = capsys.readouterr().out
    assert f"{NAMES[0]}      1       2      +1" in out and NAMES[1] not in out
    assert "1 of 4 modules differ; total rank 6 and 7" in out and "4 shared modules: 0.95" in out


def test_run_hands_the_arguments_to_the_script(monkeypatch):
    import run_glue

    seen = []
    monkeypatch.setattr(run_glue, "main", seen.append)
    cli.main(["run", "glue", "--task_name", "sst2", "--bf16"])
    assert seen == [["--task_name", "sst2", "--bf16"]]


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["show", "nothing/here"], "'nothing/here' is neither a folder or file here nor a repository"),
        (
            ["show", "."],
            ". holds neither ranks.json nor adapter_config.json. Give the output directory of a finished run, or an",
        ),
        (["export", ".", "--format", "toml"], "invalid choice: 'toml'"),
        (["shwo", "."], "invalid choice: 'shwo'"),
        ([], "the following arguments are required: VERB; autolora --help lists the commands"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(tmp_path)
    assert run_guarded(lambda: cli.main(argv), "autolora") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("autolora: error: ") and sentence in error
