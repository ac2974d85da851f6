"""What the scripts share: from parsed arguments to a folder with an adapter, its ranks, its scores and its cost.

    check -> load data -> build the method's model [search] -> train -> evaluate -> predict -> files -> push

Nothing is written before everything that the user gave has been checked.
"""

import copy
import dataclasses
import json
import logging
import os
import shutil
import sys
import warnings
from dataclasses import dataclass, field

import torch
from datasets import disable_progress_bars
from peft import LoraConfig, PeftModel
from transformers import Trainer, set_seed
from transformers.utils import logging as transformers_logging

from autolora_trainer import hub, report
from autolora_trainer.callbacks import public_model_name
from autolora_trainer.checkpoints import CheckpointManifest, read_json, read_manifest, write_atomically
from autolora_trainer.checks import (
    RUN_FILE,
    Resume,
    check_clearing,
    check_model,
    check_request,
    find_resume,
    is_ours,
    later_files,
    learned_settings,
)
from autolora_trainer.cost import CostMeter, total_cost
from autolora_trainer.errors import UsageError, usage_errors
from autolora_trainer.fused import held_at_zero
from autolora_trainer.heads import HEADS, head_parameters
from autolora_trainer.hub_client import save_without_asking
from autolora_trainer.methods import CHECKS, METHODS, adalora, load_trained, trainer_class
from autolora_trainer.methods.common import Built
from autolora_trainer.progress import show_phase
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.splits import split_train
from autolora_trainer.termination import TerminationCallback
from autolora_trainer.trackers import RankTracking
from autolora_trainer.trainer_utils import RandomState, fix_loss_scale, full_precision
from autolora_trainer.version import __version__

logger = logging.getLogger("autolora_trainer")


@dataclass
class Run:
    """One run of a script: its arguments, its data, and what the methods need to build a model."""

    model: object
    data: object
    method: object
    training: object
    application: object
    tokenizer: object = None
    datasets: dict = field(default_factory=dict)
    data_collator: object = None
    resume: Resume = field(default_factory=Resume)
    given_ranks: LearnedRanks | None = None  # of `--ranks`
    costs: dict = field(default_factory=dict)  # {module: parameters of one component}, of methods with LoRA
    fresh_modules: list = field(default_factory=list)  # drawn at random beside the head; see heads.py
    adapted: PeftModel | None = None  # what a check has built already
    push: bool = False
    hub_token: str | None = None
    save_total_limit: int | None = None
    _public_name: str | None = None
    _loaded: tuple | None = None

    @property
    def output_dir(self) -> str:
        return self.training.output_dir

    @property
    def search_dir(self) -> str:
        return os.path.join(self.output_dir, "search")

    @property
    def ranks_path(self) -> str:
        return os.path.join(self.output_dir, "ranks.json")

    @property
    def train_dataset(self):
        return self.datasets["train"]

    def split(self, val_fraction: float):
        """(D_tr, D_val) of the training rows; rows of one input stay together, where the task has several of them."""
        return split_train(self.train_dataset, val_fraction, self.training.seed, self.application.groups)

    @property
    def hub_id(self) -> str | None:
        """The base model's Hub id; None for a folder, whose name means nothing elsewhere."""
        local = os.path.isdir(self.model.model_name_or_path)
        return self.model.base_model_id or (None if local else self.model.model_name_or_path)

    @property
    def searches(self) -> bool:
        """Whether this run learns ranks itself."""
        return self.method.method == "autolora" and not self.method.ranks

    @property
    def is_main_process(self) -> bool:
        return self.training.process_index == 0

    @property
    def base_model_name(self) -> str | None:
        return self.model.base_model_id or self._public_name

    def base_model(self) -> torch.nn.Module:
        """The pre-trained model, anew; its new head is the same every time, and so is what is drawn after it."""
        if self._loaded is None:
            set_seed(self.training.seed)
            model = self.application.load_model(self)
            self._public_name = public_model_name(model)
            return model
        (model, random_state), self._loaded = self._loaded, None
        random_state.restore()
        return model

    def load_ahead(self) -> torch.nn.Module:
        """Load the model before its first use, to see that it can be loaded."""
        model = self.base_model()
        self._loaded = (model, RandomState(torch.device("cpu")))
        return model

    def lora_config(self, **changes) -> LoraConfig:
        """The one place where LoRA's settings become a `LoraConfig`."""
        targets = self.method.lora_target_modules
        settings = {
            "task_type": self.application.task_type,
            "lora_alpha": self.method.lora_alpha,
            "lora_dropout": self.method.lora_dropout,
            "use_rslora": self.method.use_rslora,
            "target_modules": "all-linear" if targets == ["all-linear"] else targets,
        }
        if self.fresh_modules:
            settings["modules_to_save"] = list(self.fresh_modules)
        if targets == ["all-linear"]:  # PEFT leaves out heads of sequences by itself
            heads = {"TOKEN_CLS": HEADS, "SEQ_CLS": ("pre_classifier",)}.get(self.application.task_type, ())
            settings["exclude_modules"] = [*heads, *self.fresh_modules] or None
        return LoraConfig(**{**settings, **changes})

    def say(self, text: str) -> None:
        if self.is_main_process:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        if self.is_main_process:
            logger.warning(text)

    def wait_for_everyone(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()


def execute(application, model, data, method, training) -> dict:
    """Run a script with parsed arguments.

    Args:
        application: `application.Application`, what is particular to the script.
        model, data, method, training: the four groups of `script_arguments.parse_arguments`.
    Returns:
        The content of all_results.json.
    Raises:
        UsageError: for arguments, data and configurations, before anything is written.
    """
    set_up_logging(training)
    run = Run(model, data, method, training, application)
    # we push once, at the end; Trainer would push at every save, and training_args.bin too
    run.push, training.push_to_hub = training.push_to_hub, False
    run.hub_token, training.hub_token = training.hub_token, None  # or it would be written into training_args.bin
    run.save_total_limit = training.save_total_limit
    with usage_errors():
        check_request(run)
        run.resume = find_resume(run)
        check_clearing(run)
        settings = learned_settings(run)  # as typed: reading the rows may change them
        application.load_data(run)
        check_model(run)
        CHECKS.get(run.method.method, lambda run: None)(run)
    if training.chose_cpu:
        run.say("bf16 without an accelerator: running on the CPU (use_cpu=True)")
    if not training.do_train:
        return _evaluate_only(run)
    if run.method.ranks and run.method.rank_budget:
        run.warn(f"--rank_budget {run.method.rank_budget} has no effect: the size is that of --ranks")
    _clear_output(run, settings)
    built = METHODS[run.method.method](run)
    cost = CostMeter(
        earlier=read_manifest(run.resume.train_checkpoint)["cost"] if run.resume.train_checkpoint else None
    )
    if built.ranks is not None:
        run.say(report.format_rank_table(built.ranks))
    termination = TerminationCallback()
    callbacks = [*built.callbacks, termination, cost, CheckpointManifest(cost, run.save_total_limit)]
    trainer = make_trainer(run, built.model, callbacks)
    total_rank = None
    if built.ranks is not None:
        trainer.add_callback(RankTracking(trainer, built.ranks))
        total_rank = built.ranks.total_rank
    show_phase(trainer, "retrain" if run.method.method == "autolora" else "training", lambda: total_rank)
    try:
        result = trainer.train(resume_from_checkpoint=run.resume.train_checkpoint)
    finally:
        termination.restore()
    termination.check(trainer.state)
    built.phases["retrain"] = cost.stop()
    trainer.save_state()
    if built.finish is not None:
        trainer = make_trainer(run, built.finish(trainer.model), [])
        trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # or evaluation would, in its autocast
    trainer.save_model()
    metrics = dict(result.metrics, train_samples=len(run.train_dataset))
    if run.is_main_process:
        _write_json(run, "train_results.json", metrics)
    return _finish(run, trainer, built, metrics)


def make_trainer(run: Run, model: torch.nn.Module, callbacks) -> Trainer:
    """The standard Trainer of the final training; the same for every method, but for what `trainer_class` says."""
    arguments = copy.copy(run.training)
    if run.method.method == "autolora" and run.method.retrain_epochs is not None:
        arguments = dataclasses.replace(arguments, num_train_epochs=run.method.retrain_epochs)
    arguments.save_total_limit = None  # see CheckpointManifest
    save_without_asking(model)
    set_seed(arguments.seed)  # the training that follows does not depend on what a search drew before it
    trainer = trainer_class(model)(
        model=model,
        args=arguments,
        train_dataset=run.datasets.get("train"),
        eval_dataset=run.datasets.get("validation"),
        data_collator=run.data_collator,
        processing_class=run.tokenizer,
        compute_metrics=run.application.compute_metrics(run),
        callbacks=callbacks,
    )
    return fix_loss_scale(trainer)


def set_up_logging(training) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    transformers_logging.set_verbosity(
        logging.ERROR if training.log_level == "passive" else training.get_process_log_level()
    )
    if training.disable_tqdm:
        transformers_logging.disable_progress_bar()
        disable_progress_bars()
    # PEFT 0.21 reads a property that transformers 5 renamed; nothing of the user's. Until PEFT follows.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # PEFT finds Conv1D by itself


def _clear_output(run: Run, settings: dict) -> None:
    """Make room: for a run from the beginning, or after a resume for what comes later than its checkpoint."""
    if run.is_main_process:
        try:
            os.makedirs(run.output_dir, exist_ok=True)
        except (OSError, ValueError) as error:  # a read-only place, a name that no folder can have
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"output_dir {run.output_dir!r} cannot be made: {reason}. Give another --output_dir."
            ) from error
        for name in later_files(run):
            path = os.path.join(run.output_dir, name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.remove(path)
        _write_json(run, RUN_FILE, {"command": _public_command(), "version": __version__, "settings": settings})
    run.wait_for_everyone()


# ---- what comes out


def _finish(run: Run, trainer: Trainer, built: Built, metrics: dict) -> dict:
    adapter, head = count_parameters(trainer.model)
    evaluation = _evaluate(run, trainer) if run.training.do_eval else {}
    prediction = _predict(run, trainer) if run.training.do_predict else {}
    results = {
        **metrics,
        **evaluation,
        **prediction,
        "method": run.method.method,
        **({"peft_type": run.method.peft_type.upper()} if run.method.peft_type else {}),
        "task": run.data.task_name,
        "seed": run.training.seed,
        "adapter_params": adapter,
        "head_params": head,
        "resumed_from": run.resume.origin,
    }
    if run.is_main_process:
        command = _public_command()
        cost = total_cost(built.phases, command)
        _write_json(run, "cost.json", cost)
        if built.ranks is not None:
            built.ranks.save(run.ranks_path)
            report.save_rank_heatmap(built.ranks, run.output_dir)
        history = os.path.join(run.search_dir, "selection_history.csv")
        if os.path.exists(history):
            report.save_selection_history(history, history.removesuffix(".csv") + ".png")
        run.application.save(run)
        hub.write_model_card(
            run.output_dir,
            built.ranks,
            base_model=run.hub_id,
            metrics={**evaluation, **prediction},
            method=run.method.method,
            cost=cost,
            command=command,
            adapter_params=adapter,
            head_params=head,
            seed=run.training.seed,
            repo_id=_loadable_id(run),
            **run.application.card_details(run),
        )
        _write_json(run, "all_results.json", results)  # last: it marks the run as finished
        _report(run, built, {**evaluation, **prediction}, cost, adapter, head)
        _push(run)
    run.wait_for_everyone()
    return results


def _loadable_id(run: Run) -> str | None:
    """The id by which the adapter will load from the Hub; None where it is not known, or a branch has to be named."""
    name = run.training.hub_model_id or ""
    return name if run.push and "/" in name and run.training.hub_revision in (None, "main") else None


def _push(run: Run) -> None:
    if run.push:
        repository = run.training.hub_model_id or os.path.basename(os.path.normpath(run.output_dir))
        private, revision = run.training.hub_private_repo, run.training.hub_revision
        url = hub.push_to_hub(run.output_dir, repository, token=run.hub_token, private=private, revision=revision)
        run.say(f"pushed to {url}")


def _evaluate(run: Run, trainer: Trainer) -> dict:
    evaluation = {}
    for suffix, split in run.application.evaluation_splits(run).items():
        with full_precision(trainer.model):  # the score of the adapter as it loads elsewhere: without autocast
            scores = trainer.evaluate(run.datasets[split])
            extra = run.application.extra_scores(run, trainer, split)
        scores |= {f"eval_{key}": value for key, value in extra.items()}
        scores["eval_samples"] = len(run.datasets[split])
        evaluation.update({key + suffix: value for key, value in scores.items() if key != "epoch"})
    if run.is_main_process:
        _write_json(run, "eval_results.json", evaluation)
    return evaluation


def _predict(run: Run, trainer: Trainer) -> dict:
    with full_precision(trainer.model):
        scores = run.application.predict(run, trainer)
    prediction = {f"predict_{key}": value for key, value in scores.items()}
    if run.is_main_process and prediction:
        _write_json(run, "predict_results.json", prediction)
    return prediction


def _evaluate_only(run: Run) -> dict:
    """`--do_eval` or `--do_predict` without `--do_train`: what an earlier run left in output_dir."""
    with usage_errors():
        model = load_trained(run)
    run.training = dataclasses.replace(run.training, bf16=False, fp16=False)  # as in a run that has just trained
    run.training.mixed_precision = "no"  # which otherwise is what accelerate's configuration says
    trainer = make_trainer(run, model, [])
    evaluation = _evaluate(run, trainer) if run.training.do_eval else {}
    prediction = _predict(run, trainer) if run.training.do_predict else {}
    scores = {**evaluation, **prediction}
    run.say(_score_line(scores))
    if run.is_main_process:
        _add_to_results(run, scores)
        _push(run)
    run.wait_for_everyone()
    return scores


def _add_to_results(run: Run, scores: dict) -> None:
    """Put new scores into all_results.json of a finished run; nothing where output_dir holds none of ours."""
    try:
        results = read_json(os.path.join(run.output_dir, "all_results.json"))
    except (OSError, ValueError):
        return
    if is_ours(run.output_dir) and isinstance(results, dict):
        _write_json(run, "all_results.json", {**results, **scores})


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(adapter, head): the trainable parameters outside the task's head and in it; of AdaLoRA those that it has kept,
    of fused projections those that can differ from zero."""
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    if adalora.is_adalora(model):
        return adalora.kept_parameters(model), head
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - head - held_at_zero(model), head


def _score_line(evaluation: dict) -> str:
    hidden = ("runtime", "per_second", "samples", "loss", "preparation_time", "precision_", "recall_", "f1_")
    return ", ".join(
        f"{key} = {value:.4f}" for key, value in evaluation.items() if not any(part in key for part in hidden)
    )


def _report(run: Run, built: Built, evaluation: dict, cost: dict, adapter: int, head: int) -> None:
    run.say(report.format_cost(cost))
    whole = run.method.method == "full"
    run.say(f"{run.method.method}: {adapter:,} {'base' if whole else 'adapter'} parameters and {head:,} in the head")
    if evaluation:
        run.say(_score_line(evaluation))
    what = "model" if whole else "adapter, ranks.json and rank_heatmap.png" if built.ranks else "adapter"
    run.say(f"{what} in {run.output_dir}")


def _public_command() -> str:
    return hub.public_command([os.path.basename(sys.argv[0]) or "run_glue.py", *sys.argv[1:]])


def _write_json(run: Run, name: str, content: dict) -> None:
    write_atomically(os.path.join(run.output_dir, name), json.dumps(content, indent=4, sort_keys=True) + "\n")
