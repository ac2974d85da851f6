"""A row is run again to its score: exactly on its machine, and within the spread of its seeds elsewhere."""

from types import SimpleNamespace

import pytest

from benchmarks import compare, rerun
from benchmarks.lib import plans, trials
from tests.helpers.models import tiny_checkpoint
from tests.helpers.rows import sentences, write_rows

SETTINGS = {"max_steps": 6, "learning_rate": 0.02, "save_strategy": "no", "use_cpu": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, rows, and the rows of three trials and of one tuning trial."""
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder / "model")
    (folder / "sst2").mkdir()
    for split, count in (("train", 40), ("validation", 21)):
        write_rows(folder / "sst2" / f"{split}.jsonl", sentences(count, seed=count))
    options = SimpleNamespace(
        data=str(folder), model=str(folder / "model"), isolate=False, scratch=str(folder),
        output=str(folder / "rows.jsonl"),
    )  # fmt: skip
    plan = {
        **{**plans.DEFAULTS, "tasks": ["sst2"], "seeds": 2, "settings": SETTINGS},
        "methods": {"uniform": {"size": "lora:2"}},
        "tuning": {"learning_rate": [0.02], "val_fraction": 0.25},
    }
    compare.work(options, plan)
    return folder


def again(place, name, line, *more):
    argv = [f"{place}/{name}.jsonl", str(line), "--data", str(place), "--model", f"{place}/model"]
    return rerun.main([*argv, "--scratch", str(place), *more])


@pytest.mark.parametrize("line", [1, 3])
def test_every_kind_of_row_is_met_exactly_on_its_machine(place, capsys, line):
    row = trials.read_rows(str(place / "rows.jsonl"))[line - 1]
    assert again(place, "rows", line) == 0
    shown = f"{row['score']:.3f} in the row, {row['score']:.3f} now: met within 0.050 points (the same machine and"
    assert shown in capsys.readouterr().out


def test_the_rows_are_of_the_kinds_that_they_should_be(place):
    rows = trials.read_rows(str(place / "rows.jsonl"))
    assert [row.get("kind") for row in rows] == ["tuning", None, None] and rows[0]["val_fraction"] == 0.25


def test_another_score_is_not_met(place, capsys):
    row = trials.read_rows(str(place / "rows.jsonl"))[1]
    trials.append_row(str(place / "other.jsonl"), {**row, "score": row["score"] + 0.5})
    assert again(place, "other", 1) == 1 and "NOT met within 0.050" in capsys.readouterr().out
    assert again(place, "other", 1, "--tolerance", "0.6") == 0


def test_elsewhere_the_tolerance_is_the_spread_of_the_seeds():
    row = {"task": "a", "method": "m", "settings": [], "machine": "x", "versions": {"torch": "1"}}
    rows = [{**row, "seed": seed, "score": score} for seed, score in enumerate((70.0, 71.0, 72.0))]
    rows += [{**row, "seed": 3, "method": "n", "score": 0.0}, {**row, "seed": 4, "train_rows": 9, "score": 0.0}]
    rows.insert(0, {**rows[0], "score": 60.0})  # replaced since
    assert rerun.tolerance(rows[0], rows, "x", {"torch": "1"})[0] == 0.05
    assert rerun.tolerance(rows[0], rows, "y", {"torch": "1"})[0] == pytest.approx(2.772, abs=1e-3)
    assert rerun.tolerance(rows[0], rows, "x", {"torch": "2"})[0] == pytest.approx(2.772, abs=1e-3)
    assert rerun.tolerance(rows[0], rows[:2], "y", {"torch": "1"})[0] is None


@pytest.mark.parametrize(
    "rows, line, sentence",
    [
        ([{"task": "a"}], 2, "has 1 rows, got 2. Give a line from 1 to 1"),
        ([{"check": "kill"}], 1, "this row is rerun with its whole table. RESULTS.md has the command"),
        ([{"task": "ranks", "method": "m", "score": 400.0}], 1, "this row is rerun with its whole table"),
        ([{"task": "a", "method": "m", "settings": [], "score": 1.0, "versions": {}}], 1, "the tolerance is unknown"),
    ],
)
def test_a_row_that_cannot_be_rerun_is_one_line(tmp_path, capsys, rows, line, sentence):
    for row in rows:
        trials.append_row(str(tmp_path / "rows.jsonl"), row)
    with pytest.raises(SystemExit) as error:
        rerun.main([str(tmp_path / "rows.jsonl"), str(line)])
    assert error.value.code == 2 and sentence in capsys.readouterr().err


def test_rows_of_whole_runs_go_by_their_command_and_have_fractions(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(trials, "run", lambda *arguments: ran.append(arguments) or {"eval_accuracy": 0.6})
    command = (
        "python run_glue.py --output_dir x --model_name_or_path model --train_file $DATA/t --seed 3 --method lora"
    )
    row = {"task": "sst2", "method": "lora", "metric": "accuracy", "score": 0.6, "settings": {}, "command": command}
    options = SimpleNamespace(data=None, model="M", isolate=False, scratch=str(tmp_path))
    with pytest.raises(ValueError, match="the defaults before contributions .* Type git checkout cd59859"):
        rerun.rerun(rerun.in_points(row), options)
    row["defaults"] = trials.DEFAULTS
    assert rerun.rerun(rerun.in_points(row), options) == pytest.approx(rerun.in_points(row)["score"]) == 60.0
    script, typed, _ = ran[0]
    assert script == "run_glue" and typed[:4] == ["--seed", "3", "--method", "lora"]
    assert "--model_name_or_path=M" in typed and "model" not in typed and "$DATA/t" not in typed
