"""What the built-in sample shows after its run: the score beside uniform LoRA of the same size and beside the majority
class, the cost of the search, and, where AutoLoRA does not win, that it does not."""

import dataclasses
import json
import os
import time
from collections import Counter

from autolora_trainer import report
from autolora_trainer.methods.grid import TRIALS
from autolora_trainer.pipeline import execute


def compare_with_uniform(application, results: dict, model, data, method, training, started: float) -> None:
    """Train uniform LoRA at the size of the learned ranks, same seed and settings, and print both scores.

    Args:
        application: a fresh application of the script.
        results: all_results.json of the AutoLoRA run.
        model, data, method, training: the parsed arguments of that run.
        started: `time.perf_counter()` when the script began.
    """
    if "eval_accuracy" not in results:  # there is nothing to compare
        return
    output_dir = training.output_dir
    uniform_method = dataclasses.replace(
        method,
        method="uniform",
        ranks=os.path.join(output_dir, "ranks.json"),
        retrain_init=None,
        retrain_cut=0.0,
        retrain_epochs=None,
        overwrite=True,
    )
    uniform_training = dataclasses.replace(
        training,
        output_dir=os.path.join(output_dir, "uniform"),
        num_train_epochs=method.retrain_epochs or training.num_train_epochs,
        resume_from_checkpoint=None,
    )
    if training.process_index == 0:
        print(
            f"\nfor comparison: uniform LoRA with {results['adapter_params']:,} adapter parameters, same seed",
            flush=True,
        )
    uniform = execute(application, model, data, uniform_method, uniform_training)
    if training.process_index != 0:
        return
    majority = majority_share(application)
    rows = [
        {"method": "majority class", "metric": "accuracy", "score": majority},
        {"method": "uniform LoRA, same size", "metric": "accuracy", "score": uniform["eval_accuracy"]},
        {"method": "AutoLoRA", "metric": "accuracy", "score": results["eval_accuracy"]},
    ]
    for row, source in zip(rows[1:], (uniform, results)):
        folder = output_dir if source is results else uniform_training.output_dir
        with open(os.path.join(folder, "cost.json"), encoding="utf-8") as file:
            cost = json.load(file)
        row["adapter_params"], row["wall_seconds"] = source["adapter_params"], cost["total"]["wall_seconds"]
    print("\n" + report.format_comparison(rows), flush=True)
    print(verdict(results, uniform, cost, method), flush=True)
    print(f"adapter and rank_heatmap.png in {output_dir}", flush=True)
    print(f"the whole run took {time.perf_counter() - started:.0f} s", flush=True)


def majority_share(application) -> float:
    """Accuracy of always answering the training set's most frequent label, on the validation rows."""
    train, validation = (application.datasets[split]["labels"] for split in ("train", "validation"))
    label = Counter(train).most_common(1)[0][0]
    return sum(value == label for value in validation) / len(validation)


def verdict(results: dict, uniform: dict, cost: dict, method) -> str:
    """Two sentences: who is ahead, and what the search took and spares.

    Args:
        results, uniform: all_results.json of the two runs.
        cost: cost.json of the first.
        method: `MethodArguments` of the first.
    """
    points = 100 * (results["eval_accuracy"] - uniform["eval_accuracy"])
    if points > 0:
        first = f"AutoLoRA is {points:.1f} points above uniform LoRA of the same size, on one seed."
    elif points == 0:
        first = "AutoLoRA and uniform LoRA of the same size score the same here."
    else:
        first = f"AutoLoRA does not win here: {-points:.1f} points below uniform LoRA of the same size, on one seed."
    share = cost["search"]["wall_seconds"] / cost["retrain"]["wall_seconds"]
    begun = ", and the retrain began with what it had learned" if method.warm_start else ""
    rows = 1 - method.val_fraction  # of a trial; its scoring of the others is not counted
    return (
        f"{first} Its search took {share:.0%} of the time of one training{begun}; the {TRIALS} trials of --method "
        f"grid, each on {rows:.0%} of the rows, would take about {TRIALS * rows:.0%}."
    )
