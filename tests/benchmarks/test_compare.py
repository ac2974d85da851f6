"""The comparison's plan, its rows and its table, with runs whose scores are known."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from autolora_trainer.errors import Terminated
from benchmarks import compare
from benchmarks.lib import comparison, plans, sharing, trials

PLAN = {
    "tasks": ["mrpc"],
    "seeds": 2,
    "settings": {"num_train_epochs": 2, "learning_rate": 0.1},
    "methods": {
        "uniform": {"rank_budget": "lora:2"},
        "autolora": {},
        "paper": {"method": "autolora", "preset": "paper"},
    },
    "reference": "uniform",
    "same_time": {"as": "autolora", "method": "uniform"},
    "tuning": {"learning_rate": [0.1, 0.2], "val_fraction": 0.25, "seed": 100},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A plan on disk, rows of MRPC, and scripts that only pretend; `calls` holds what they were asked."""
    (tmp_path / "data" / "mrpc").mkdir(parents=True)
    for split in ("train", "validation"):
        lines = "".join(json.dumps({"row": f"{split} {i}"}) + "\n" for i in range(20))
        (tmp_path / "data" / "mrpc" / f"{split}.jsonl").write_text(lines)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    calls = []

    def pretend(script, typed, isolate=False):
        value = dict(word.removeprefix("--").split("=", 1) for word in typed)
        for split in ("train", "validation"):
            with open(value[f"{split}_file"]) as file:
                value[f"{split}_file_lines"] = list(file)
        calls.append(value)
        os.makedirs(value["output_dir"])
        seconds = 30.0 if value["method"] == "autolora" else 10.0
        cost = {"total": {"wall_seconds": seconds, "passes": 5, "peak_memory_mb": 100.0}}
        with open(os.path.join(value["output_dir"], "cost.json"), "w") as file:
            json.dump(cost, file)
        # autolora likes 0.2, the others 0.1; one point per seed
        liked = {"autolora": "0.2"}.get(value["method"], "0.1")
        score = 0.7 + 0.1 * (value["learning_rate"] == liked) + 0.01 * int(value["seed"])
        return {"eval_accuracy": score, "eval_bleu": score, "eval_loss": 1.0, "adapter_params": 10, "head_params": 2}

    monkeypatch.setattr(trials, "run", pretend)
    return tmp_path, calls


def run(place, *more, status=0):
    folder, _ = place
    argv = [
        "compare.py",
        folder / "plan.yaml",
        "--data",
        folder / "data",
        "--model",
        "M",
        "--output",
        folder / "o.jsonl",
    ]
    old, sys.argv = sys.argv, [*map(str, argv), *more]
    try:
        assert compare.main() == status
    finally:
        sys.argv = old
    return trials.read_rows(str(folder / "o.jsonl"))


def test_every_method_gets_its_own_best_rate_and_the_reported_runs_use_it(place):
    rows = run(place)
    reported = [r for r in rows if r.get("kind") is None]
    rates = {r["method"]: next(s for s in r["settings"] if "learning_rate" in s) for r in reported}
    assert rates["uniform"] == "--learning_rate=0.1" and rates["autolora"] == rates["paper"] == "--learning_rate=0.2"
    assert len([r for r in rows if r.get("kind") == "tuning"]) == 3 * 2
    assert len(reported) == (3 + 1) * 2


def test_tuning_rows_come_from_the_training_file_alone(place):
    run(place)
    folder, calls = place
    tuning = [c for c in calls if c["seed"] == "100"]
    assert all(str(folder / "data") not in c["train_file"] + c["validation_file"] for c in tuning)
    texts = [tuning[0][f"{split}_file_lines"] for split in ("train", "validation")]
    assert [len(t) for t in texts] == [15, 5]
    assert sorted(texts[0] + texts[1]) == sorted(open(folder / "data" / "mrpc" / "train.jsonl"))


def test_tuning_may_have_fewer_rows_and_the_reported_runs_keep_theirs(place):
    folder, calls = place
    tuning = {**PLAN["tuning"], "settings": {"max_train_samples": 8, "num_train_epochs": 1}}
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "tuning": tuning}, sort_keys=False))
    rows = run(place)
    tuned = [c for c in calls if c["seed"] == "100"]
    assert tuned and all(c["max_train_samples"] == "8" and c["num_train_epochs"] == "1" for c in tuned)
    assert [len(tuned[0][f"{split}_file_lines"]) for split in ("train", "validation")] == [6, 2]
    reported = [r for r in rows if r.get("kind") is None]
    assert len(reported) == (3 + 1) * 2 and not any("--max_train_samples=8" in r["settings"] for r in reported)


def test_the_same_time_row_has_as_many_epochs_as_fit(place):
    rows = run(place)
    (row,) = [r for r in rows if "given the time" in r["method"] and r["seed"] == 0]
    assert "--num_train_epochs=6.0" in row["settings"] and "--method=uniform" in row["settings"]


def test_finished_trials_are_skipped_and_an_interruption_loses_one(place, monkeypatch):
    folder, calls = place
    pretend, count = trials.run, [0]

    def dying(*arguments, **keywords):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return pretend(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "run", dying)
        with pytest.raises(KeyboardInterrupt):
            run(place)
    with open(folder / "o.jsonl", "a") as file:
        file.write('{"task": "mr')  # killed in the middle of a row
    first = len(calls)
    rows = run(place)
    assert first == 4 and len(calls) == len(rows) == 6 + 8
    run(place)
    assert len(calls) == 14


def test_a_method_that_fails_does_not_stop_the_others(place, monkeypatch, capsys):
    pretend = trials.run

    def failing(script, typed, isolate=False):
        if "--preset=paper" in typed:
            raise ValueError("it does\nnot work")
        return pretend(script, typed, isolate)

    monkeypatch.setattr(trials, "run", failing)
    rows = run(place, status=1)  # nobody's shell goes on as if all were there
    assert {r["method"] for r in rows} >= {"uniform", "autolora"} and "paper" not in {r["method"] for r in rows}
    assert "paper tuning FAILED: it does not work" in capsys.readouterr().err


def test_trials_of_every_benchmark_fail_alone_and_once(tmp_path, capsys):
    done, tried = [], []

    def run(trial):
        tried.append(trial)
        if trial == "bad":
            raise RuntimeError("no\nroom")
        done.append(trial)

    left = lambda: [(name, name) for name in ("bad", "good") if name not in done]
    assert sharing.work_off(str(tmp_path / "rows.jsonl"), left, run, str) == 1
    assert tried == ["bad", "good"] and capsys.readouterr().err == "bad FAILED: no room\n"


def test_two_processes_share_the_plan(place, monkeypatch):
    """The other process here: whatever runs has a second `compare.py` beside it, which works off all that is left."""
    _, calls = place
    pretend, beside = trials.run, []

    def with_another(script, typed, isolate=False):
        if not beside:
            beside.append(typed)
            with pytest.raises(StopIteration):  # it waits for this very trial, the one thing that is left
                run(place)
        return pretend(script, typed, isolate)

    def leave(seconds):
        raise StopIteration

    monkeypatch.setattr(trials, "run", with_another)
    monkeypatch.setattr(sharing.time, "sleep", leave)
    rows = run(place)
    seen = [json.dumps({k: v for k, v in sorted(c.items()) if "_file" not in k and k != "output_dir"}) for c in calls]
    assert len(seen) == len(set(seen)) == len(rows) == 14


def test_workers_with_one_scratch_folder_keep_out_of_each_others_runs(tmp_path):
    with trials.scratch_folder(str(tmp_path / "s")) as one, trials.scratch_folder(str(tmp_path / "s")) as two:
        os.makedirs(one)
        assert one != two and not os.path.exists(two)
    assert os.listdir(tmp_path / "s") == []  # what a run has left goes with it


def test_sigterm_ends_the_worker_and_not_the_trial_alone(place, monkeypatch, capsys):
    def terminated(script, typed, isolate=False):
        raise Terminated("stopped by SIGTERM")

    monkeypatch.setattr(trials, "run", terminated)
    with pytest.raises(SystemExit) as ended:
        run(place)
    assert ended.value.code == 143 and "FAILED" not in capsys.readouterr().err


def test_inputs_that_tuning_is_scored_on_are_not_trained_on(place):
    """E2E has several rows, each with a reference of its own, for one input."""
    folder, calls = place
    (folder / "data" / "mrpc").rename(folder / "data" / "e2e")
    rows = [{"meaning_representation": f"name[{i // 4}]", "human_reference": str(i)} for i in range(20)]
    (folder / "data" / "e2e" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"tasks": ["e2e"], "seeds": 1, "methods": {"uniform": {}}, "same_time": None}
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))
    run(place)
    tuning = [c for c in calls if c["seed"] == "100"]
    for call in tuning:
        train, held_out = (
            {json.loads(line)["meaning_representation"] for line in call[f"{split}_file_lines"]}
            for split in ("train", "validation")
        )
        assert train and held_out and not train & held_out


def test_of_two_rows_of_a_run_the_latest_counts(place):
    """A plan that was given another rate has runs of both in its file."""
    rows = run(place)
    old = [{**row, "score": 0.0} for row in rows if row["method"] == "uniform" and row.get("kind") is None]
    plan = plans.load_plan(str(place[0] / "plan.yaml"))
    assert comparison.table([*old, *rows], plan) == comparison.table(rows, plan)


def test_a_claim_ends_with_its_process(tmp_path):
    output = str(tmp_path / "rows.jsonl")
    code = f"""
import os, sys
sys.path.insert(0, {trials.ROOT!r})
from benchmarks.lib import sharing
with sharing.claim({output!r}, "a trial") as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"True\n"
        with sharing.claim(output, "a trial") as mine, sharing.claim(output, "another") as different:
            assert not mine and different
        other.kill()
    with sharing.claim(output, "a trial") as mine:
        assert mine


def test_dry_run_runs_nothing_and_estimates_from_finished_rows(place, capsys):
    _, calls = place
    run(place, "--dry_run")
    assert "unknown  python run_glue.py --method=uniform" in capsys.readouterr().out and not calls
    run(place)
    count = len(calls)
    capsys.readouterr()
    folder, _ = place
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "seeds": 3}, sort_keys=False))
    run(place, "--dry_run")
    out = capsys.readouterr().out
    assert len(calls) == count and "14 trials are finished, 3 are left: about 1 minutes" in out  # 10 + 30 + 30 s
    assert "    30 s  python run_glue.py --method=autolora" in out


def test_table_pairs_by_task_and_seed_and_says_what_it_could_find(place, capsys):
    run(place)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("| autolora"))
    assert "80.50 (n=2) | +0.00 (n=2) | - | 10 | 2 | 3.00" in line  # of two, no interval
    assert next(line for line in out.splitlines() if line.startswith("| uniform |")).count("| - |")
    folder, _ = place
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "seeds": 3}, sort_keys=False))
    run(place)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| autolora"))
    assert "81.00 (78.52 to 83.48, n=3) | +0.00 (+0.00 to +0.00, n=3) | 0.00 | 10 | 2 | 3.00" in line


def test_seconds_are_compared_where_every_method_has_them_on_one_machine():
    made = {"score": 1.0, "adapter_params": 1, "head_params": 1, "passes": 4, "peak_memory_mb": 1.0, "machine": "M"}
    seconds = {
        ("a", 0): {"uniform": 10.0, "adalora": 20.0, "full": 40.0},
        ("a", 1): {"uniform": 10.0, "adalora": None, "full": 90.0},  # measured wrongly
        ("b", 0): {"uniform": 10.0, "full": 90.0},
    }
    rows = [
        {**made, "task": task, "seed": seed, "method": method, "wall_seconds": value}
        for (task, seed), own in seconds.items()
        for method, value in own.items()
    ]
    assert comparison.timed_together(rows) == {("a", 0)}
    plan = {"tasks": [], "methods": {"uniform": {}, "adalora": {}, "full": {}}, "reference": "uniform"}
    header, body = comparison.table(rows, plan)
    cells = [dict(zip(header, line)) for line in body]
    assert [line["time / uniform"] for line in cells] == ["1.00", "2.00", "4.00"]
    assert [line["time / adalora"] for line in cells] == ["0.50", "1.00", "2.00"]
    assert comparison.timed_on(rows) == "Time: median ratio over the 1 runs of a of which every method has seconds."
    rows[0]["machine"] = "N"
    assert comparison.timed_together(rows) == set() and "No run has seconds" in comparison.timed_on(rows)


def test_a_method_without_rows_is_a_line_of_dashes(place):
    rows = [row for row in run(place) if row["method"] == "uniform"]
    header, body = comparison.table(rows, plans.load_plan(str(place[0] / "plan.yaml")))
    assert body[1] == ["autolora"] + ["-"] * (len(header) - 1) and body[0][1] == "80.50 (n=2)"


def test_tasks_may_have_other_numbers_of_seeds_and_trials_go_seed_by_seed(place):
    folder, calls = place
    for split in ("train", "validation"):
        (folder / "data" / "cola").mkdir(exist_ok=True)
        text = (folder / "data" / "mrpc" / f"{split}.jsonl").read_text()
        (folder / "data" / "cola" / f"{split}.jsonl").write_text(text)
    changes = {"tasks": ["sst2", "mrpc"], "task_seeds": {"mrpc": 1}, "methods": {"uniform": {}}, "same_time": None}
    (folder / "data" / "cola").rename(folder / "data" / "sst2")
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))
    rows = run(place)
    order = [(row["task"], row["seed"]) for row in rows]
    tuning = [("sst2", 100)] * 2, [("mrpc", 100)] * 2
    assert order == [*tuning[0], ("sst2", 0), *tuning[1], ("mrpc", 0), ("sst2", 1)]


@pytest.mark.parametrize("order", [1, -1])  # rows come in any order from several workers
def test_of_rates_with_equal_scores_the_one_with_the_lowest_loss_is_taken(order):
    shared = {"task": "cola", "method": "uniform", "kind": plans.TUNING}
    rows = [
        {**shared, "score": score, "eval_loss": loss, "settings": [f"--learning_rate={rate}"]}
        for rate, score, loss in ((0.1, 0.0, 0.66), (0.2, 0.0, 0.64), (0.3, 0.0, 0.65))
    ][::order]
    plan = {**PLAN, "tuning": {"learning_rate": [0.1, 0.2, 0.3]}}
    assert plans.tuned(plan, rows, "cola", "uniform") == {"learning_rate": 0.2}
    assert plans.tuned(plan, rows[1:], "cola", "uniform") is None
    rows[0]["score"] = 0.1  # the score comes first
    assert plans.tuned(plan, rows, "cola", "uniform") == {"learning_rate": 0.1 if order == 1 else 0.3}


def test_a_method_may_have_rates_of_its_own(place):
    folder, _ = place
    tuning = {**PLAN["tuning"], "method_learning_rate": {"uniform": [0.01, 0.02, 0.03]}}
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "tuning": tuning}, sort_keys=False))
    rows = run(place)
    rates = {r["method"]: [] for r in rows}
    for row in rows:
        rates[row["method"]].append(trials.value_of(row["settings"], "learning_rate"))
    assert rates["uniform"] == ["0.01", "0.02", "0.03", "0.01", "0.01"]  # all alike: the first
    assert rates["autolora"] == ["0.1", "0.2", "0.2", "0.2"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"tasks": None}, "needs tasks and methods"),
        ({"methds": {}}, "has 'methds'"),
        ({"reference": "x"}, "names the reference 'x', which is none of its methods"),
        ({"same_time": {"as": "x", "method": "uniform"}}, "same_time needs"),
        ({"task_seeds": {"cola": 1}}, "task_seeds names 'cola', which is none of mrpc"),
        ({"tuning": {"learning_rate": [1], "method_learning_rate": {"full": [1]}}}, "names 'full', which is none of"),
    ],
)
def test_a_plan_that_cannot_be_run_is_one_line(tmp_path, change, sentence):
    plan = {k: v for k, v in {**PLAN, **change}.items() if v is not None}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(SystemExit, match=sentence):
        plans.load_plan(str(tmp_path / "plan.yaml"))
