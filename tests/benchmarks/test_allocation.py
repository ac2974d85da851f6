"""The plan of `benchmarks/allocation.py`: what is due, at which sizes and rates, and what its tables say."""

import sys

import pytest

from benchmarks import allocation
from benchmarks.lib import allocation_plan as plan
from benchmarks.lib import allocation_report as report
from benchmarks.lib import allocation_sizes as sizes
from benchmarks.lib import claims
from benchmarks.lib.allocation_run import _same, by_value
from benchmarks.lib.allocation_tasks import answer_of

COSTS = {f"h.{block}.{kind}": cost for block in range(4) for kind, cost in (("attn.c_proj", 20), ("mlp.c_fc", 60))}


def information(task="e2e", bits=640):
    return {"kind": "information", **plan.DEVELOP, "task": task, "bits": bits, "costs": COSTS, "loss": 1.0}


def tuning(task, method, losses, **at):
    return [{"kind": "tuning", **plan.DEVELOP, "task": task, "method": method, "rate": rate, "loss": loss, **at}
            for rate, loss in losses.items()]  # fmt: skip


def searched(task="e2e", seed=1, stage="develop", k=8):
    order = [[module, j] for j in range(4) for module in (7, 5, 3, 1, 0)]
    return {"kind": "search", "stage": stage, "task": task, "seed": seed, "k": k, "passes": 10,
            "orders": {"contributions": order, "svd": order[::-1]}, "found": dict.fromkeys(COSTS, 2)}  # fmt: skip


def test_sizes_are_the_nearest_steps_of_the_ladder():
    # rank 1 everywhere has 320 parameters, on one kind 80 and 240; the rows teach 640 bits: 320 parameters' worth
    found = {"eighth": ["1 on attn.c_proj"], "half": ["1 on mlp.c_fc"], "twice": ["2"]}
    assert sizes.sizes_of("e2e", [information()]) == found
    assert sizes.search_rank("e2e", [information()]) == 8 and sizes.search_rank("e2e", [information(bits=9000)]) == 32
    assert sizes.step_of("e2e", "twice", []) is None


def test_of_several_kinds_the_best_on_training_rows_is_uniforms():
    rows = [information(bits=2000)]
    rows[0]["costs"] = costs = {f"h.{block}.{kind}": 60 for block in range(4) for kind in "ab"}
    assert sizes.nearest(costs, 250) == ["1 on a", "1 on b"] and sizes.step_of("e2e", "eighth", rows) is None
    rows += [
        {"kind": "one_kind", "task": "e2e", "label": f"1 on {kind}", "loss": loss}
        for kind, loss in (("a", 2), ("b", 1))
    ]
    assert sizes.step_of("e2e", "eighth", rows) == "1 on b"


def test_what_is_due_waits_for_the_rows_it_needs():
    first = plan.left([])
    assert {trial["kind"] for trial in first if trial["task"] in sizes.CAPACITY} == {"information"}
    rows = [information()]
    assert [t["method"] for t in plan.left(rows) if (t["kind"], t["task"]) == ("tuning", "e2e")] == ["uniform"] * 3
    assert [t["k"] for t in plan.left(rows) if (t["kind"], t["task"]) == ("search", "e2e")] == [8]
    rows.append(searched())
    assert len([t for t in plan.left(rows) if (t["kind"], t["task"]) == ("tuning", "e2e")]) == 12
    assert not [t for t in plan.left(rows) if (t["kind"], t["task"]) == ("none", "e2e")]
    for method in ("uniform", "contributions"):
        rows += tuning("e2e", method, {2e-3: 3.0, 4e-3: 2.0, 8e-3: 2.5})
    assert plan.rate_of("e2e", "contributions", rows) == 4e-3
    own = [(t["method"], t["size"]) for t in plan.left(rows) if t["kind"] == "tuning" and t.get("size")]
    assert own == [("warm", "found")] * 3 + [("uniform", "rank 8")] * 3
    assert not [t for t in plan.left(rows) if (t["kind"], t["task"]) == ("none", "e2e")]
    rows += tuning("e2e", "warm", {2e-3: 2.0, 4e-3: 3.0, 8e-3: 3.5, 1e-3: 2.5}, size="found")
    rows += tuning("e2e", "uniform", {2e-3: 3.0, 4e-3: 2.0, 8e-3: 2.5}, size="rank 8")
    assert plan.rate_of("e2e", "contributions", rows, "found") == 2e-3 != plan.rate_of("e2e", "warm", rows, "half")
    seeds = [t["seed"] for t in plan.left(rows) if (t["kind"], t["task"]) == ("none", "e2e")]
    assert seeds == list(plan.SEEDS) and not [t for t in plan.left(rows) if t["kind"] == "train"]
    rows.append(searched(seed=11, stage="final"))
    trained = [(t["method"], t["size"], t["account"]) for t in plan.left(rows) if t["kind"] == "train"]
    assert ("contributions", "eighth", "a") in trained and ("uniform", "half", "b") in trained
    assert ("warm", "found", "a") in trained and ("shuffled", "eighth", "a") in trained
    assert len(trained) == len(set(trained))
    rows.append(searched(seed=15, stage="final"))
    last = [(t["method"], t["size"]) for t in plan.left(rows) if (t["kind"], t["seed"]) == ("train", 15)]
    assert {("uniform", "twice"), ("warm", "half"), ("random", "half")} <= set(last) and ("count", "half") not in last


def test_a_language_model_is_not_tuned_and_has_three_seeds():
    rows = [information("smollm2")]
    due = [(t["kind"], t["stage"], t["seed"]) for t in plan.left(rows) if t["task"] == "smollm2"]
    assert due == [(kind, "final", seed) for seed in plan.SEEDS[:3] for kind in ("none", "search")]
    rows.append(searched("smollm2", seed=11, stage="final"))
    trained = [(t["method"], t["size"]) for t in plan.left(rows) if (t["task"], t["kind"]) == ("smollm2", "train")]
    ours = ("contributions", "uniform", "shuffled")
    assert sorted(trained) == sorted([("warm", "found"), ("uniform", "rank 8"), *((own, "half") for own in ours)])
    assert plan.rate_of("smollm2", "uniform", rows) == plan.rate_of("smollm2", "warm", rows, "found") == 1e-3


def test_a_grid_whose_best_rate_is_at_its_edge_goes_on():
    rows = tuning("e2e", "uniform", {2e-3: 3.0, 4e-3: 2.0, 8e-3: 1.5})
    assert plan.rate_of("e2e", "uniform", rows) is None
    rows += tuning("e2e", "uniform", {1.6e-2: 1.7})
    assert plan.rate_of("e2e", "uniform", rows) == 8e-3 == plan.rate_of("e2e", "mlp", rows)


def test_patterns_have_the_size_of_uniforms():
    rows = [information(), searched()]
    trial = {"task": "e2e", "seed": 1, "stage": "develop", "size": "half"}
    size = lambda method: sizes.parameters(sizes.ranks_of({**trial, "method": method}, COSTS, rows), COSTS)
    assert size("uniform") == 240
    for method in ("contributions", "shuffled", "random", "svd", "mlp"):
        assert 180 < size(method) <= 240, method
    ranks = sizes.ranks_of({**trial, "method": "contributions"}, COSTS, rows)
    assert ranks["h.3.mlp.c_fc"] == 1 and ranks["h.1.attn.c_proj"] == 0
    moved = sizes.shuffled(ranks, 3)
    for kind in ("attn.c_proj", "mlp.c_fc"):
        values = lambda own: sorted(rank for name, rank in own.items() if name.endswith(kind))
        assert values(moved) == values(ranks)
    found = {**trial, "size": "found"}
    assert sizes.ranks_of({**found, "method": "contributions"}, COSTS, rows) == dict.fromkeys(COSTS, 2)
    assert sizes.ranks_of({**found, "method": "uniform"}, COSTS, rows) == dict.fromkeys(COSTS, 2)


def table_rows():
    rows = []
    for seed, ahead in zip(plan.SEEDS, (0.02, 0.03, 0.04, 0.03, 0.03)):
        base = {"stage": "final", "task": "e2e", "seed": seed}
        rows.append({"kind": "none", **base, "loss": 3.0})
        for size in ("eighth", "half", "twice"):
            for method, loss in (("uniform", 2.0), ("contributions", 2.0 - ahead), ("mlp", 2.1)):
                rows.append({"kind": "train", **base, "method": method, "size": size, "account": "a", "loss": loss,
                             "parameters": 100, "score": None, "metric": "bleu"})  # fmt: skip
        rows.append({**rows[-2], "method": "warm", "size": "found", "parameters": 50, "score": 60.0})
        rows.append({**rows[-4], "size": "rank 8", "parameters": 200, "score": 61.0})
    return rows


def test_shares_of_uniforms_gain():
    rows = table_rows()
    assert report.shares(rows, "contributions", "half")["e2e"] == pytest.approx([0.02, 0.03, 0.04, 0.03, 0.03])
    mean, low, high = report.bootstrapped([[0.02, 0.03, 0.04], [0.01, 0.01]])
    assert mean == pytest.approx(0.02) and 0.015 <= low < 0.02 < high <= 0.025
    text = report.report(rows)
    assert "+3.0 %" in text and "25 % of rank 8's" in text and "-1.00 bleu" in text
    assert report.report([]) == "\n"


def test_a_seed_with_which_rank_8_learned_nothing_is_left_out_and_named():
    rows = table_rows()
    for own in rows:
        if own["seed"] == 15 and own.get("size") == "rank 8":
            own.update(loss=3.01, score=50.0)
    assert report.failed_seeds(rows) == {"e2e": [15]} and report.failed_seeds(table_rows()) == {"e2e": []}
    assert report.found_shares(rows)["e2e"] == pytest.approx([0.02, 0.03, 0.04, 0.03])
    text = report.found_size(rows)
    assert "On e2e rank 8 learned nothing with seed 15, which the share leaves out; without it -1.00 points." in text
    assert "+1.20 bleu" in text  # the mean of four times -1 and of +10
    alone = [own for own in rows if own["seed"] == 15]
    assert "with seed 15, which the share leaves out." in report.found_size(alone)


def test_the_unit_is_the_mean_gain_of_the_seeds():
    rows = table_rows()
    for own in rows:
        if own["seed"] == 11 and own["kind"] == "none":
            own["loss"] = 8.0  # a gain of 6, four of 1: 2 in the mean
    assert report.shares(rows, "contributions", "half")["e2e"] == pytest.approx([0.01, 0.015, 0.02, 0.015, 0.015])


def test_undecided_searches_are_counted():
    rows = table_rows()
    assert "undecided" not in claims.summary(rows, [])
    for seed in plan.SEEDS:
        own = {**searched(seed=seed, stage="final"), "task": "e2e", "k": sizes.DEFAULT_K, "decided": seed > 12}
        rows.append(own)
    assert "(E2E); 2 of 5 searches were undecided, and have all of it; what" in claims.summary(rows, [])


def test_methods_beyond_noise_are_told_from_those_within():
    rows = table_rows()
    assert "are behind: feed-forward layers only by 13.0 %." in claims.summary(rows, [])
    same = [r for r in rows if (r.get("method"), r.get("size")) == ("contributions", "half")]
    rows += [{**own, "method": "fixed", "loss": own["loss"] + 0.01 * (-1) ** own["seed"]} for own in same]
    assert "only by 13.0 %; as good: α = 1 throughout." in claims.summary(rows, [])


def test_a_training_that_was_the_same_is_not_run_again():
    row = {"kind": "train", "stage": "final", "task": "e2e", "seed": 11, "method": "uniform", "size": "twice",
           "account": "a", "rate": 4e-3, "steps": 250, "ranks": [8, 8], "loss": 2.0}  # fmt: skip
    wide = {**row, "size": "rank 8", "loss": None}
    assert _same(wide, [row]) is row
    for changed in ({"steps": 398}, {"ranks": [8, 4]}, {"seed": 12}, {"rate": 2e-3}, {"method": "mlp"}):
        assert _same(wide, [{**row, **changed}]) is None


def test_a_longer_training_takes_the_rates_of_the_short_one():
    rows = [
        r for method in ("uniform", "contributions") for r in tuning("e2e", method, {2e-3: 3.0, 4e-3: 2.0, 8e-3: 2.5})
    ]
    rows += tuning("e2e", "contributions", {8e-3: 1.0, 1.6e-2: 3.0})
    assert plan.rate_of("e2e", "warm", rows) == 8e-3
    assert plan.rate_of("e2e_long", "warm", rows) == plan.rate_of("e2e", "uniform", rows) == 4e-3
    rows += [information(), {**searched(seed=11, stage="final"), "task": "e2e_long", "k": sizes.DEFAULT_K}]
    due = {(t["method"], t["size"]) for t in plan.left(rows) if (t["kind"], t["task"]) == ("train", "e2e_long")}
    assert due == {("warm", "found"), ("uniform", "found"), ("uniform", "rank 8")}


def test_holm():
    assert report.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_components_by_value():
    assert by_value({"q": [3.0, 1.0], "v": [2.0]}) == [("q", 0), ("v", 0), ("q", 1)]


def test_no_trial_begins_after_the_seconds_that_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["allocation.py", "--output", str(tmp_path / "rows.jsonl"), "--seconds", "-1"])
    assert allocation.main() == 0 and not (tmp_path / "rows.jsonl").exists()


def test_an_answer_is_what_follows_the_last_mark():
    assert answer_of("2*4=8 #### 7 #### 1,008<|im_end|>") == "1008" and answer_of("no mark") == "no mark"


def test_a_row_is_its_trial_whatever_else_it_tells():
    trial = {"kind": "train", **plan.final_of("e2e", 11), "method": "uniform", "size": "half", "account": "a"}
    assert plan.key({**trial, "rate": 8e-3, "loss": 2.0, "steps": 250}) == plan.key(trial)
    assert plan.key(tuning("e2e", "uniform", {1e-3: 2.0})[0]) != plan.key(tuning("e2e", "uniform", {2e-3: 2.0})[0])
