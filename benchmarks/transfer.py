"""Ranks that were searched elsewhere, for a full retrain: how much of the score survives, and what is saved?

    python benchmarks/compare.py benchmarks/plans/transfer.yaml --data DATA --model FOLDER --sibling SMALLER
    --output benchmarks/results/transfer.jsonl
    python benchmarks/transfer.py --model FOLDER --output SMALLER    # a sibling of half the depth, where there is none

A method of a plan with `ranks_from` skips its own search. The ranks come from a search

    ranks_from: {share: 0.1}                # on a tenth of the training rows
    ranks_from: {task: {mrpc: stsb}}        # on a related task
    ranks_from: {sibling: true}             # on the smaller model of `--sibling`, its depth mapped; see `map_depth`

with the same settings and seed; they can be combined, and `settings: {search_max_steps: 40}` changes that search
alone. The row's `search_seconds`, `wall_seconds` and `passes` count that search too. Its training starts from fresh
LoRA factors, as with any `--ranks`: compare it with `retrain_init: scratch` of the model's own ranks.
"""

import argparse
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks import trials  # noqa: E402

KNOWN = {"share", "task", "sibling", "settings"}


def check(label: str, source) -> None:
    """Raise `ValueError` for a `ranks_from` that says nothing, or what it cannot say."""
    if not isinstance(source, dict) or not source or source.keys() - KNOWN:
        raise ValueError(f"ranks_from of {label!r} must have some of {', '.join(sorted(KNOWN))}, got {source!r}")
    if not 0 < source.get("share", 1) <= 1:
        raise ValueError(f"ranks_from of {label!r} has the share {source['share']}; give one above 0 and up to 1")


def source_task(trial: dict) -> str:
    """The task whose rows are searched."""
    return trial["source"].get("task", {}).get(trial["task"], trial["task"])


def described(trial: dict) -> str:
    """Where the ranks of a trial come from, in words."""
    source = trial["source"]
    words = [f"{source['share']:.0%} of the rows"] if "share" in source else []
    words += [f"rows of {source_task(trial)}"] if "task" in source else []
    words += ["the smaller sibling"] if source.get("sibling") else []
    return "ranks searched on " + ", ".join(words or ["the same rows"])


def map_depth(ranks, from_layers: int, to_layers: int):
    """Ranks of a model of another depth: block j of L takes the ranks of the block at the same relative depth,

        i = ⌊(j + 1/2) L' / L⌋,    L' = `from_layers`, L = `to_layers`

    so a block of a model of half the depth serves two, and a model of twice the depth gives every other of its blocks.

    Args:
        ranks: `LearnedRanks` whose names have the block as their first number; names without a number are kept.
        from_layers, to_layers: blocks of the model that was searched, and of the other one.
    Returns:
        `LearnedRanks` without selection variables and fingerprint: no search of the other model made them.
    Raises:
        ValueError: if a depth is not positive, or a name has a block beyond `from_layers`.
    Example:
        >>> from autolora_trainer.ranks import LearnedRanks, ModuleRank
        >>> ranks = LearnedRanks({f"layer.{i}.query": ModuleRank(r) for i, r in enumerate((1, 8))})
        >>> map_depth(ranks, 2, 4).ranks
        {'layer.0.query': 1, 'layer.1.query': 1, 'layer.2.query': 8, 'layer.3.query': 8}
    """
    from autolora_trainer.ranks import LearnedRanks, ModuleRank

    if min(from_layers, to_layers) < 1:
        raise ValueError(f"Both models need at least one block, got {from_layers} and {to_layers}.")
    blocks: dict[int | None, list[tuple[str, str, int]]] = {}  # block -> (what stands before it, after it, rank)
    for name, rank in ranks.ranks.items():
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        block = None if place is None else int(parts[place])
        if block is not None and block >= from_layers:
            raise ValueError(f"{name!r} is in block {block}, and the model that was searched has {from_layers}.")
        before, after = (name, "") if place is None else (".".join(parts[:place]), ".".join(parts[place + 1 :]))
        blocks.setdefault(block, []).append((before, after, rank))
    mapped = {name: ModuleRank(rank) for name, _, rank in blocks.get(None, [])}
    for block in range(to_layers):
        for before, after, rank in blocks.get((2 * block + 1) * from_layers // (2 * to_layers), []):
            mapped[".".join(filter(None, (before, str(block), after)))] = ModuleRank(rank)
    return LearnedRanks(mapped, initial_rank=ranks.initial_rank, rank_rule=ranks.rank_rule)


def keep_every_other_block(model):
    """Drop the second, fourth, … block of a `PreTrainedModel`, in place: its smaller sibling, to be saved and loaded.

    Raises:
        ValueError: if no list of modules is as long as the model is deep.
    """
    from torch.nn import ModuleList

    depth = model.config.num_hidden_layers
    lists = [name for name, module in model.named_modules() if isinstance(module, ModuleList) and len(module) == depth]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of {depth} blocks to take every other one from.")
    before, _, name = lists[0].rpartition(".")
    kept = ModuleList(list(model.get_submodule(lists[0]))[::2])
    setattr(model.get_submodule(before), name, kept)
    model.config.num_hidden_layers = len(kept)
    return model


def search(options, trial: dict, settings: list[str], folder: str) -> dict:
    """Run the search that a trial's ranks come from, with one step of training after it, which nobody reads.

    Args:
        options: `data`, `model`, `sibling` and `isolate` of the command line.
        trial: with `source`; see above.
        settings: the arguments of the trial itself.
        folder: of the search.
    Returns:
        `path` of the ranks, `cost` of the search, and its `command`.
    """
    from autolora_trainer.ranks import LearnedRanks

    source, task = trial["source"], source_task(trial)
    model = options.sibling if source.get("sibling") else options.model
    if source.get("sibling") and not (options.sibling and options.model):
        raise ValueError("ranks of a smaller model need its folder and the larger one's. Give --sibling and --model.")
    where = trials.places(options.data, model, task)
    changes = {"task_name": task, **source.get("settings", {})}
    if "share" in source:
        changes["max_train_samples"] = max(2, round(source["share"] * _training_rows(settings, where)))
    changes |= {"do_train": True, "do_eval": False, "do_predict": False, "max_steps": 1, "save_strategy": "no"}
    typed, script = [*settings, *trials.arguments(changes)], trials.script_of(task)  # the last of two words wins
    shutil.rmtree(folder, ignore_errors=True)
    trials.run(script, [*typed, *where, f"--output_dir={folder}"], options.isolate)
    path = os.path.join(folder, "ranks.json")
    if source.get("sibling"):
        depths = _layers(options.sibling), _layers(options.model)
        map_depth(LearnedRanks.load(path), *depths).save(path)
    with open(os.path.join(folder, "cost.json"), encoding="utf-8") as file:
        cost = json.load(file)["search"]
    name = "SIBLING" if source.get("sibling") else "MODEL"
    return {"path": path, "cost": cost, "command": trials.shown_command(script, typed, task, name)}


def with_cost(row: dict, searched: dict) -> dict:
    """The row of a trial with what the search of its ranks cost."""
    cost = searched["cost"]
    return {
        **row,
        "search_seconds": cost["wall_seconds"],
        "wall_seconds": round(row["wall_seconds"] + cost["wall_seconds"], 3),
        "passes": row["passes"] + cost["passes"],
        "peak_memory_mb": max(row["peak_memory_mb"], cost["peak_memory_mb"]),
        "source_command": searched["command"],
        "command": f"{row['command']} --ranks RANKS",
    }


def _training_rows(settings: list[str], where: list[str]) -> int:
    limit, path = trials.value_of(settings, "max_train_samples"), trials.value_of(where, "train_file")
    if limit is not None or path is None:
        return int(limit or 0)
    with open(path, encoding="utf-8") as file:
        return sum(bool(line.strip()) for line in file)


def _layers(model: str) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model).num_hidden_layers


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description="Write a model with every other block of another, and its tokenizer.")
    parser.add_argument("--model", required=True, help="folder of the larger model")
    parser.add_argument("--output", required=True, help="folder of the smaller one")
    options = parser.parse_args(argv)
    from transformers import AutoModel, AutoTokenizer

    smaller = keep_every_other_block(AutoModel.from_pretrained(options.model))
    smaller.save_pretrained(options.output)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.output)
    print(f"{smaller.config.num_hidden_layers} blocks, {smaller.num_parameters():,} parameters: {options.output}")


if __name__ == "__main__":
    main()
