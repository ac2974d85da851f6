"""What the scripts share: from parsed arguments to a folder with an adapter, its ranks, its scores and its cost.

    settle -> check -> load -> prepare -> claim [rehearse] -> learn [search] -> train -> evaluate -> predict -> push

Nothing is written before everything that the user gave has been checked.
"""

from functools import partial

from transformers import Trainer

from autolora_trainer.clean import public
from autolora_trainer.errors import usage_errors
from autolora_trainer.files import read_json
from autolora_trainer.hub_client import bounded_waits
from autolora_trainer.machine import naming_a_full_disk
from autolora_trainer.methods.base import Plan
from autolora_trainer.methods.registry import OUTPUTS
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.trackers import RankTracking
from autolora_trainer.runs.fingerprints import check_same_files, environment, of_files, of_rows
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.runs.outputs import RESULTS_FILE
from autolora_trainer.runs.resume import Resume, check_any_whole, find_resume
from autolora_trainer.runs.settings import changed, check_same, noted, settings_of
from autolora_trainer.scripts.checks import AFTER_LOADING, BEFORE_LOADING, check_folder
from autolora_trainer.scripts.job import Job, make_trainer, set_up_logging
from autolora_trainer.scripts.rehearsal import rehearse
from autolora_trainer.scripts.request import Request, settle
from autolora_trainer.scripts.results import evaluate_saved, finish, typed_command
from autolora_trainer.scripts.source import Source
from autolora_trainer.training.callbacks import TerminationCallback
from autolora_trainer.training.checkpoints import CheckpointManifest, read_manifest
from autolora_trainer.training.cost import CostMeter
from autolora_trainer.training.progress import show_phase
from autolora_trainer.version import __version__


@bounded_waits()
def execute(task, model, data, settings, training) -> dict:
    """Run a script with the four groups of `command_line.parse_arguments`; the content of all_results.json.

    Raises:
        UsageError: for arguments, data and configurations, before anything is written.
    """
    set_up_logging(training)
    with usage_errors():
        request = settle(task, model, data, settings, training)
        if (results := _finished(request)) is not None:
            request.say(f"{request.output_dir} holds this run, already finished")
            return results
        job = prepare(request)
        note = _note(job) if request.training.do_train else None
        plan = request.method.prepare(job) if request.training.do_train else None
    if request.training.chose_cpu:
        request.say("bf16 without an accelerator: running on the CPU (use_cpu=True)")
    if plan is None:
        return evaluate_saved(job)
    if request.settings.ranks and request.settings.size:
        request.warn(f"--size {request.settings.size} has no effect: the size is that of --ranks")
    with job.folder.claim(note), naming_a_full_disk(request.output_dir):
        rehearse(job, plan)
        return train(job, plan)


def prepare(request: Request) -> Job:
    """A checked request with its folder, rows and base model, or a `ValueError` for the first thing that is wrong."""
    folder = RunFolder(request.output_dir, OUTPUTS, request.is_main_process)
    for check in BEFORE_LOADING:
        check(request)
    check_folder(request, folder)
    folder.resume = _resume(request)
    if request.training.do_train:
        folder.check_clearing()
    ranks = _given_ranks(request)
    rows = request.task.load(request)
    job = Job(request, Source(request), rows, folder, ranks)
    for check in AFTER_LOADING:
        check(job)
    return job


def _given_ranks(request: Request) -> LearnedRanks | None:
    path = request.settings.ranks
    if not path:
        return None
    try:
        return LearnedRanks.load(path)
    except OSError as error:
        raise ValueError(
            f"--ranks {path} cannot be read: {error.strerror}. Give the ranks.json of a finished run."
        ) from error


def _settings(request: Request) -> tuple[dict, dict]:
    groups = settings_of(request.model, request.data, request.settings, request.training)
    return tuple(map(public, groups))


def _finished(request: Request) -> dict | None:
    """What a run of this very command left that had come to its end, where `--resume_from_checkpoint` asks for it."""
    folder = RunFolder(request.output_dir, OUTPUTS)
    asked = request.training.resume_from_checkpoint in ("True", "true")  # and no checkpoint by name
    if not (asked and request.training.do_train and folder.is_ours and folder.is_finished):
        return None
    _check_same(request)
    return read_json(folder.file(RESULTS_FILE))


def _check_same(request: Request) -> None:
    """Raise `ValueError` where the run in the output folder was begun with other settings or files."""
    check_same(request.output_dir, "settings", _settings(request)[0])
    check_same_files(request.output_dir, request.inputs)


def _note(job: Job) -> dict:
    """run.json: what was typed, and what decides the bits; raises `ValueError` where a resume would have others."""
    request, place = job.request, job.request.output_dir
    decides, rest = _settings(request)
    rows = {name: of_rows(job.rows.datasets[name]) for name in _deciding_rows(request)}
    base, tokenizer = job.source.loaded(), job.rows.tokenizer
    parts = {"rows": rows, "environment": environment(base, tokenizer, request.training.device)}
    if job.folder.resume.origin is not None:
        for part, own in parts.items():
            check_same(place, part, own)
        if differs := changed(place, "others", rest):
            request.say(f"changed since the run was begun, and of no effect on its result: {', '.join(differs)}")
    note = {"command": typed_command(), "version": __version__, "settings": decides, "others": rest, **parts}
    if request.is_main_process:
        note["inputs"] = of_files(request.inputs, noted(place, "inputs"))
    return note


def _deciding_rows(request: Request) -> list[str]:
    """Splits whose rows decide the result: those that are trained on, and those that choose the best checkpoint."""
    return ["train", "validation"] if request.training.load_best_model_at_end else ["train"]


def _resume(request: Request) -> Resume:
    """Where `--resume_from_checkpoint` goes on, said in one line."""
    asked, place = request.training.resume_from_checkpoint, request.output_dir
    if asked is None:
        return Resume()
    progress = partial(request.method.progress, request)
    resume = find_resume(place, asked, progress, partial(_check_same, request))
    for line in resume.passed_over:
        request.warn(f"passed over: {line}")
    check_any_whole(resume, place, progress(False).checkpoints)
    if asked in ("True", "true"):
        if resume.origin is None:
            request.say(f"no whole checkpoint in {place}: starting from the beginning")
        else:
            request.say("going on from {phase}, step {step}".format(**resume.origin))
    return resume


def train(job: Job, plan: Plan) -> dict:
    """The method's own phases, the final training, and what comes out; inside a claim of the folder."""
    request, resume = job.request, job.folder.resume
    built = plan()
    cost = CostMeter(earlier=read_manifest(resume.train_checkpoint)["cost"] if resume.train_checkpoint else None)
    termination = TerminationCallback()
    if built.ranks is not None:
        request.say(format_rank_table(built.ranks.ranks))
    trainer = job.trainer(built, [termination, cost, CheckpointManifest(cost, request.save_total_limit)])
    job.folder.clear()
    notes = {}
    if built.ranks is not None:
        trainer.add_callback(RankTracking(trainer, built.ranks))
        notes["total rank"] = built.ranks.total_rank
    show_phase(trainer, request.method.phase, lambda: notes)
    try:
        result = trainer.train(resume_from_checkpoint=resume.train_checkpoint)
    finally:
        termination.restore()
    termination.check(trainer.state)
    built.phases["retrain"] = cost.stop()
    trainer.save_state()
    trainer = _to_save(job, trainer, built)
    trainer.save_model()
    metrics = dict(result.metrics, train_samples=len(job.rows.datasets["train"]))
    if request.is_main_process:
        job.folder.write_json("train_results.json", metrics)
    return finish(job, trainer, built, metrics)


def _to_save(job: Job, trainer: Trainer, built) -> Trainer:
    """The Trainer of the model to evaluate and save, where that is another than the trained one."""
    if built.finish is None:
        return trainer
    trainer = make_trainer(job, built.finish(trainer.model), [])
    trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # or evaluation would, in its autocast
    return trainer
