"""Is a run gone on with by the settings with which it was begun, and by no others?"""

import json
import os
import shutil

import pytest

import run_glue
from autolora_trainer import AutoLoraTrainer
from autolora_trainer.errors import UsageError, run_guarded
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
    {"max_steps": 5},
    {"num_train_epochs": 3.0},
    {"retrain_epochs": 1.0},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    {"dataloader_drop_last": True},
    {"pad_to_max_length": True},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1},
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
def test_what_cannot_change_the_result_may_change_and_is_named(place, begun, tmp_path, capsys, old):
    output = shutil.copytree(begun, tmp_path / "o")
    changes = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_steps": 1, "per_device_eval_batch_size": 3}
    if old:  # a run.json of a version that noted less
        note = json.loads((output / "run.json").read_text())
        for name in ("weight_decay", "optim", "bf16", "dtype", "non_finite"):
            del note["settings"][name]
        for part in ("others", "rows", "environment"):
            del note[part]
        (output / "run.json").write_text(json.dumps(note))
        changes["weight_decay"] = 0.5
    results = run_glue.main([*command(place, output, **changes), "--resume_from_checkpoint"])
    assert results["resumed_from"] == {"phase": "search", "step": 3}
    said = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("changed since the run was begun")
    ]
    assert old or all(f"{name} " in said[0] and f"-> {changes[name]}" in said[0] for name in changes)
    assert "optim" in json.loads((output / "run.json").read_text())["settings"]


NOTED = "rows.train environment.torch environment.tokenizer environment.attn_implementation settings.processes".split()


@pytest.mark.parametrize("noted", NOTED)
def test_rows_versions_and_the_like_are_compared(place, begun, tmp_path, noted):
    """As if this machine had others: what is noted was different when the run was begun."""
    output = shutil.copytree(begun, tmp_path / "o")
    note, (part, name) = json.loads((output / "run.json").read_text()), noted.split(".")
    note[part][name] = "another"
    (output / "run.json").write_text(json.dumps(note))
    argv = [*command(place, output, save_strategy="steps", save_steps=1), "--resume_from_checkpoint"]
    with pytest.raises(UsageError, match=f"was begun with {name} another, and this command has"):
        run_glue.main(argv)
    assert json.loads((output / "run.json").read_text()) == note


def test_evaluation_on_the_way_does_not_change_what_is_learned(place, tmp_path):
    """Or a resume could not change it: a loader draws a number for its workers, and dropout another mask."""
    for name, strategy in (("without", "no"), ("with", "steps")):
        run_glue.main(
            command(place, tmp_path / name, method="lora", max_steps=4, eval_strategy=strategy, eval_steps=1)
        )
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("without", "with"))
    assert one == two


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
