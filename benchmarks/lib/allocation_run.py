"""One trial of `allocation.py`: what it trains, and the row that is kept of it."""

import math
import os
import time

import torch
from safetensors.torch import load_file, save_file

from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.svd import thin_svd
from autolora_trainer.methods.base import Built, given_pattern
from autolora_trainer.methods.search_phase import search_arguments
from autolora_trainer.scripts.job import Job, make_trainer
from autolora_trainer.search.callback import RankSelectionCallback
from autolora_trainer.search.handover import handover_tensors, start_from
from autolora_trainer.search.rules import ordered
from benchmarks.lib import allocation_plan as plan
from benchmarks.lib import allocation_sizes as sizes
from benchmarks.lib import trials
from benchmarks.lib.allocation_tasks import TASKS, Search, held_out_loss, prepared, score


def run(trial: dict, options, rows: list[dict]) -> dict:
    """Run a trial with what earlier rows say; its row."""
    started = time.perf_counter()
    with trials.scratch_folder(options.scratch) as folder:
        found = KINDS[trial["kind"]](trial, options, rows, folder)
    return {**trial, **found, "seconds": round(time.perf_counter() - started), **trials.origin()}


def _job(trial: dict, options, folder: str, **changes) -> Job:
    task = TASKS[trial["task"]]
    changes = {"method": "autolora", "learning_rate": task.rate, **changes}
    return prepared(task, trial["seed"], options, trial["stage"], folder, **changes)


def _information(trial, options, rows, folder) -> dict:
    """Bits that the training rows can teach: (loss without adapter less that of rank 32) x targets."""
    job = _job(trial, options, folder)
    costs, without = job.source.costs, _without(job)
    wide, _ = _trained(job, dict.fromkeys(costs, 32))
    labels = job.rows.datasets["train"]["labels"]
    shift = TASKS[trial["task"]].script == "run_nlg"  # nothing predicts the first token
    targets = sum(label != -100 for row in labels for label in row[shift:])
    bits = round((without - wide) / math.log(2) * targets)
    return {"without": without, "loss": wide, "targets": targets, "bits": bits, "costs": costs}


def _none(trial, options, rows, folder) -> dict:
    return {"loss": _without(_job(trial, options, folder))}


def _one_kind(trial, options, rows, folder) -> dict:
    job = _job(trial, options, folder)
    loss, _ = _trained(job, sizes.steps_of_ladder(job.source.costs)[trial["label"]])
    return {"loss": loss}


def _tuning(trial, options, rows, folder) -> dict:
    size = "half" if trial["task"] in sizes.CAPACITY else {"uniform": "rank 8"}.get(trial["method"], "found")
    trial = {"size": size, **trial}
    job, start = _job(trial, options, folder, learning_rate=trial["rate"]), None
    ranks = sizes.ranks_of(trial, job.source.costs, rows)
    if trial["method"] == "warm":
        chosen = sizes.components_of(trial, job.source.costs, rows)
        start = _kept(sizes.search_for(trial, rows), options, chosen, folder)
    loss, _ = _trained(job, ranks, start=start)
    return {"loss": loss, "parameters": sizes.parameters(ranks, job.source.costs)}


def _train(trial, options, rows, folder) -> dict:
    task, method, steps = TASKS[trial["task"]], trial["method"], TASKS[trial["task"]].steps
    rate, extra = plan.rate_of(trial["task"], method, rows, trial["size"]), 0
    if trial["account"] == "b":
        extra = sizes.search_for(trial, rows)["passes"]
    changes = {"learning_rate": rate, "max_steps": steps + extra}
    if method == "adalora":
        step = sizes.step_of(trial["task"], trial["size"], rows)
        job = _job(trial, options, folder, method="adalora", size=f"lora:{step}", **changes)
        loss, value = _fitted(job, job.request.method.prepare(job)(), task.metric)
        return {"loss": loss, "score": value, "rate": rate, "steps": steps + extra}
    job, start = _job(trial, options, folder, **changes), None
    ranks = sizes.ranks_of(trial, job.source.costs, rows)
    if method == "warm":
        chosen = sizes.components_of(trial, job.source.costs, rows)
        start = _kept(sizes.search_for(trial, rows), options, chosen, folder)
    told = {
        "rate": rate, "steps": steps + extra, "parameters": sizes.parameters(ranks, job.source.costs),
        "ranks": list(ranks.values()), "metric": task.metric,
    }  # fmt: skip
    if start is None and (same := _same({**trial, **told}, rows)):
        return {**told, "loss": same["loss"], "score": same["score"]}
    metric = task.metric if method in ("contributions", "uniform", "warm") else "loss"
    loss, value = _trained(job, ranks, metric, start)
    return {**told, "loss": loss, "score": value}


def _same(row: dict, rows: list[dict]) -> dict | None:
    """The row of a training that was the same in everything: a size of uniform's ladder may be rank 8."""
    names = ("kind", "stage", "task", "seed", "method", "rate", "steps", "ranks")
    return next((other for other in rows if all(other.get(name) == row[name] for name in names)), None)


def _search(trial, options, rows, folder) -> dict:
    """A search of the package: the order of every method that reads one, and the size found."""
    fixed = {"selection_learning_rate": 1e-12} if trial.get("label") == "fixed" else {}
    trainer = searched(_job(trial, options, folder, initial_rank=trial["k"], **fixed))
    found, parts = trainer.rank_selection.found, trainer.gates.parts
    alphas = dict(zip(parts, trainer.gates.selection.tolist()))
    with trainer.gates.folded():
        sigmas = {n: thin_svd(p.lora_B.detach(), p.lora_A.detach())[1].tolist() for n, p in parts.items()}
    values = {name: torch.tensor(own) for name, own in found.contributions.items()}
    orders = {"contributions": ordered(values, parts, 0, None), "svd": by_value(sigmas), "count": by_value(alphas)}
    names = {name: number for number, name in enumerate(parts)}
    everything = {name: list(range(part.rank)) for name, part in parts.items()}
    path = _weights(trial, options)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file(handover_tensors(trainer.gates, everything, True, trainer.model), path)
    passes = trainer.state.global_step + trainer.selection_passes + trainer.measured_passes
    return {
        "steps": trainer.state.global_step, "passes": math.ceil(passes), "targets": found.curve.targets,
        "settled": trainer.rank_selection.settled, "decided": found.curve.decided, "found": found.ranks,
        "curve": [[p.parameters, round(p.loss, 5), round(p.error, 5)] for p in found.curve.points],
        "contributions": {name: [float(f"{x:.4g}") for x in own] for name, own in found.contributions.items()},
        "orders": {rule: [[names[name], j] for name, j in order] for rule, order in orders.items()},
        "alpha_moved": min(max(own) - min(own) for own in alphas.values()),
    }  # fmt: skip


def _weights(trial: dict, options) -> str:
    """Where the components of a search lie, for trainings that begin with them; they are not kept with the rows."""
    name = "-".join(str(trial[key]) for key in ("stage", "task", "seed", "k"))
    return os.path.join(f"{options.output}.weights", f"{name}-{trial.get('label') or 'search'}.safetensors")


def _kept(search: dict, options, chosen: dict[str, list[int]], folder: str) -> dict[str, torch.Tensor]:
    """What a training begins with: some components of the search, and its head."""
    if not os.path.exists(path := _weights(search, options)):  # its row came without them
        _search(search, options, [], os.path.join(folder, "search"))
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
    for name, places in chosen.items():
        kept |= {f"A.{name}": tensors[f"A.{name}"][places], f"B.{name}": tensors[f"B.{name}"][:, places].contiguous()}
    return kept


def searched(job: Job) -> Search:
    """A search that has ended."""
    arguments = search_arguments(job.request)
    train, order_rows, size_rows = job.split_three(arguments.val_fraction)
    trainer = Search(
        model=add_lora(job.source.base_model(), job.source.lora_config(r=arguments.initial_rank)),
        args=arguments,
        train_dataset=train,
        val_dataset=order_rows,
        size_dataset=size_rows,
        data_collator=job.rows.collator,
        processing_class=job.rows.tokenizer,
        callbacks=[RankSelectionCallback("the base model")],
    )
    trainer.train()
    return trainer


KINDS = {
    **{"information": _information, "one_kind": _one_kind, "tuning": _tuning},
    **{"none": _none, "search": _search, "train": _train},
}


def by_value(values: dict[str, list[float]]) -> list[tuple[str, int]]:
    """Components by falling value.

    Example:
        >>> by_value({"q": [3.0, 1.0], "v": [2.0, 0.5]})
        [('q', 0), ('v', 0), ('q', 1), ('v', 1)]
    """
    return sorted(((n, j) for n, own in values.items() for j in range(len(own))), key=lambda c: -values[c[0]][c[1]])


def _trained(job: Job, ranks: dict[str, int], metric: str = "loss", start: dict | None = None):
    """(held-out loss, score) of an adapter of these ranks, trained from scratch or from where a search ended."""
    base = job.source.base_model()
    model = job.build(given_pattern(job, "given", ranks, base), base)
    if start is not None:
        start_from(start, model)
    return _fitted(job, Built(model), metric)


def _fitted(job: Job, built: Built, metric: str) -> tuple[float, float | None]:
    """(held-out loss, score) of a method's model, trained."""
    trainer = make_trainer(job, built.model, built.callbacks, built.trainer, built.arguments)
    trainer.train()
    model = built.finish(trainer.model) if built.finish else trainer.model
    return held_out_loss(job, model), score(job, trainer, metric)


def _without(job: Job) -> float:
    """The held-out loss of the base model, its head trained alone where it has one."""
    base = job.source.base_model()
    model = job.build(given_pattern(job, "given", dict.fromkeys(job.source.costs, 1), base), base)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    if any(parameter.requires_grad for parameter in model.parameters()):
        make_trainer(job, model, []).train()
    return held_out_loss(job, model)
