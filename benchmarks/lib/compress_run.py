"""One trial of `compress.py`: an adapter of rank 16 and what is left of it when cut, or one of a size from scratch."""

import time
import warnings
from dataclasses import replace

import torch
from peft import convert_to_lora, get_peft_model, set_peft_model_state_dict
from transformers import TrainingArguments

from autolora_trainer.heldout.passes import ordered_batches
from autolora_trainer.heldout.prefixes import chosen_of, mean_loss, measured_prefixes
from autolora_trainer.heldout.split import split_rows
from autolora_trainer.lora.cut import cut, cuttable_parts, leading, singular_values
from autolora_trainer.methods.base import given_pattern
from autolora_trainer.names import PREFIX
from autolora_trainer.scripts.job import Job, make_trainer
from autolora_trainer.search.rules import filled, ordered
from autolora_trainer.shrink.compressing import compress
from benchmarks.lib import trials
from benchmarks.lib.allocation_run import by_value
from benchmarks.lib.allocation_tasks import HELD_OUT, TASKS, held_out_loss, prepared, row_losses

TESTS = 400  # rows that are scored
RANK = 16  # of the adapter that is given, everywhere
SIZES = {"1/16": 1, "1/8": 2, "1/4": 4, "1/2": 8}  # uniform ranks
HEALED = ("1/8", "1/4")
HEAL_SHARE, HEAL_RATE = 0.05, 0.25  # of the training's steps, and of its rate
RATES = {"e2e": 4e-3, "jnlpba": 4e-3, "smollm2": 1e-3}  # uniform's in allocation.jsonl; SmolLM2's the task's


def run(trial: dict, options) -> dict:
    """Run a trial; its row."""
    started = time.perf_counter()
    with trials.scratch_folder(options.scratch) as folder:
        job, held_out = _rows(trial, options, folder)
        found = KINDS[trial["kind"]](trial, job, held_out, folder)
    return {**trial, **found, "seconds": round(time.perf_counter() - started), **trials.origin()}


def _rows(trial: dict, options, folder: str) -> tuple[Job, object]:
    """The task with four fifths of its training rows, and the fifth that judges cuts."""
    task = replace(TASKS[trial["task"]], tests=TESTS)
    job = prepared(task, trial["seed"], options, "final", folder, method="autolora", learning_rate=RATES[task.name])
    train, held_out = split_rows(job.rows.datasets["train"], HELD_OUT, trial["seed"], job.rows.groups)
    rows = job.rows.datasets["train"]
    job.rows.datasets["train"], job.rows.groups = rows.select(train), None
    return job, rows.select(held_out)


def _scratch(trial: dict, job: Job, held_out, folder: str) -> dict:
    """Uniform ranks of a size, trained as the wide adapter was."""
    ranks = dict.fromkeys(job.source.costs, SIZES[trial["size"]])
    parameters = sum(job.source.costs[name] * rank for name, rank in ranks.items())
    return {"parameters": parameters, "loss": held_out_loss(job, _trained(job, ranks))}


def _cuts(trial: dict, job: Job, held_out, folder: str) -> dict:
    """A wide adapter, its cuts by every method at every size, the size found, and what healing gives back."""
    model, keep = _trained(job, dict.fromkeys(job.source.costs, RANK)), _columns(held_out)
    started = time.perf_counter()
    args = TrainingArguments(
        folder, per_device_train_batch_size=8, use_cpu=not torch.cuda.is_available(), seed=trial["seed"],
        bf16=job.request.training.bf16, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    small = compress(model, held_out.select_columns(keep), args=args, data_collator=job.rows.collator,
                     processing_class=job.rows.tokenizer, tolerance=0.01)  # fmt: skip
    measured, parts = time.perf_counter() - started, cuttable_parts(model)
    costs = {name: part.cost for name, part in parts.items()}
    phi = {name: torch.tensor(module.contributions) for name, module in small.ranks.modules.items()}
    order, sigmas = ordered(phi, parts, 0, None), singular_values(parts)
    by_sigma = by_value({name: own.tolist() for name, own in sigmas.items()})
    picked = filled(order, costs, small.file.parameters)
    tests = ordered_batches(list(job.rows.datasets["validation"].select_columns(keep)), 32, job.rows.collator)
    rows = []
    with measured_prefixes(model, tests, row_losses) as losses:
        loss = lambda chosen: mean_loss(losses(chosen))
        given, without = loss(by_sigma), loss([])
        found = _line("contributions", "found", picked, costs, loss(picked))
        for size, rank in SIZES.items():
            within = rank * sum(costs.values())
            leading = [(name, j) for name, own in sigmas.items() for j in range(min(rank, len(own)))]
            cuts = {"contributions": filled(order, costs, within), "singular values": filled(by_sigma, costs, within)}
            rows += [_line(m, size, own, costs, loss(own)) for m, own in {**cuts, "uniform": leading}.items()]
    rows += [_peft(job, model, size, rank * sum(costs.values())) for size, rank in SIZES.items()]
    own = {size: filled(order, costs, SIZES[size] * sum(costs.values())) for size in HEALED} | {"found": picked}
    return {
        "parameters": RANK * sum(costs.values()), "given": given, "without": without, "cuts": rows, "found": found,
        "healed": [_healed(job, model, size, chosen, costs) for size, chosen in own.items()],
        "steps": job.request.training.max_steps, "tests": len(job.rows.datasets["validation"]),
        "compress_seconds": round(measured),
        "curve": [[p.parameters, round(p.loss, 5), round(p.error, 5)] for p in small.curve.points],
    }  # fmt: skip


def _columns(rows) -> list[str]:
    return [n for n in rows.column_names if n in ("input_ids", "attention_mask", "token_type_ids", "labels")]


def _trained(job: Job, ranks: dict[str, int]) -> torch.nn.Module:
    base = job.source.base_model()
    trainer = make_trainer(job, job.build(given_pattern(job, "given", ranks, base), base), [])
    trainer.train()
    if (original := vars(trainer.model).pop("_original_forward", None)) is not None:
        trainer.model.forward = original  # without the training's autocast
    return trainer.model


def _line(method: str, size: str, chosen, costs, loss: float) -> dict:
    return {"method": method, "size": size, "parameters": sum(costs[name] for name, _ in chosen), "loss": loss}


def _peft(job: Job, model, size: str, within: int) -> dict:
    """PEFT's own conversion with ranks by a share of the energy: the largest share that stays within a size."""
    parts = cuttable_parts(model)
    sigmas, low, high = singular_values(parts), 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        ranks = {name: len(places) for name, places in leading(sigmas, share).items()}
        fits = sum(parts[name].cost * rank for name, rank in ranks.items()) <= within
        low, high = (share, high) if fits else (low, share)
    for share in (low, low * (1 - 1e-4), low * (1 - 1e-3)):  # its singular values are those of float32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is LoRA already
            config, tensors = convert_to_lora(model, share)
        own = sum(tensor.numel() for name, tensor in tensors.items() if "lora_" in name)
        if own <= within:
            break
    else:  # a component of every module is more than that
        return {"method": "convert_to_lora", "size": size, "parameters": None, "loss": None}
    given = model.peft_config["default"]  # whose head is saved beside the updates
    config.modules_to_save, config.task_type = given.modules_to_save, given.task_type
    config.target_modules = {name.removeprefix(PREFIX).split(".lora_")[0] for name in tensors}
    adapted = get_peft_model(job.source.base_model(), config)
    set_peft_model_state_dict(adapted, dict(tensors))
    trained, own_head = dict(model.named_parameters()), dict(adapted.named_parameters())
    with torch.no_grad():
        for name in (name for name in trained if "modules_to_save.default" in name):
            own_head[name].copy_(trained[name])
    return {"method": "convert_to_lora", "size": size, "parameters": own, "loss": held_out_loss(job, adapted.eval())}


def _healed(job: Job, model, size: str, chosen, costs) -> dict:
    """A cut adapter after a few steps of ordinary training."""
    config, tensors = cut(model, chosen_of(chosen))
    config.inference_mode = False
    adapted = get_peft_model(job.source.base_model(), config)
    set_peft_model_state_dict(adapted, dict(tensors))
    steps = max(1, round(HEAL_SHARE * job.request.training.max_steps))
    rate = HEAL_RATE * job.request.training.learning_rate
    trainer = make_trainer(job, adapted, [], changes={"max_steps": steps, "learning_rate": rate, "warmup_steps": 0})
    trainer.train()
    return _line("healed", size, chosen, costs, held_out_loss(job, trainer.model)) | {"steps": steps}


KINDS = {"cuts": _cuts, "scratch": _scratch}
