"""What comes out of a run: scores, files, the card, and what is said of it."""

import dataclasses
import os
import sys

from transformers import Trainer

from autolora_trainer.drawing import drawn
from autolora_trainer.errors import usage_errors
from autolora_trainer.hub.card import write_model_card
from autolora_trainer.hub.public import public_command
from autolora_trainer.hub.push import push_to_hub
from autolora_trainer.methods.base import Built, count_parameters, load_saved
from autolora_trainer.methods.registry import FORMS
from autolora_trainer.report.findings import save_findings
from autolora_trainer.report.history import HISTORY_FILE, save_selection_history
from autolora_trainer.report.page import PAGE_FILE, save_page
from autolora_trainer.report.tables import cost_table, format_cost, score_line, score_table
from autolora_trainer.runs.outputs import COST_FILE, SEARCH_FOLDER
from autolora_trainer.scripts.job import Job, make_trainer
from autolora_trainer.training.cost import total_cost
from autolora_trainer.training.passes import full_precision
from autolora_trainer.training.processes import wait_for_everyone


def finish(job: Job, trainer: Trainer, built: Built, metrics: dict) -> dict:
    """Evaluate and predict with a trained and saved model, write every file of the result, push; `metrics` are the
    training's. The content of all_results.json."""
    request, training = job.request, job.request.training
    adapter, (_, head) = request.method.parameters(trainer.model), count_parameters(trainer.model)
    evaluation = evaluate(job, trainer) if training.do_eval else {}
    prediction = predict(job, trainer) if training.do_predict else {}
    results = {
        **metrics,
        **evaluation,
        **prediction,
        "method": request.method.name,
        **({"peft_type": request.settings.peft_type.upper()} if request.settings.peft_type else {}),
        "task": request.data.task_name,
        "seed": training.seed,
        "adapter_params": adapter,
        "head_params": head,
        "resumed_from": job.folder.resume.origin,
    }
    if request.is_main_process:
        _write_files(job, built, results, {**evaluation, **prediction})
        _push(job)
    wait_for_everyone()
    return results


def _write_files(job: Job, built: Built, results: dict, scores: dict) -> None:
    request, folder = job.request, job.folder
    cost = total_cost(built.phases, typed_command())
    folder.write_json(COST_FILE, cost)
    if built.ranks is not None:
        save_findings(built.ranks, folder.path, results["adapter_params"])
        with drawn(PAGE_FILE, "written"):
            tables = {"Scores": score_table(scores), "Cost": cost_table(cost)}
            save_page(folder.path, built.ranks, results["adapter_params"], tables, cost["command"])
    history = folder.file(SEARCH_FOLDER, HISTORY_FILE)
    if os.path.exists(history):
        with drawn("selection_history"):
            save_selection_history(history, history.removesuffix(".csv") + ".png")
    request.task.save(folder.path)
    sizes = {name: results[name] for name in ("adapter_params", "head_params")}
    with drawn("README.md", "written"):
        write_model_card(
            folder.path,
            built.ranks,
            base_model=request.hub_id,
            metrics=scores,
            card=request.method.card(folder.path),
            cost=cost,
            command=cost["command"],
            **sizes,
            seed=results["seed"],
            repo_id=_loadable_id(request),
            **request.task.card_details(request),
        )
    folder.publish(results)
    form = request.method.form
    request.say(format_cost(cost))
    counts = "{adapter_params:,} {trained} parameters and {head_params:,} in the head"
    request.say(f"{request.method.name}: " + counts.format(**sizes, trained=form.trained))
    if scores:
        request.say(score_line(scores))
    what = "adapter, ranks.json and rank_heatmap.png" if built.ranks else form.what
    request.say(f"{what} in {folder.path}")


def _loadable_id(request) -> str | None:
    """The id by which the adapter will load from the Hub; None where it is not known, or a branch has to be named."""
    name = request.training.hub_model_id or ""
    return name if request.push and "/" in name and request.training.hub_revision in (None, "main") else None


def _push(job: Job) -> None:
    request, training = job.request, job.request.training
    if request.push:
        repository = training.hub_model_id or os.path.basename(os.path.normpath(job.folder.path))
        private, revision = training.hub_private_repo, training.hub_revision
        url = push_to_hub(job.folder.path, repository, token=request.hub_token, private=private, revision=revision)
        request.say(f"pushed to {url}")


def evaluate(job: Job, trainer: Trainer) -> dict:
    """{"eval_…": score} of the validation rows, in eval_results.json too."""
    task, rows, evaluation = job.request.task, job.rows, {}
    for suffix, split in task.evaluation_splits(rows).items():
        with full_precision(trainer.model):  # the score of the adapter as it loads elsewhere: without autocast
            scores = trainer.evaluate(rows.datasets[split])
            extra = task.extra_scores(job, trainer, split)
        scores |= {f"eval_{key}": value for key, value in extra.items()}
        scores["eval_samples"] = len(rows.datasets[split])
        evaluation.update({key + suffix: value for key, value in scores.items() if key != "epoch"})
    if job.request.is_main_process:
        job.folder.write_json("eval_results.json", evaluation)
    return evaluation


def predict(job: Job, trainer: Trainer) -> dict:
    """{"predict_…": score} of the test rows, where they have labels, in predict_results.json too."""
    with full_precision(trainer.model):
        scores = job.request.task.predict(job, trainer)
    prediction = {f"predict_{key}": value for key, value in scores.items()}
    if job.request.is_main_process and prediction:
        job.folder.write_json("predict_results.json", prediction)
    return prediction


def evaluate_saved(job: Job) -> dict:
    """`--do_eval` or `--do_predict` without `--do_train`: what an earlier run left in output_dir."""
    request = job.request
    with usage_errors():
        model, form = load_saved(FORMS, job.source, job.folder.path)
    training = dataclasses.replace(request.training, bf16=False, fp16=False)  # as in a run that has just trained
    training.mixed_precision = "no"  # which otherwise is what accelerate's configuration says
    job = dataclasses.replace(job, request=dataclasses.replace(request, training=training))
    trainer = make_trainer(job, model, [], form.trainer)
    scores = evaluate(job, trainer) if training.do_eval else {}
    scores |= predict(job, trainer) if training.do_predict else {}
    request.say(score_line(scores))
    if request.is_main_process:
        job.folder.add_results(scores)
        _push(job)
    wait_for_everyone()
    return scores


def typed_command() -> str:
    """What was typed, without this machine's names."""
    return public_command([os.path.basename(sys.argv[0]) or "run_glue.py", *sys.argv[1:]])
