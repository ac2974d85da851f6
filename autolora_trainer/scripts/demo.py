"""What the built-in sample shows after its run: the score beside uniform LoRA of the same size and beside the majority
class, the cost of the search, and, where AutoLoRA does not win, that it does not."""

import dataclasses
import os
import time
from collections import Counter

from autolora_trainer.files import read_json
from autolora_trainer.methods.grid import TRIALS
from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.report.tables import format_comparison
from autolora_trainer.runs.outputs import COST_FILE
from autolora_trainer.scripts.pipeline import execute
from autolora_trainer.scripts.request import settle


def compare_with_uniform(task, results: dict, model, data, settings, training, started: float) -> None:
    """After a search on the sample, train uniform LoRA at the size of the learned ranks, same seed and settings, and
    print both scores; after any other run nothing.

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
    output_dir = first.output_dir
    uniform_settings = dataclasses.replace(
        settings,
        method="uniform",
        ranks=os.path.join(output_dir, RANKS_FILE),
        retrain_init=None,
        retrain_cut=0.0,
        retrain_epochs=None,
        overwrite=True,
    )
    uniform_training = dataclasses.replace(
        first.training,
        output_dir=os.path.join(output_dir, "uniform"),
        num_train_epochs=settings.retrain_epochs or training.num_train_epochs,
        resume_from_checkpoint=None,
    )
    first.say(f"\nfor comparison: uniform LoRA with {results['adapter_params']:,} adapter parameters, same seed")
    uniform = execute(task, model, data, uniform_settings, uniform_training)
    if not first.is_main_process:
        return
    majority = majority_share(task.rows.datasets)
    rows = [
        {"method": "majority class", "metric": "accuracy", "score": majority},
        {"method": "uniform LoRA, same size", "metric": "accuracy", "score": uniform["eval_accuracy"]},
        {"method": "AutoLoRA", "metric": "accuracy", "score": results["eval_accuracy"]},
    ]
    for row, source in zip(rows[1:], (uniform, results)):
        folder = output_dir if source is results else uniform_training.output_dir
        cost = read_json(os.path.join(folder, COST_FILE))
        row["adapter_params"], row["wall_seconds"] = source["adapter_params"], cost["total"]["wall_seconds"]
    print("\n" + format_comparison(rows), flush=True)
    print(verdict(results, uniform, cost, settings), flush=True)
    print(f"adapter and rank_heatmap.png in {output_dir}", flush=True)
    print(f"the whole run took {time.perf_counter() - started:.0f} s", flush=True)


def majority_share(datasets: dict) -> float:
    """Accuracy of always answering the training set's most frequent label, on the validation rows."""
    train, validation = (datasets[split]["labels"] for split in ("train", "validation"))
    label = Counter(train).most_common(1)[0][0]
    return sum(value == label for value in validation) / len(validation)


def verdict(results: dict, uniform: dict, cost: dict, settings) -> str:
    """Two sentences: who is ahead, and what the search took and spares, from all_results.json of the two runs, and
    cost.json and `MethodArguments` of the first."""
    points = 100 * (results["eval_accuracy"] - uniform["eval_accuracy"])
    if points > 0:
        first = f"AutoLoRA is {points:.1f} points above uniform LoRA of the same size, on one seed."
    elif points == 0:
        first = "AutoLoRA and uniform LoRA of the same size score the same here."
    else:
        first = f"AutoLoRA does not win here: {-points:.1f} points below uniform LoRA of the same size, on one seed."
    share = cost["search"]["wall_seconds"] / cost["retrain"]["wall_seconds"]
    begun = ", and the retrain began with what it had learned" if settings.warm_start else ""
    rows = 1 - settings.val_fraction  # of a trial; its scoring of the others is not counted
    return (
        f"{first} Its search took {share:.0%} of the time of one training{begun}; the {TRIALS} trials of --method "
        f"grid, each on {rows:.0%} of the rows, would take about {TRIALS * rows:.0%}."
    )
