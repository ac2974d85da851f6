"""What the scripts share: from parsed arguments to a folder with an adapter, its ranks, its scores and its cost.

    check -> load data -> build the method's model [search] -> train -> evaluate -> predict -> files -> push

Nothing is written before everything that the user gave has been checked.
"""

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
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging as transformers_logging

from autolora_trainer import hub, report
from autolora_trainer.callbacks import public_model_name
from autolora_trainer.checkpoints import CheckpointManifest, fault, newest_checkpoint, read_manifest, write_atomically
from autolora_trainer.cost import CostMeter, total_cost
from autolora_trainer.errors import one_line, usage_errors
from autolora_trainer.methods import METHODS
from autolora_trainer.methods.autolora import KEPT_COMPONENTS, search_arguments
from autolora_trainer.methods.common import Built, component_costs
from autolora_trainer.ranks import LearnedRanks, fill_budget, parse_budget
from autolora_trainer.splits import split_train
from autolora_trainer.trainer_utils import RandomState, RetrainTrainer, fix_loss_scale, full_precision
from autolora_trainer.version import __version__

logger = logging.getLogger("autolora_trainer")

RUN_FILE = "run.json"  # written first: it marks a folder as ours, and only our own files are ever cleared
# What a run writes into output_dir: what `--overwrite`, and starting an unfinished run again, remove.
OUTPUT_FILES = """
    adapter_config.json adapter_model.safetensors ranks.json rank_heatmap.png rank_heatmap.svg all_results.json
    train_results.json eval_results.json trainer_state.json cost.json README.md training_args.bin
""".split()


@dataclass
class Resume:
    """Where an interrupted run goes on: at a checkpoint of the search, or of the retrain, or between the two."""

    search_checkpoint: str | None = None
    search_done: bool = False
    train_checkpoint: str | None = None

    @property
    def origin(self) -> dict | None:
        """`resumed_from` of all_results.json."""
        checkpoint = self.train_checkpoint or self.search_checkpoint
        if checkpoint is None and not self.search_done:
            return None
        phase = "search" if self.search_checkpoint else "retrain"
        return {"phase": phase, "step": read_manifest(checkpoint)["step"] if checkpoint else 0}


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
        application: what is particular to the script (see `run_glue.GlueApplication`).
        model, data, method, training: the four groups of `script_arguments.parse_arguments`.
    Returns:
        The content of all_results.json.
    Raises:
        UsageError: for arguments, data and configurations, before anything is written.
    """
    _set_up_logging(training)
    run = Run(model, data, method, training, application)
    run.push, training.push_to_hub = (
        training.push_to_hub,
        False,
    )  # once, at the end; Trainer pushes training_args.bin too
    run.hub_token, training.hub_token = training.hub_token, None  # or it would be written into training_args.bin
    run.save_total_limit, training.save_total_limit = training.save_total_limit, None  # see CheckpointManifest
    with usage_errors():
        _check_request(run)
        run.resume = _find_resume(run)
        application.load_data(run)
        _check_model(run)
    if training.chose_cpu:
        run.say("bf16 without an accelerator: running on the CPU (use_cpu=True)")
    if not training.do_train:
        return _evaluate_only(run)
    _clear_output(run)
    built = _build(run)
    cost = CostMeter(
        earlier=read_manifest(run.resume.train_checkpoint)["cost"] if run.resume.train_checkpoint else None
    )
    if built.ranks is not None:
        run.say(report.format_rank_table(built.ranks))
    trainer = make_trainer(run, built.model, [cost, CheckpointManifest(cost, run.save_total_limit)])
    result = trainer.train(resume_from_checkpoint=run.resume.train_checkpoint)
    built.phases["retrain"] = cost.stop()
    trainer.save_model()
    trainer.save_state()
    metrics = dict(result.metrics, train_samples=len(run.train_dataset))
    if run.is_main_process:
        _write_json(run, "train_results.json", metrics)
    return _finish(run, trainer, built, metrics)


def make_trainer(run: Run, model: torch.nn.Module, callbacks) -> Trainer:
    """The standard Trainer of the final training; the same for every method."""
    arguments = run.training
    if run.method.method == "autolora" and run.method.retrain_epochs is not None:
        arguments = dataclasses.replace(arguments, num_train_epochs=run.method.retrain_epochs)
    set_seed(arguments.seed)  # the training that follows does not depend on what a search drew before it
    trainer = RetrainTrainer(
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


def load_pretrained(auto_class, name: str, model, **arguments):
    """`auto_class.from_pretrained(name)` with the script's Hub arguments, and one line for what can go wrong.

    Args:
        auto_class: e.g. `AutoConfig`.
        name: a Hub id or a folder.
        model: `ModelArguments`.
    Raises:
        ValueError: if there is no such model, or it cannot be reached.
    """
    try:
        return auto_class.from_pretrained(
            name,
            cache_dir=model.cache_dir,
            revision=model.model_revision,
            token=model.token,
            trust_remote_code=model.trust_remote_code,
            **arguments,
        )
    except OSError as error:
        if os.path.isdir(name):
            raise ValueError(f"The folder {name} holds no whole checkpoint: {one_line(error)}") from error
        raise ValueError(
            f"Could not load {name!r}: it is no folder here, and the Hugging Face Hub does not give it (no "
            "connection, or no such model). Give a folder with --model_name_or_path, or connect once so that the "
            "model is cached."
        ) from error


# ---- checks, before anything is written


def _set_up_logging(training) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    transformers_logging.set_verbosity(
        logging.ERROR if training.log_level == "passive" else training.get_process_log_level()
    )
    if training.disable_tqdm:
        transformers_logging.disable_progress_bar()
        disable_progress_bars()
    # PEFT 0.21 reads a property that transformers 5 renamed; nothing of the user's. Until PEFT follows.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def _check_request(run: Run) -> None:
    data, training = run.data, run.training
    tasks = run.application.task_names
    if data.task_name is None:
        raise ValueError(f"--task_name is missing. Give one of {', '.join(tasks)}.")
    data.task_name = data.task_name.lower()
    if data.task_name not in tasks:
        raise ValueError(f"task_name must be one of {', '.join(tasks)}, got {data.task_name!r}.")
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
        if getattr(data, name) is not None and getattr(data, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(data, name)}.")
    if data.max_seq_length < 4:
        raise ValueError(f"max_seq_length must be at least 4, got {data.max_seq_length}.")
    training.do_train, training.do_eval, training.do_predict = training.asked
    if not any(training.asked):
        training.do_train = training.do_eval = True
        training.do_predict = data.test_file is not None
    if training.fp16 and run.method.method == "autolora" and not run.method.ranks:
        raise ValueError(
            "The search does not run in fp16: its loss scale hides the hypergradient. Use --bf16 or fp32."
        )
    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"--report_to {' '.join(training.report_to)}: {one_line(error)}") from error
    if training.chose_output_dir:
        training.output_dir = os.path.join("outputs", f"{data.task_name}-{run.method.method}")
    if run.push:
        if training.hub_model_id:
            hub.check_repo_id(training.hub_model_id)
        if _hub_id(run) is None:
            raise ValueError(
                "--push_to_hub needs the base model's Hub id, got a folder "
                f"({os.path.basename(run.model.model_name_or_path)}). Add --base_model_id OWNER/NAME."
            )
    parent = training.output_dir
    while parent and not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if parent and not os.path.isdir(parent):
        raise ValueError(f"output_dir {training.output_dir} lies on a file ({parent}). Give another --output_dir.")
    if not os.access(parent or ".", os.W_OK):
        raise ValueError(f"output_dir {training.output_dir} cannot be written. Give another --output_dir.")
    ours = os.path.exists(os.path.join(training.output_dir, RUN_FILE))
    present = os.listdir(training.output_dir) if os.path.isdir(training.output_dir) else []
    foreign = [] if ours else sorted(name for name in present if _is_output(name))
    if training.do_train and foreign:
        raise ValueError(
            f"{training.output_dir} holds files that no run of this package wrote ({', '.join(foreign[:3])}), and the "
            "run would replace them. Give another --output_dir."
        )
    if (
        training.do_train
        and run.method.ranks
        and os.path.realpath(run.method.ranks) == os.path.realpath(run.ranks_path)
    ):
        raise ValueError(f"--ranks {run.method.ranks} lies where this run writes its own. Give another --output_dir.")
    finished = os.path.exists(os.path.join(training.output_dir, "all_results.json"))
    if training.do_train and finished and not run.method.overwrite and not training.resume_from_checkpoint:
        raise ValueError(
            f"{training.output_dir} holds a finished run. Add --overwrite to replace it, or give another --output_dir."
        )


def _find_resume(run: Run) -> Resume:
    """What `--resume_from_checkpoint` means here: a checkpoint to go on from, and the phase it belongs to."""
    asked = run.training.resume_from_checkpoint
    if asked in (None, "", "False", "false"):
        return Resume()
    if asked not in ("True", "true"):
        reason = fault(asked)
        if reason:
            raise ValueError(
                f"--resume_from_checkpoint {asked} {reason}. Give a checkpoint-N folder, or no value for the newest."
            )
        if os.path.basename(os.path.dirname(os.path.abspath(asked))) == "search":
            if not run.searches:
                raise ValueError(
                    f"--resume_from_checkpoint {asked} belongs to a search, and this run does not search."
                )
            return Resume(search_checkpoint=asked)
        return Resume(train_checkpoint=asked, search_done=os.path.exists(run.ranks_path))
    search_done = (
        run.searches and os.path.exists(run.ranks_path) and os.path.exists(os.path.join(run.search_dir, "cost.json"))
    )
    resume, passed_over = Resume(search_done=search_done), []
    if search_done or not run.searches:
        resume.train_checkpoint, passed_over = newest_checkpoint(run.output_dir)
    else:
        resume.search_checkpoint, passed_over = newest_checkpoint(run.search_dir)
    for line in passed_over:
        run.warn(f"passed over: {line}")
    if resume.origin is None:
        run.say(f"no whole checkpoint in {run.output_dir}: starting from the beginning")
    else:
        run.say("going on from {phase}, step {step}".format(**resume.origin))
    return resume


def _check_model(run: Run) -> None:
    """Load the model: a wrong id or folder shows before anything is written, and so do modules, ranks and a budget
    that do not fit it."""
    base = run.load_ahead()
    with torch.device("meta"):
        skeleton = type(base)(base.config)
    names = [name for name, _ in skeleton.named_modules()]
    linear = [name for name, module in skeleton.named_modules() if isinstance(module, torch.nn.Linear)]
    try:
        costs = component_costs(get_peft_model(skeleton, run.lora_config(r=1)))
    except ValueError as error:
        given = run.method.lora_target_modules
        what = f"--lora_target_modules {' '.join(given)} fits" if given else "PEFT has no default target modules for"
        raise ValueError(
            f"{what} {'no module of ' if given else ''}{type(base).__name__} ({one_line(error).split('. ')[0]}). Its "
            f"linear layers are named like {linear[len(linear) // 2] if linear else 'nothing: it has none'!r}; give "
            "--lora_target_modules."
        ) from error
    if run.searches:
        arguments = search_arguments(run)
        if arguments.n_gpu > 1:
            raise ValueError(
                f"The search runs one process per GPU, got one process for {arguments.n_gpu} GPUs. Start it with "
                "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES."
            )
        if run.training.do_train:
            split_train(run.train_dataset, arguments.val_fraction)
    if run.training.eval_strategy != "no" and "validation" not in run.datasets:
        raise ValueError("--eval_strategy needs rows, got no validation rows. Add --validation_file.")
    if run.method.ranks:
        run.given_ranks = LearnedRanks.load(run.method.ranks)
        run.given_ranks.check_names(names)
    elif run.method.rank_budget and run.method.method == "autolora":
        fill_budget(
            torch.zeros(len(costs), run.method.initial_rank),
            list(costs.values()),
            run.method.rank_budget,
            run.method.min_rank,
        )
    elif run.method.rank_budget:
        parse_budget(run.method.rank_budget, list(costs.values()))


def _clear_output(run: Run) -> None:
    """Make room: for a run from the beginning, or after a resume for what comes later than its checkpoint."""
    if run.is_main_process:
        os.makedirs(run.output_dir, exist_ok=True)
        later = ["all_results.json"] if run.resume.origin else [n for n in os.listdir(run.output_dir) if _is_output(n)]
        if run.resume.search_checkpoint:
            later += ["ranks.json", os.path.join("search", "cost.json"), os.path.join("search", KEPT_COMPONENTS)]
            later += [
                name for name in os.listdir(run.output_dir) if name.startswith("checkpoint-") and _is_output(name)
            ]
        for name in later:
            path = os.path.join(run.output_dir, name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.remove(path)
        _write_json(run, RUN_FILE, {"command": _public_command(), "version": __version__})
    run.wait_for_everyone()


def _is_output(name: str) -> bool:
    prefix, _, number = name.partition("-")
    return (
        name in OUTPUT_FILES
        or name == "search"
        or name.startswith("predict_results_")
        or (prefix == "checkpoint" and number.isdigit())
    )


def _build(run: Run) -> Built:
    """Build the method's model. A `ValueError` here is still about what was given (a budget, ranks of another
    model)."""
    return METHODS[run.method.method](run)


# ---- what comes out


def _finish(run: Run, trainer: Trainer, built: Built, metrics: dict) -> dict:
    adapter, head = count_parameters(trainer.model)
    evaluation = _evaluate(run, trainer) if run.training.do_eval else {}
    if run.training.do_predict:
        with full_precision(trainer.model):
            run.application.predict(run, trainer)
    results = {
        **metrics,
        **evaluation,
        "method": run.method.method,
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
        hub.write_model_card(
            run.output_dir,
            built.ranks,
            base_model=_hub_id(run),
            metrics=evaluation,
            method=run.method.method,
            cost=cost,
            command=command,
            adapter_params=adapter,
            head_params=head,
            seed=run.training.seed,
            **run.application.card_details(run),
        )
        _write_json(run, "all_results.json", results)  # last: it marks the run as finished
        _report(run, built, evaluation, cost, adapter, head)
        if run.push:
            repository = run.training.hub_model_id or os.path.basename(os.path.normpath(run.output_dir))
            run.say(
                "pushed to "
                + hub.push_to_hub(
                    run.output_dir, repository, token=run.hub_token, private=run.training.hub_private_repo
                )
            )
    run.wait_for_everyone()
    return results


def _evaluate(run: Run, trainer: Trainer) -> dict:
    evaluation = {}
    for suffix, split in run.application.evaluation_splits(run).items():
        with full_precision(trainer.model):  # the score of the adapter as it loads elsewhere: without autocast
            scores = trainer.evaluate(run.datasets[split])
        scores["eval_samples"] = len(run.datasets[split])
        evaluation.update({key + suffix: value for key, value in scores.items() if key != "epoch"})
    if run.is_main_process:
        _write_json(run, "eval_results.json", evaluation)
    return evaluation


def _evaluate_only(run: Run) -> dict:
    """`--do_eval` or `--do_predict` without `--do_train`: the adapter in output_dir."""
    with usage_errors():
        if not os.path.exists(os.path.join(run.output_dir, "adapter_config.json")):
            raise ValueError(
                f"{run.output_dir} holds no adapter to evaluate. Add --do_train, or give its --output_dir."
            )
        model = PeftModel.from_pretrained(run.base_model(), run.output_dir)
    run.training = dataclasses.replace(run.training, bf16=False, fp16=False)  # as in a run that has just trained
    trainer = make_trainer(run, model, [])
    evaluation = _evaluate(run, trainer) if run.training.do_eval else {}
    if run.training.do_predict:
        with full_precision(trainer.model):
            run.application.predict(run, trainer)
    run.say(_score_line(evaluation))
    return evaluation


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(adapter, head): the trainable parameters inside and outside LoRA."""
    adapter = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "lora_" in n)
    head = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n)
    return adapter, head


def _score_line(evaluation: dict) -> str:
    hidden = ("runtime", "per_second", "samples", "loss", "preparation_time")
    return ", ".join(
        f"{key} = {value:.4f}" for key, value in evaluation.items() if not any(part in key for part in hidden)
    )


def _report(run: Run, built: Built, evaluation: dict, cost: dict, adapter: int, head: int) -> None:
    run.say(report.format_cost(cost))
    run.say(f"{run.method.method}: {adapter:,} adapter parameters and {head:,} in the head")
    if evaluation:
        run.say(_score_line(evaluation))
    run.say(f"adapter{', ranks.json and rank_heatmap.png' if built.ranks else ''} in {run.output_dir}")


def _public_command() -> str:
    return hub.public_command([os.path.basename(sys.argv[0]) or "run_glue.py", *sys.argv[1:]])


def _hub_id(run: Run) -> str | None:
    """The base model's Hub id; None for a folder, whose name means nothing elsewhere."""
    if run.model.base_model_id:
        return run.model.base_model_id
    return None if os.path.isdir(run.model.model_name_or_path) else run.model.model_name_or_path


def _write_json(run: Run, name: str, content: dict) -> None:
    write_atomically(os.path.join(run.output_dir, name), json.dumps(content, indent=4, sort_keys=True) + "\n")
