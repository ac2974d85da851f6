"""Is a run gone on with by the settings with which it was begun, and by no others?"""

import json
import os
import shutil

import pytest

import run_glue
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.errors import UsageError, run_guarded
from autolora_trainer.methods.registry import METHODS
from autolora_trainer.runs.resume import learned_settings
from autolora_trainer.scripts.command_line import parse_arguments
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import command
from tests.helpers.faults import interrupt

OTHER_SETTINGS = [
    {"initial_rank": 6},
    {"method": "lora"},
    {"rank_rule": "threshold"},
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
        return learned_settings(*parsed, METHODS[method].length_is_learned)

    assert (settings() != settings(**changes)) == (method in ("adalora", "grid"))


@pytest.mark.parametrize("touched", ["rows", "weights", "times"])
def test_resume_with_other_content_of_the_same_files_is_refused(place, tmp_path, touched):
    """What was only touched, or copied, is read again and is the same."""
    files = shutil.copytree(place, tmp_path / "place", ignore=shutil.ignore_patterns("begun"))
    settings = {"method": "lora", "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, FinalTrainer, 3)
        run_glue.main(command(files, tmp_path / "o", **settings))
    note = (tmp_path / "o" / "run.json").read_text()
    assert str(tmp_path) not in note and len(json.loads(note)["inputs"]["train_file"]["sha256"]) == 64
    argv = [*command(files, tmp_path / "o", **settings), "--resume_from_checkpoint"]
    rows, weights = files / "train.jsonl", files / "tiny-roberta" / "model.safetensors"
    for path in (rows, weights):
        os.utime(path, ns=(1, 1))
    if touched == "times":
        assert run_glue.main(argv)["resumed_from"] == {"phase": "retrain", "step": 3}
        return
    if touched == "rows":
        rows.write_text("".join(sorted(rows.read_text().splitlines(keepends=True))))
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    name = {"rows": "train_file train.jsonl", "weights": "model_name_or_path tiny-roberta"}[touched]
    with pytest.raises(UsageError, match=f"{name} holds something else than when the run in .* was begun. Give it as"):
        run_glue.main(argv)
    assert (tmp_path / "o" / "run.json").read_text() == note
