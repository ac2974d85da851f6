"""Ranks of another search: is depth mapped as it says, and does a trial search where its plan tells it to?"""

import json
import sys

import pytest
import yaml

from autolora_trainer import report
from autolora_trainer.ranks import LearnedRanks, ModuleRank
from benchmarks import compare, transfer, trials
from tests.tiny import sentences, tiny_checkpoint, write_rows


def pattern(ranks, form="encoder.layer.{}.attention.self.query"):
    return LearnedRanks({form.format(i): ModuleRank(rank) for i, rank in enumerate(ranks)}, rank_rule="adaptive")


def mapped(ranks, to):
    return list(transfer.map_depth(pattern(ranks), len(ranks), to).ranks.values())


def test_every_block_takes_the_ranks_of_its_relative_depth():
    assert mapped([1, 2, 3], 6) == [1, 1, 2, 2, 3, 3]
    assert mapped([1, 2, 3, 4, 5, 6], 3) == [2, 4, 6]
    assert mapped([1, 2, 3], 3) == [1, 2, 3]
    assert mapped([1, 2, 3, 4], 6) == [1, 2, 2, 3, 4, 4]
    assert mapped([5], 4) == [5] * 4 and mapped([1, 2, 3], 1) == [2]


def test_names_and_parts_keep_their_places():
    names = [f"transformer.h.{i}.attn.c_attn#{part}" for i in range(2) for part in "qv"] + ["score.dense"]
    ranks = LearnedRanks({name: ModuleRank(i, (0.5,)) for i, name in enumerate(names)}, base_model_fingerprint="x")
    found = transfer.map_depth(ranks, 2, 4)
    assert found.ranks["transformer.h.1.attn.c_attn#v"] == 1 and found.ranks["transformer.h.3.attn.c_attn#q"] == 2
    assert found.ranks["score.dense"] == 4 and len(found.ranks) == 9
    assert found.base_model_fingerprint is None and not any(module.selection for module in found.modules.values())
    assert transfer.map_depth(pattern([1, 2], "encoder.{}"), 2, 1).ranks == {"encoder.0": 2}


def test_depths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one block, got 0 and 3"):
        transfer.map_depth(pattern([1]), 0, 3)
    with pytest.raises(ValueError, match="layer.1.attention.self.query' is in block 1, and .* has 1"):
        transfer.map_depth(pattern([1, 2]), 1, 3)


def test_a_sibling_has_every_other_block(tmp_path):
    from transformers import AutoModel

    tiny_checkpoint(tmp_path / "large", num_hidden_layers=3)
    transfer.main(["--model", str(tmp_path / "large"), "--output", str(tmp_path / "small")])
    large, small = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("large", "small"))
    assert {name.split(".")[2] for name in small if "layer." in name} == {"0", "1"}
    kept = [name for name in small if "pooler" not in name]  # the checkpoint has none: every load draws it anew
    assert all(small[name].equal(large[name.replace("layer.1.", "layer.2.")]) for name in kept)
    model = AutoModel.from_pretrained(tmp_path / "small")
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="RobertaModel has no list of 7 blocks"):
        transfer.keep_every_other_block(model)


METHODS = {
    "own": {"method": "autolora"},
    "half": {"method": "autolora", "ranks_from": {"share": 0.5}},
    "sibling": {"method": "autolora", "ranks_from": {"sibling": True, "settings": {"search_max_steps": 4}}},
    "related": {"method": "autolora", "ranks_from": {"task": {"sst2": "cola"}}},
}
SETTINGS = {
    "rank_budget": "lora:2",
    "search_max_steps": 6,
    "hypergradient_interval": 1,
    "max_steps": 2,
    "learning_rate": 0.01,
    "save_strategy": "no",
    "use_cpu": True,
}


def test_a_trial_searches_where_its_plan_says_and_retrains_on_its_own_task(tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path / "large", num_hidden_layers=4)
    tiny_checkpoint(tmp_path / "small", num_hidden_layers=2)
    for task in ("sst2", "cola"):
        (tmp_path / task).mkdir()
        for split, count in (("train", 40), ("validation", 10)):
            write_rows(tmp_path / task / f"{split}.jsonl", sentences(count))
    plan = {"tasks": ["sst2"], "methods": METHODS, "settings": SETTINGS, "reference": "own"}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    argv = ["--data", tmp_path, "--model", tmp_path / "large", "--sibling", tmp_path / "small"]
    argv = ["compare.py", tmp_path / "plan.yaml", *argv, "--output", tmp_path / "rows.jsonl", "--scratch", tmp_path]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    for draw in ("save_rank_heatmap", "save_selection_history"):
        monkeypatch.setattr(report, draw, lambda *arguments: None)
    ran, run, kept = [], trials.run, {}

    def watched(script, typed, isolate=False):
        ran.append(typed)
        results = run(script, typed, isolate)
        with open(f"{trials.value_of(typed, 'output_dir')}/ranks.json") as file:
            kept[len(ran)] = json.load(file)["modules"]
        return results

    monkeypatch.setattr(trials, "run", watched)
    compare.main()
    last = lambda typed, name: trials.value_of(typed[::-1], name)
    own, half, _, sibling, _, related, _ = ran
    assert last(own, "max_train_samples") is None and last(half, "max_train_samples") == "20"
    assert last(sibling, "model_name_or_path").endswith("small") and last(sibling, "search_max_steps") == "4"
    assert last(related, "task_name") == "cola" and "cola" in last(related, "train_file")
    rows = {row["method"]: row for row in trials.read_rows(str(tmp_path / "rows.jsonl"))}
    assert list(rows) == list(METHODS)
    for number, label in ((2, "half"), (6, "related")):
        assert rows[label]["ranks"] == [module["rank"] for module in kept[number].values()]
    small = [module["rank"] for module in kept[4].values()]  # query and value of two blocks
    assert len(small) == 4 and rows["sibling"]["ranks"] == [*small[:2] * 2, *small[2:] * 2]
    for label in ("half", "sibling", "related"):
        row = rows[label]
        assert row["wall_seconds"] > row["search_seconds"] > 0 and row["source"] == METHODS[label]["ranks_from"]
        assert row["passes"] > rows["own"]["passes"] // 2 and str(tmp_path) not in json.dumps(row)
    assert "SIBLING" in rows["sibling"]["source_command"] and rows["half"]["command"].endswith("--ranks RANKS")
    table = (tmp_path / "rows.md").read_text()
    assert all(f"| {label} |" in table for label in METHODS)
