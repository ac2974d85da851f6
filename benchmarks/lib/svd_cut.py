"""The post-hoc SVD cut, which needs no training of its own: a uniform adapter is cut to every budget by its largest
singular values over all modules, and evaluated as it is."""

import os
import shutil

from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import AutoModelForSequenceClassification

from autolora_trainer.lora.svd import copy_cut, cut_to_ranks
from autolora_trainer.methods.base import count_parameters
from autolora_trainer.methods.svd import ranks_by_singular_values
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from benchmarks.lib import trials


def cut_row(options, trial: dict, settings: list[str], folder: str, budget: int) -> dict:
    """The row of the adapter in `folder`, cut to a budget; `trial` and `settings` are those of its training."""
    labels = 3 if trial["task"] == "mnli" else 2
    wide = AutoPeftModelForSequenceClassification.from_pretrained(folder, is_trainable=True, num_labels=labels)
    pattern = ranks_by_singular_values(wide, f"lora:{budget}", min_rank=0)
    cut_to_ranks(wide, pattern)
    ranks = LearnedRanks(
        {name: ModuleRank(rank) for name, rank in pattern.items()},
        initial_rank=LearnedRanks.load(os.path.join(folder, "ranks.json")).initial_rank,
        rank_rule="svd_cut",
    )
    base = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=labels)
    alpha = int(trials.value_of(settings, "lora_alpha") or 16)
    small = build_adapter(base, ranks, LoraConfig(task_type="SEQ_CLS", lora_alpha=alpha))
    copy_cut(wide, small)
    target = os.path.join(folder, f"cut-{budget}")
    small.save_pretrained(target)
    typed = [word for word in settings if not word.startswith(("--rank_budget", "--method"))]
    where = [*trials.places(options.data, options.model, trial["task"]), f"--output_dir={target}"]
    results = trials.run("run_glue", [*typed, "--do_eval", "--method=lora", *where], options.isolate)
    ranks.save(os.path.join(target, "ranks.json"))
    shutil.copy(os.path.join(folder, "cost.json"), target)  # the training is what it cost
    results |= dict(zip(("adapter_params", "head_params"), count_parameters(small)))
    row = trials.row_of({**trial, "method": trials.SVD_CUT, "budget": budget}, settings, results, target, "run_glue")
    return {**row, "command": f"{row['command']} # then cut to lora:{budget}"}
