"""What the scripts check before anything is written: the request, the place for its files, the model, and what
`--resume_from_checkpoint` means there.

Each takes a `pipeline.Run` and raises `ValueError` with one line: what was given, what is needed, what to type.
"""

import dataclasses
import json
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch
from transformers.integrations import get_reporting_integration_callbacks
from transformers.pytorch_utils import Conv1D

from autolora_trainer import hub
from autolora_trainer.arguments import check_choice, check_schedule
from autolora_trainer.checkpoints import checkpoint_steps, fault, newest_checkpoint, read_json, read_manifest
from autolora_trainer.errors import one_line, sentence
from autolora_trainer.fused import SEPARATOR, adapt, lora_parts, module_of
from autolora_trainer.methods import WITHOUT_LORA, grid
from autolora_trainer.methods.autolora import KEPT_COMPONENTS, search_arguments
from autolora_trainer.methods.common import refuse_sharding
from autolora_trainer.methods.peft import longest_row, positions
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.retrain import build_adapter
from autolora_trainer.rules import fill_budget, parse_budget
from autolora_trainer.script_arguments import check_numbers
from autolora_trainer.tasks import GLUE_TASKS, ner, nlg

if TYPE_CHECKING:
    from autolora_trainer.pipeline import Run

RUN_FILE = "run.json"  # written first: it marks a folder as ours, and only our own files are ever cleared
TASK_NAMES = (*GLUE_TASKS, "mnli-mm", *ner.TASKS, *nlg.NLG_TASKS)
# What a run writes into output_dir: what `--overwrite`, and starting an unfinished run again, remove.
OUTPUT_FILES = f"""
    adapter_config.json adapter_model.safetensors ranks.json rank_heatmap.png rank_heatmap.svg all_results.json
    train_results.json eval_results.json predict_results.json trainer_state.json cost.json labels.json README.md
    training_args.bin calibration.json bottleneck_adapter.json bottleneck_adapter.safetensors config.json
    generation_config.json model.safetensors model.safetensors.index.json
    predictions_validation.jsonl predictions_test.jsonl
    {" ".join(f"predict_results_{name}.txt" for name in TASK_NAMES)}
""".split()
# What `learned_settings` takes of the arguments.
LEARNED_DATA = """
    task_name max_seq_length max_train_samples sample_seed prompt_format one_line base_dropout
""".split()
LEARNED_TRAINING = """
    learning_rate train_sampling_strategy seed data_seed weight_decay lr_scheduler_type lr_scheduler_kwargs
    warmup_steps label_smoothing_factor max_grad_norm optim optim_args adam_beta1 adam_beta2 adam_epsilon non_finite
""".split()


@dataclass
class Resume:
    """Where an interrupted run goes on: at a checkpoint of the search, or of the retrain, or between the two."""

    search_checkpoint: str | None = None
    search_done: bool = False
    train_checkpoint: str | None = None
    trials: int = 0  # of a grid, finished
    origin: dict | None = field(init=False)  # `resumed_from` of all_results.json

    def __post_init__(self):
        self.origin = None
        checkpoint = self.train_checkpoint or self.search_checkpoint
        if checkpoint or self.search_done:  # read now: the training that goes on rotates its checkpoints
            step = read_manifest(checkpoint)["step"] if checkpoint else 0
            self.origin = {"phase": "search" if self.search_checkpoint else "retrain", "step": step}
        elif self.trials:
            self.origin = {"phase": "search", "step": self.trials}


def is_output(name: str) -> bool:
    prefix, _, number = name.partition("-")
    return (
        name in OUTPUT_FILES
        or name in ("search", grid.FOLDER)
        or re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) is not None
        or (prefix == "checkpoint" and number.isdigit())
    )


def _has_note(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, RUN_FILE))


def is_ours(folder: str) -> bool:
    """Whether a run of this package wrote into a folder: its run.json is one of ours, and whole."""
    try:
        note = read_json(os.path.join(folder, RUN_FILE))
    except (OSError, ValueError):
        return False
    kinds = {"command": str, "version": str, "settings": dict}
    return isinstance(note, dict) and all(isinstance(note.get(name), kind) for name, kind in kinds.items())


def files_of_others(run: "Run") -> list[str]:
    """The names in output_dir that the run would clear or write over, where no run of ours has written there."""
    if is_ours(run.output_dir) or not os.path.isdir(run.output_dir):
        return []
    written = (RUN_FILE, *hub.TOKENIZER_FILES)
    return sorted(name for name in os.listdir(run.output_dir) if is_output(name) or name in written)


def later_files(run: "Run") -> list[str]:
    """What is to be removed from output_dir before the run: all that a run writes, or for a resume what came later
    than its checkpoint."""
    if not os.path.isdir(run.output_dir):
        return []
    outputs = [name for name in os.listdir(run.output_dir) if is_output(name)]
    if not run.resume.origin:
        return outputs
    later = ["all_results.json"]
    if run.resume.search_checkpoint:
        later += ["ranks.json", os.path.join("search", "cost.json"), os.path.join("search", KEPT_COMPONENTS)]
        later += [name for name in outputs if name.startswith("checkpoint-")]
    # a checkpoint that was passed over: a new one would be written among its files
    phase = os.path.relpath(run.search_dir, run.output_dir) if run.resume.search_checkpoint else ""
    steps = checkpoint_steps(os.path.join(run.output_dir, phase))
    later += [os.path.join(phase, f"checkpoint-{step}") for step in steps if step > run.resume.origin["step"]]
    return [name for name in later if os.path.exists(os.path.join(run.output_dir, name))]


def check_request(run: "Run") -> None:
    data, training = run.data, run.training
    tasks = run.application.task_names
    if data.task_name is None and any((data.train_file, data.validation_file, data.test_file)):
        data.task_name = run.application.own_task
    if data.task_name is None:
        raise ValueError(f"--task_name is missing. Give one of {', '.join(tasks)}.")
    data.task_name = data.task_name.lower()
    data.task_name = run.application.task_aliases.get(data.task_name, data.task_name)
    check_choice("task_name", data.task_name, tasks)
    rows = "max_train_samples max_eval_samples max_predict_samples"
    check_numbers(data, {"at least 1": rows, "from 0 to 4294967295": "sample_seed"})
    if data.sample_seed is not None and data.max_train_samples is None:
        raise ValueError(f"--sample_seed {data.sample_seed} draws no rows without --max_train_samples N. Add it.")
    if data.max_seq_length < 4:
        raise ValueError(f"max_seq_length must be at least 4, got {data.max_seq_length}.")
    training.do_train, training.do_eval, training.do_predict = training.asked
    if not any(training.asked):
        training.do_train = training.do_eval = True
        training.do_predict = data.test_file is not None
    training.do_eval |= training.do_train and training.eval_strategy != "no"  # as TrainingArguments do
    fp16 = training.mixed_precision == "fp16"  # of --fp16, or of accelerate's configuration
    if fp16 and run.searches and training.do_train:
        raise ValueError(
            "The search does not run in fp16: its loss scale hides the hypergradient. Use --bf16 or fp32."
        )
    if training.do_train and (run.searches or run.method.method == "grid"):
        check_schedule(training.lr_scheduler_type, "the search" if run.searches else "a trial of --method grid")
    if "flash" in (run.model.attn_implementation or "") and run.model.dtype == "float32":
        other = ", or add --dtype bfloat16" if run.application.task_type == "CAUSAL_LM" else ""
        raise ValueError(
            f"--attn_implementation {run.model.attn_implementation} takes no fp32, and scores are evaluated with fp32 "
            f"weights. Type --attn_implementation sdpa{other}."
        )
    if training.auto_find_batch_size and run.searches and training.do_train:
        raise ValueError(
            "--auto_find_batch_size tries batch sizes until one fits, and the search has a batch of D_val beside "
            "each. Drop it, and lower --per_device_train_batch_size with --gradient_accumulation_steps."
        )
    if training.prediction_loss_only and training.do_predict and run.application.task_type != "CAUSAL_LM":
        raise ValueError("--prediction_loss_only leaves --do_predict nothing to write. Drop one of the two.")
    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()
    except (RuntimeError, ImportError, ValueError) as error:
        raise ValueError(f"--report_to {' '.join(training.report_to)}: {one_line(error)}") from error
    if training.chose_output_dir:
        method = (run.method.peft_type or run.method.method).lower()
        training.output_dir = os.path.join("outputs", f"{data.task_name}-{method}")
    if run.model.base_model_id:
        hub.check_repo_id(run.model.base_model_id, "base_model_id")
    if run.push:
        if training.hub_model_id:
            hub.check_repo_id(training.hub_model_id)
        else:
            hub.check_repo_id(os.path.basename(os.path.normpath(training.output_dir)), "the name of output_dir")
        if run.hub_id is None:
            raise ValueError(
                "--push_to_hub needs the base model's Hub id, got a folder "
                f"({os.path.basename(run.model.model_name_or_path)}). Add --base_model_id OWNER/NAME."
            )
    if training.do_train and run.searches:
        refuse_sharding(
            run, "The search moves whole LoRA weights", f"then retrain sharded with --ranks {run.ranks_path}"
        )
    if training.do_train and (run.method.retrain_cut or run.method.method == "svd"):
        refuse_sharding(run, "A truncated SVD takes whole LoRA weights")
    if training.do_train and run.method.retrain_cut and training.load_best_model_at_end:
        raise ValueError(
            "--load_best_model_at_end could bring back an adapter from before --retrain_cut cut it. Drop one of them."
        )
    if not training.output_dir:
        raise ValueError("output_dir is empty. Give a folder, or leave --output_dir out.")
    parent = training.output_dir
    while parent and not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if parent and not os.path.isdir(parent):
        raise ValueError(f"output_dir {training.output_dir} lies on a file ({parent}). Give another --output_dir.")
    if not os.access(parent or ".", os.W_OK):
        raise ValueError(f"output_dir {training.output_dir} cannot be written. Give another --output_dir.")
    if training.do_train and not (training.resume_from_checkpoint and _has_note(training.output_dir)):
        _refuse_files_of_others(run)
    if training.do_train:
        _check_inputs_stay(run)
    finished = os.path.exists(os.path.join(training.output_dir, "all_results.json"))
    if training.do_train and finished and not run.method.overwrite and not training.resume_from_checkpoint:
        raise ValueError(
            f"{training.output_dir} holds a finished run. Add --overwrite to replace it, or give another --output_dir."
        )


def _refuse_files_of_others(run: "Run") -> None:
    others = files_of_others(run)
    if others:
        raise ValueError(
            f"{run.output_dir} holds files that no run of this package wrote ({', '.join(others[:3])}), and the run "
            "would replace them. Give another --output_dir."
        )


def check_clearing(run: "Run") -> None:
    """Raise `ValueError` for a run that is to go on where run.json is damaged, or another program's: the checkpoint in
    the same folder tells that the run is ours, but nothing is cleared on that word alone."""
    if not run.training.do_train or not _has_note(run.output_dir) or is_ours(run.output_dir):
        return
    checkpoint = run.resume.train_checkpoint or run.resume.search_checkpoint or run.output_dir
    place = os.path.relpath(os.path.realpath(checkpoint), os.path.realpath(run.output_dir))
    if run.resume.origin is None or place.startswith(os.pardir):
        _refuse_files_of_others(run)
    elif later := later_files(run):
        raise ValueError(
            f"{run.output_dir} has a damaged {RUN_FILE}, and to go on the run would have to remove {later[0]}. Remove "
            "it yourself, or give another --output_dir."
        )


def _check_inputs_stay(run: "Run") -> None:
    """Raise `ValueError` for a file or folder to read that the run would clear or write over."""
    if not os.path.isdir(run.output_dir):
        return
    given = {name: getattr(run.data, name) for name in ("train_file", "validation_file", "test_file")}
    given |= {name: getattr(run.model, name) for name in ("model_name_or_path", "tokenizer_name")}
    for name, path in {**given, "ranks": run.method.ranks}.items():
        if path and os.path.exists(path):
            place = os.path.relpath(os.path.realpath(path), os.path.realpath(run.output_dir))
            if place == os.curdir or is_output(place.split(os.sep)[0]):
                raise ValueError(f"--{name} {path} lies where this run writes its own. Give another --output_dir.")


def learned_settings(run: "Run") -> dict:
    """The arguments that decide what is learned and in which shapes; `run.json` keeps them. The length of the final
    training is one of them where AdaLoRA's schedule or a grid's trials hang on it; any other may be prolonged."""
    settings = dataclasses.asdict(run.method)
    for name in ("preset", "overwrite", "retrain_epochs", "grid_trials"):
        settings.pop(name)
    model, data, training = run.model, run.data, run.training
    places = {"ranks": run.method.ranks, "model_name_or_path": model.model_name_or_path, "train_file": data.train_file}
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    lengths = ("num_train_epochs", "max_steps") if run.method.method in ("adalora", "grid") else ()
    return {
        **settings,
        **{name: getattr(data, name) for name in LEARNED_DATA if hasattr(data, name)},
        **{name: getattr(model, name) for name in ("dtype", "load_in_8bit", "load_in_4bit")},
        **{name: getattr(training, name) for name in (*LEARNED_TRAINING, *lengths)},
        **{kind: training.mixed_precision == kind for kind in ("bf16", "fp16")},  # accelerate's configuration too
        **{name: path and os.path.basename(os.path.normpath(path)) for name, path in places.items()},  # no folders
        "global_batch_size": batch,
    }


def _check_same_settings(run: "Run") -> None:
    """Raise `ValueError` if a run that is to go on was begun with other settings: it would end in neither's result."""
    try:
        earlier = dict(read_json(os.path.join(run.output_dir, RUN_FILE))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # a damaged note of them stops nobody
    present = json.loads(json.dumps(learned_settings(run)))
    for name, value in present.items():
        if earlier.get(name, value) != value:
            raise ValueError(
                f"--resume_from_checkpoint: the run in {run.output_dir} was begun with {name} {earlier[name]}, and "
                f"this command has {value}. Type it as it was, or start anew with --overwrite."
            )


def find_resume(run: "Run") -> Resume:
    """What `--resume_from_checkpoint` means here: a checkpoint to go on from, and the phase it belongs to."""
    asked = run.training.resume_from_checkpoint
    if asked is None:
        return Resume()
    named = asked not in ("True", "true")
    of_search = os.path.basename(os.path.dirname(os.path.abspath(asked))) == "search"
    if named and (reason := fault(asked)):
        raise ValueError(
            f"--resume_from_checkpoint {asked} {reason}. Give a checkpoint-N folder, or no value for the newest."
        )
    if named and of_search and not run.searches:
        raise ValueError(
            f"--resume_from_checkpoint {asked} belongs to a search, and this run does not search. Drop it, or give a "
            "checkpoint-N folder beside search/."
        )
    _check_same_settings(run)
    if named and of_search:
        return Resume(search_checkpoint=asked)
    if named:
        return Resume(train_checkpoint=asked, search_done=os.path.exists(run.ranks_path))
    trained = newest_checkpoint(run.output_dir)  # (of the final training, those passed over)
    if run.method.method == "grid":
        done, trials = grid.is_finished(run.output_dir), grid.finished_trials(run.output_dir)
    else:
        files = [run.ranks_path, os.path.join(run.search_dir, "cost.json")]
        if run.method.warm_start and trained[0] is None:
            files.append(os.path.join(run.search_dir, KEPT_COMPONENTS))  # what the retrain begins with
        done, trials = run.searches and all(map(os.path.exists, files)), 0
    if done or not run.searches:
        checkpoint, passed_over = trained
        resume = Resume(train_checkpoint=checkpoint, search_done=done, trials=trials)
    else:
        checkpoint, passed_over = newest_checkpoint(run.search_dir)
        resume = Resume(search_checkpoint=checkpoint, trials=trials)
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
    if run.method.ranks:
        run.given_ranks = _read_ranks(run.method.ranks)
    if run.training.batch_eval_metrics and run.application.compute_metrics(run) is not None:
        raise ValueError("--batch_eval_metrics scores a batch at a time, and scores here are of all rows. Drop it.")
    base = run.load_ahead()
    run.application.check_model(run, base)
    _check_vocabulary(run, base)
    _check_positions(run, base)
    _check_targets(run, base)
    if run.training.do_train and run.method.method not in WITHOUT_LORA:
        shapes = _update_shapes(run, base)
        run.costs = {name: sum(shape) for name, shape in shapes.items()}
    if run.searches and run.training.do_train:
        arguments = search_arguments(run)
        if arguments.n_gpu > 1:
            raise ValueError(
                f"The search runs one process per GPU, got one process for {arguments.n_gpu} GPUs. Start it with "
                "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES."
            )
        run.split(arguments.val_fraction)
    metric = run.training.metric_for_best_model
    if metric is not None:
        names = () if run.training.prediction_loss_only else run.application.metric_names(run)
        check_choice("metric_for_best_model", metric.removeprefix("eval_"), ("loss", *names))
    if not run.training.do_train:
        return
    if run.method.ranks:
        run.given_ranks.check_names(name for name, _ in base.named_modules())
        if run.method.method == "autolora":
            _check_fit(run, base)
    elif run.method.rank_budget and run.method.method == "autolora":
        fill_budget(
            torch.zeros(len(run.costs), run.method.initial_rank),
            list(run.costs.values()),
            run.method.rank_budget,
            run.method.min_rank,
            [min(run.method.initial_rank, *shape) for shape in shapes.values()],
        )
    elif run.method.rank_budget:
        parse_budget(run.method.rank_budget, list(run.costs.values()))
    names = run.given_ranks.modules if run.given_ranks and run.method.method == "autolora" else run.costs
    if any(SEPARATOR in name for name in names):
        # fully_shard replaces the weight that the mask hangs on, and the zeros would be trained (seen with torch 2.13)
        refuse_sharding(
            run,
            "A mask over whole gradients keeps the parts of a fused projection apart",
            "or adapt whole modules (--lora_target_modules)",
        )


def _read_ranks(path: str) -> LearnedRanks:
    try:
        return LearnedRanks.load(path)
    except OSError as error:
        raise ValueError(
            f"--ranks {path} cannot be read: {error.strerror}. Give the ranks.json of a finished run."
        ) from error


def _check_fit(run: "Run", base: torch.nn.Module) -> None:
    """Build the adapter of `--ranks` on a model without weights: names alone do not tell whether it can be built."""
    with torch.device("meta"):
        skeleton = type(base)(base.config)
    try:
        build_adapter(skeleton, run.given_ranks, run.lora_config(), run.method.scaling)
    except ValueError as error:
        raise ValueError(
            f"--ranks {run.method.ranks} does not fit {type(base).__name__}: {sentence(error)} Give ranks that were "
            "learned on this model, or search without --ranks."
        ) from error


def _check_vocabulary(run: "Run", base: torch.nn.Module) -> None:
    """A tokenizer may know more tokens than the model (padding that no row has), but not the rows."""
    known = getattr(base.get_input_embeddings(), "num_embeddings", None)
    if known is None or len(run.tokenizer) <= known:
        return
    for split, dataset in run.datasets.items():
        batches = dataset.with_format("arrow").iter(10_000)
        highest = max(pc.max(pc.list_flatten(batch["input_ids"])).as_py() for batch in batches)
        if highest >= known:
            raise ValueError(
                f"The {split} rows hold token {highest}, and {run.model.model_name_or_path} has {known} tokens: the "
                "tokenizer is another model's. Give its own with --tokenizer_name, or leave that out."
            )


def _check_positions(run: "Run", base: torch.nn.Module) -> None:
    """A tokenizer's own limit may be missing, or another model's."""
    limit = positions(base)
    for split, dataset in run.datasets.items() if limit is not None else ():
        if (longest := longest_row(dataset)) > limit:
            raise ValueError(
                f"The longest {split} row has {longest} tokens, and {type(base).__name__} has {limit} positions. "
                f"Lower --max_seq_length to {limit}, or give another model."
            )


def _check_targets(run: "Run", base: torch.nn.Module) -> None:
    """PEFT is content where one of several targets is there, and passes over the others."""
    names = [name for name, _ in base.named_modules() if name]
    for target in run.method.lora_target_modules or []:
        module = module_of(target)
        if target == "all-linear" and len(run.method.lora_target_modules) > 1:
            raise ValueError(
                f"--lora_target_modules {' '.join(run.method.lora_target_modules)}: all-linear has all of them. Give "
                "it alone, or names alone."
            )
        if target != "all-linear" and not any(name == module or name.endswith(f".{module}") for name in names):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in _linear_names(base)}))
            raise ValueError(
                f"--lora_target_modules {target or repr(target)} fits no module of {type(base).__name__}. "
                f"{_linear_example(base)} and end in {ends or 'nothing'}; give some of these."
            )


def _linear_names(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]


def _linear_example(model: torch.nn.Module) -> str:
    linear = _linear_names(model)
    return f"Its linear layers are named like {linear[len(linear) // 2] if linear else 'nothing: it has none'!r}"


def _update_shapes(run: "Run", base: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """{module: (m, n) of its update}, of the modules that a LoRA of this run adapts."""
    with torch.device("meta"):
        skeleton = type(base)(base.config)
    try:
        return {name: part.shape for name, part in lora_parts(adapt(skeleton, run.lora_config(r=1))).items()}
    except ValueError as error:
        given = run.method.lora_target_modules
        what = f"--lora_target_modules {' '.join(given)} fits" if given else "PEFT has no default target modules for"
        raise ValueError(
            f"{what} {'no module of ' if given else ''}{type(base).__name__} ({one_line(error).split('. ')[0]}). "
            f"{_linear_example(skeleton)}; give --lora_target_modules."
        ) from error
