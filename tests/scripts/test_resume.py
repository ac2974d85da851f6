"""Does an interrupted run go on to the same bits, from the newest whole checkpoint?"""

import json
import re

import pytest

import run_glue
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.errors import run_guarded
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.faults import interrupt


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
    settings |= {"search_epochs": 2}
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
            interrupt(patch, AutoLoraTrainer if phase == "search" else FinalTrainer, after)
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
        cls = AutoLoraTrainer if phase == "search" else FinalTrainer
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
