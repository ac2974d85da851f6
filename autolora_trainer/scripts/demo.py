"""What the built-in sample shows after its run: the score beside uniform LoRA of the same size, uniform rank 8 and the
majority class, the cost of the search, and, where AutoLoRA does not win, that it does not."""

import dataclasses
import os
import time
from collections import Counter

from autolora_trainer.files import read_json
from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.report.tables import format_comparison
from autolora_trainer.runs.outputs import COST_FILE
from autolora_trainer.scripts.pipeline import execute
from autolora_trainer.scripts.request import settle


def compare_with_uniform(task, results: dict, model, data, settings, training, started: float) -> None:
    """After a search on the sample, train uniform LoRA at the size of the learned ranks and at rank 8, same seed and
    settings, and print all scores; after any other run nothing.

    Args:
        task: a fresh `TaskKind` of the script.
        results: all_results.json of the AutoLoRA run.
        model, data, settings, training: the parsed arguments of that run.
        started: `time.perf_counter()` when the script began.
    """
    first = settle(task, model, data, settings, training)
    searched = first.training.do_train and first.method.searches(first)
    if first.data.task_name != "sample" or not searched or "eval_accuracy" not in results:
        return
    folder = first.output_dir
    rivals = {
        "same size": {"ranks": os.path.join(folder, RANKS_FILE), "size": None},
        "rank 8": {"ranks": None, "size": "lora:8"},
    }
    found = {}
    for name, changes in rivals.items():
        first.say(f"\nfor comparison: uniform LoRA of {'the same size' if name == 'same size' else name}, same seed")
        found[name] = execute(task, model, data, *_uniform(first, settings, training, name, changes))
    if not first.is_main_process:
        return
    rows = [{"method": "majority class", "metric": "accuracy", "score": majority_share(task.rows.datasets)}]
    rows += [_row(f"uniform LoRA, {name}", own, _place(folder, name)) for name, own in found.items()]
    rows.append(_row("AutoLoRA", results, folder))
    first.say("\n" + format_comparison(rows))
    cost = read_json(os.path.join(folder, COST_FILE))
    first.say(verdict(results, found["same size"], found["rank 8"], cost, settings))
    first.say(f"adapter, rank_heatmap.png and rank_curve.png in {folder}")
    first.say(f"the whole run took {time.perf_counter() - started:.0f} s")


def _place(folder: str, name: str) -> str:
    return os.path.join(folder, "uniform", name.replace(" ", "-"))


def _uniform(first, settings, training, name: str, changes: dict):
    """The settings and the training of a rival."""
    retrain_alone = {"retrain_init": None, "retrain_cut": 0.0, "retrain_epochs": None, "count_search": False}
    settings_of = dataclasses.replace(settings, method="uniform", overwrite=True, **retrain_alone, **changes)
    return settings_of, dataclasses.replace(
        first.training,
        output_dir=_place(first.output_dir, name),
        num_train_epochs=settings.retrain_epochs or training.num_train_epochs,
        resume_from_checkpoint=None,
    )


def _row(method: str, results: dict, folder: str) -> dict:
    seconds = read_json(os.path.join(folder, COST_FILE))["total"]["wall_seconds"]
    size, score = results["adapter_params"], results["eval_accuracy"]
    return {"method": method, "metric": "accuracy", "score": score, "adapter_params": size, "wall_seconds": seconds}


def majority_share(datasets: dict) -> float:
    """Accuracy of always answering the training set's most frequent label, on the validation rows."""
    train, validation = (datasets[split]["labels"] for split in ("train", "validation"))
    label = Counter(train).most_common(1)[0][0]
    return sum(value == label for value in validation) / len(validation)


def verdict(results: dict, same: dict, eight: dict, cost: dict, settings) -> str:
    """Three sentences: who is ahead at the same size, what is left of uniform rank 8, and what the search took; from
    all_results.json of the three runs, and cost.json and `MethodArguments` of the first."""
    points = 100 * (results["eval_accuracy"] - same["eval_accuracy"])
    if points > 0:
        first = f"AutoLoRA is {points:.1f} points above uniform LoRA of the same size, on one seed."
    elif points == 0:
        first = "AutoLoRA and uniform LoRA of the same size score the same here."
    else:
        first = f"AutoLoRA does not win here: {-points:.1f} points below uniform LoRA of the same size, on one seed."
    size = results["adapter_params"] / eight["adapter_params"]
    points = 100 * (results["eval_accuracy"] - eight["eval_accuracy"])
    side = "below" if points < 0 else "above"
    second = f"With {size:.0%} of the parameters of rank 8 it is {abs(points):.1f} points {side} it."
    share = cost["search"]["wall_seconds"] / cost["retrain"]["wall_seconds"]
    begun = ", and the retrain began with what it had learned" if settings.warm_start else ""
    return f"{first} {second} Its search took {share:.0%} of the time of one training{begun}."
