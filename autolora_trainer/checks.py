"""What the scripts check before anything is written: the request, the place for its files, the model, and what
`--resume_from_checkpoint` means there.

Each takes a `pipeline.Run` and raises `ValueError` with one line: what was given, what is needed, what to type.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.integrations import get_reporting_integration_callbacks
from transformers.pytorch_utils import Conv1D

from autolora_trainer import hub
from autolora_trainer.checkpoints import fault, newest_checkpoint, read_manifest
from autolora_trainer.errors import one_line
from autolora_trainer.fused import adapt
from autolora_trainer.methods import WITHOUT_LORA, grid
from autolora_trainer.methods.autolora import search_arguments
from autolora_trainer.methods.common import component_costs
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.rules import fill_budget, parse_budget
from autolora_trainer.splits import split_train

if TYPE_CHECKING:
    from autolora_trainer.pipeline import Run

RUN_FILE = "run.json"  # written first: it marks a folder as ours, and only our own files are ever cleared
# What a run writes into output_dir: what `--overwrite`, and starting an unfinished run again, remove.
OUTPUT_FILES = """
    adapter_config.json adapter_model.safetensors ranks.json rank_heatmap.png rank_heatmap.svg all_results.json
    train_results.json eval_results.json predict_results.json trainer_state.json cost.json labels.json README.md
    training_args.bin calibration.json bottleneck_adapter.json bottleneck_adapter.safetensors config.json
    generation_config.json model.safetensors model.safetensors.index.json
""".split()


@dataclass
class Resume:
    """Where an interrupted run goes on: at a checkpoint of the search, or of the retrain, or between the two."""

    search_checkpoint: str | None = None
    search_done: bool = False
    train_checkpoint: str | None = None
    trials: int = 0  # of a grid, finished

    @property
    def origin(self) -> dict | None:
        """`resumed_from` of all_results.json."""
        checkpoint = self.train_checkpoint or self.search_checkpoint
        if checkpoint is None and not self.search_done:
            return {"phase": "search", "step": self.trials} if self.trials else None
        phase = "search" if self.search_checkpoint else "retrain"
        return {"phase": phase, "step": read_manifest(checkpoint)["step"] if checkpoint else 0}


def is_output(name: str) -> bool:
    prefix, _, number = name.partition("-")
    return (
        name in OUTPUT_FILES
        or name in ("search", grid.FOLDER)
        or name.startswith(("predict_results_", "predictions_"))
        or re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) is not None
        or (prefix == "checkpoint" and number.isdigit())
    )


def check_request(run: "Run") -> None:
    data, training = run.data, run.training
    tasks = run.application.task_names
    if data.task_name is None and data.train_file is not None:
        data.task_name = run.application.own_task
    if data.task_name is None:
        raise ValueError(f"--task_name is missing. Give one of {', '.join(tasks)}.")
    data.task_name = data.task_name.lower()
    data.task_name = run.application.task_aliases.get(data.task_name, data.task_name)
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
    if training.fp16 and run.searches:
        raise ValueError(
            "The search does not run in fp16: its loss scale hides the hypergradient. Use --bf16 or fp32."
        )
    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"--report_to {' '.join(training.report_to)}: {one_line(error)}") from error
    if training.chose_output_dir:
        method = (run.method.peft_type or run.method.method).lower()
        training.output_dir = os.path.join("outputs", f"{data.task_name}-{method}")
    if run.push:
        if training.hub_model_id:
            hub.check_repo_id(training.hub_model_id)
        if run.hub_id is None:
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
    foreign = [] if ours else sorted(name for name in present if is_output(name))
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


def find_resume(run: "Run") -> Resume:
    """What `--resume_from_checkpoint` means here: a checkpoint to go on from, and the phase it belongs to."""
    asked = run.training.resume_from_checkpoint
    if asked is None:
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
    if run.method.method == "grid":
        resume.search_done = grid.is_finished(run.output_dir)
        resume.trials = grid.finished_trials(run.output_dir)
    if resume.search_done or not run.searches:
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


def check_model(run: "Run") -> None:
    """Load the model: a wrong id or folder shows before anything is written, and so do modules, ranks and a budget
    that do not fit it."""
    base = run.load_ahead()
    if run.method.method not in WITHOUT_LORA:
        run.costs = _component_costs(run, base)
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
        run.given_ranks.check_names(name for name, _ in base.named_modules())
    elif run.method.rank_budget and run.method.method == "autolora":
        fill_budget(
            torch.zeros(len(run.costs), run.method.initial_rank),
            list(run.costs.values()),
            run.method.rank_budget,
            run.method.min_rank,
        )
    elif run.method.rank_budget:
        parse_budget(run.method.rank_budget, list(run.costs.values()))


def _component_costs(run: "Run", base: torch.nn.Module) -> dict[str, int]:
    """{module: parameters of one LoRA component}, of the modules that a LoRA of this run adapts."""
    with torch.device("meta"):
        skeleton = type(base)(base.config)
    linear = [name for name, module in skeleton.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    try:
        return component_costs(adapt(skeleton, run.lora_config(r=1)))
    except ValueError as error:
        given = run.method.lora_target_modules
        what = f"--lora_target_modules {' '.join(given)} fits" if given else "PEFT has no default target modules for"
        raise ValueError(
            f"{what} {'no module of ' if given else ''}{type(base).__name__} ({one_line(error).split('. ')[0]}). Its "
            f"linear layers are named like {linear[len(linear) // 2] if linear else 'nothing: it has none'!r}; give "
            "--lora_target_modules."
        ) from error
