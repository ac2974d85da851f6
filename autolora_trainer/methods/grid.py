"""LoRA with its ranks tuned by trial and error: the rival of Table 5, "LoRA + Grid Search" over 16 configurations.

    D -> (D_tr, D_val);   for every configuration: train on D_tr, take the loss on D_val;   the best one, on all of D

A configuration is one rank for each projection, the same in every block: with query and value the grid is
{1, 2, 4, 8}², which is 16 (the paper does not say which 16 it had). A projection alone is divided at half the depth;
of more than two, `--grid_trials` are drawn.
`--sampler random` and `tpe` draw ranks from 1 to `initial_rank` instead. Configurations beyond `--rank_budget` are not
tried. The benchmark's validation rows take no part.

A trial is a process of its own with the training of the other methods, `num_train_epochs` included, so nothing of one
stays in memory for the next. Its result is a file, and Optuna's storage is `grid/study.db`: a run that was killed goes
on with `--resume_from_checkpoint` and does not run a finished trial again.
"""

import dataclasses
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import random
import threading
import time
import traceback

from autolora_trainer.checkpoints import write_atomically
from autolora_trainer.cost import CostMeter, sum_costs
from autolora_trainer.errors import one_line
from autolora_trainer.finite import NonFiniteError
from autolora_trainer.methods.common import (
    Built,
    adapter_of,
    component_costs,
    pattern,
    probe_adapter,
    sharding,
    skeleton_adapter,
)
from autolora_trainer.methods.linear import depths, split_block
from autolora_trainer.ranks import LearnedRanks, ModuleRank
from autolora_trainer.rules import parse_budget
from autolora_trainer.trainer_utils import full_precision

LEVELS = (1, 2, 4, 8)
TRIALS = 16  # §5.7
SAMPLERS = ("grid", "random", "tpe")
LISTED = 65_536  # configurations in memory, at most
FOLDER, RESULT, ERROR, COST, STUDY = "grid", "result.json", "error.txt", "cost.json", "study.db"


# ---- configurations


def groups(names) -> dict[str, list[str]]:
    """{label: modules that share a rank}: the projections of a model, or the halves of the only one.

    Example:
        >>> groups(["0.q", "0.v", "1.q", "1.v"])
        {'q': ['0.q', '1.q'], 'v': ['0.v', '1.v']}
        >>> groups(["0.q", "1.q"])
        {'lower': ['0.q'], 'upper': ['1.q']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split_block(name)[1], []).append(name)
    if len(found) > 1:
        tails = {label: label.rpartition(".")[2] for label in found}
        unique = len(set(tails.values())) == len(tails)
        return {tails[label] if unique else label: modules for label, modules in found.items()}
    places = depths(names)
    halves: dict[str, list[str]] = {"lower": [], "upper": []}
    for name, place in zip(names, places):
        halves["upper" if 2 * place > max(places) else "lower"].append(name)
    return {label: modules for label, modules in halves.items() if modules}


def configurations(sizes: dict[str, int], levels, budget: int | None = None, seed: int = 0) -> list[dict[str, int]]:
    """Every {group: rank} with ranks from `levels` that does not exceed the budget, in order; where there are more
    than `LISTED`, the least and some that are drawn.

    Args:
        sizes: {group: adapter parameters of rank 1 in all its modules}.
        levels: ranks.
        budget: adapter parameters, at most.
        seed: of the draw.
    Example:
        >>> configurations({"q": 10, "v": 10}, (1, 2), budget=30)
        [{'q': 1, 'v': 1}, {'q': 1, 'v': 2}, {'q': 2, 'v': 1}]
    """
    if len(levels) ** len(sizes) <= LISTED:
        every = itertools.product(levels, repeat=len(sizes))
    else:
        generator = random.Random(seed)
        every = [tuple(generator.choice(levels) for _ in sizes) for _ in range(LISTED)]
        every = sorted({(min(levels),) * len(sizes), *every})
    found = (dict(zip(sizes, ranks)) for ranks in every)
    return [config for config in found if budget is None or parameters(config, sizes) <= budget]


def parameters(config: dict[str, int], sizes: dict[str, int]) -> int:
    return sum(rank * sizes[group] for group, rank in config.items())


def some(items: list, count: int, seed: int) -> list:
    """At most `count` of the items, drawn by the seed, in their order.

    Example:
        >>> some([1, 2], 16, seed=0), len(some(list(range(100)), 16, seed=0))
        ([1, 2], 16)
    """
    if len(items) <= count:
        return items
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]


@dataclasses.dataclass
class Space:
    """What a run searches in: {module: group}, {group: parameters of rank 1}, levels, budget."""

    groups: dict[str, str]
    sizes: dict[str, int]
    levels: tuple[int, ...]
    budget: int | None

    @classmethod
    def of(cls, run, costs: dict[str, int]) -> "Space":
        members = {name: group for group, names in groups(list(costs)).items() for name in names}
        sizes: dict[str, int] = {}
        for name, cost in costs.items():
            sizes[members[name]] = sizes.get(members[name], 0) + cost
        levels = LEVELS if sampler(run) == "grid" else tuple(range(1, run.method.initial_rank + 1))
        budget = None if run.method.rank_budget is None else parse_budget(run.method.rank_budget, list(costs.values()))
        return cls({name: members[name] for name in costs}, sizes, levels, budget)

    def fits(self, config) -> bool:
        return self.budget is None or parameters(config, self.sizes) <= self.budget

    def ranks(self, config: dict[str, int]) -> dict[str, int]:
        """{module: rank}."""
        return {name: config[group] for name, group in self.groups.items()}


def sampler(run) -> str:
    return run.method.sampler or "grid"


def check(run) -> None:
    """Raise `ValueError` for what the method cannot do, before anything is written."""
    if not run.training.do_train:
        return
    if importlib.util.find_spec("optuna") is None:
        raise ValueError('--method grid needs Optuna. Type pip install "autolora_trainer[grid]".')
    if run.training.world_size > 1 or sharding(run.training):
        raise ValueError(
            f"--method grid starts a process for every trial, got {run.training.world_size} processes. Start it "
            "without torchrun or accelerate launch, --fsdp and --deepspeed."
        )
    run.split(run.method.val_fraction)
    skeleton_adapter(run)
    space = Space.of(run, run.costs)
    least = sum(space.sizes.values()) * min(space.levels)
    if space.budget is not None and least > space.budget:
        raise ValueError(
            f"rank_budget {run.method.rank_budget} is {space.budget:,} adapter parameters, and the smallest "
            f"configuration has {least:,}. Raise rank_budget."
        )


# ---- trials


def folder_of(run, config: dict[str, int]) -> str:
    return os.path.join(run.output_dir, FOLDER, "-".join(map(str, config.values())))


def finished_trials(output_dir: str) -> int:
    """How many trials of an earlier run in `output_dir` have left their result."""
    place = os.path.join(output_dir, FOLDER)
    names = os.listdir(place) if os.path.isdir(place) else []
    return sum(os.path.isfile(os.path.join(place, name, RESULT)) for name in names)


def is_finished(output_dir: str) -> bool:
    """Whether an earlier run has chosen its configuration; see `build`."""
    return os.path.exists(os.path.join(output_dir, FOLDER, COST)) and os.path.exists(
        os.path.join(output_dir, "ranks.json")
    )


def run_trial(application, model, data, method, training, ranks: dict[str, int], folder: str, parent: int) -> None:
    """One trial, in a process of its own: writes result.json, {"loss", "cost"}, or error.txt, into `folder`.

    Args:
        application: class of the script's application.
        model, data, method, training: the run's arguments.
        ranks: {module: rank}.
        folder: of this trial.
        parent: process id of the run; without it the trial ends too.
    """
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with open(os.path.join(folder, "log.txt"), "w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
        result = train_trial(application, model, data, method, training, ranks)
        write_atomically(os.path.join(folder, RESULT), json.dumps(result) + "\n")
    except BaseException as error:
        write_atomically(os.path.join(folder, ERROR), f"{type(error).__name__}: {one_line(error)}\n")
        if os.environ.get("AUTOLORA_DEBUG") == "1":
            traceback.print_exc()
        os._exit(1)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def train_trial(application, model, data, method, training, ranks: dict[str, int]) -> dict:
    """{"loss", "cost"} of an adapter with these ranks, trained on D_tr: its loss on D_val."""
    from autolora_trainer.pipeline import Run, make_trainer, set_up_logging  # which imports the methods

    set_up_logging(training)
    run = Run(model, data, method, training, application())
    run.application.load_data(run)
    run.datasets["train"], held_out = run.split(method.val_fraction)
    learned = LearnedRanks({name: ModuleRank(rank) for name, rank in ranks.items()}, initial_rank=method.initial_rank)
    adapter = adapter_of(run, learned)
    cost = CostMeter()
    trainer = make_trainer(run, adapter, [cost])
    try:
        trainer.train()
    except NonFiniteError:  # a configuration that diverges is the worst, and no reason to end the others
        return {"loss": math.inf, "cost": cost.stop()}
    trainer.compute_metrics = None  # of the benchmark's rows; the loss is what a search compares
    with full_precision(trainer.model):
        loss = trainer.evaluate(held_out)["eval_loss"]
    return {"loss": loss if math.isfinite(loss) else math.inf, "cost": cost.stop()}  # one that diverged is the worst


def trial_arguments(run, folder: str):
    """The final training's arguments for a trial: the same training, and no files of its own."""
    return dataclasses.replace(
        run.training,
        output_dir=folder,
        do_train=True,
        do_eval=False,
        do_predict=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        load_best_model_at_end=False,
        resume_from_checkpoint=None,
        report_to=[],
        disable_tqdm=True,
    )


def evaluate(run, space: Space, config: dict[str, int]) -> dict:
    """The result of a configuration: from its file, or from a new process.

    Raises:
        RuntimeError: if the trial failed.
    """
    folder = folder_of(run, config)
    path = os.path.join(folder, RESULT)
    if not os.path.isfile(path):
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(os.path.join(folder, ERROR)):
            os.remove(os.path.join(folder, ERROR))
        started = time.perf_counter()
        status = run_in_process(run, space.ranks(config), folder)
        if not os.path.isfile(path):
            try:
                with open(os.path.join(folder, ERROR), encoding="utf-8") as file:
                    reason = file.read().strip()
            except OSError:
                reason = f"its process ended with status {status}"
            raise RuntimeError(f"The trial with {described(config)} failed: {reason}")
        result = _read(path)
        result["cost"]["wall_seconds"] = round(time.perf_counter() - started, 3)  # with the start of the process
        write_atomically(path, json.dumps(result) + "\n")
    return _read(path)


def run_in_process(run, ranks: dict[str, int], folder: str) -> int:
    """`run_trial` in a new process, to its end; its exit status."""
    arguments = (run.model, run.data, run.method, trial_arguments(run, folder), ranks, folder, os.getpid())
    # a fork would share this process's threads and devices
    process = multiprocessing.get_context("spawn").Process(target=run_trial, args=(type(run.application), *arguments))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
    return process.exitcode


def _read(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def described(config: dict[str, int]) -> str:
    return ", ".join(f"{group} {rank}" for group, rank in config.items())


# ---- the search


def search(run, space: Space) -> tuple[dict[str, int], dict]:
    """Run the trials that are missing.

    Returns:
        The configuration with the least loss on D_val (of equals the first), and the cost of all trials.
    """
    import optuna
    from sqlalchemy.engine import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.makedirs(os.path.join(run.output_dir, FOLDER), exist_ok=True)
    url = URL.create("sqlite", database=os.path.abspath(os.path.join(run.output_dir, FOLDER, STUDY)))
    study = optuna.create_study(storage=str(url), study_name="ranks", load_if_exists=True)
    choices = {group: optuna.distributions.CategoricalDistribution(space.levels) for group in space.sizes}
    seed = run.training.seed
    possible = configurations(space.sizes, space.levels, space.budget, seed)
    wanted = min(run.method.grid_trials or TRIALS, len(possible))
    grid = some(possible, wanted, seed)
    results: dict[tuple, dict] = {}
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        results[tuple(trial.params[group] for group in space.sizes)] = evaluate(run, space, _in_order(trial, space))
    while len(results) < wanted:
        number = len(study.get_trials(deepcopy=False, states=done))
        trial = None
        if sampler(run) == "grid":
            config = next(config for config in grid if tuple(config.values()) not in results)
        else:
            # a sampler of its own for every trial: what is drawn depends on the trials before it and on nothing else,
            # so a run that goes on draws what it would have drawn
            study.sampler = _make_sampler(optuna, sampler(run), seed + number, wanted)
            trial = study.ask(choices)
            config = _in_order(trial, space)
            if number >= 100 * wanted:  # it keeps drawing what it knows
                config = next(config for config in possible if tuple(config.values()) not in results)
            elif not space.fits(config):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
        known = tuple(config.values()) in results
        result = evaluate(run, space, config)
        results[tuple(config.values())] = result
        if trial is not None and _in_order(trial, space) == config:
            study.tell(trial, result["loss"])
        else:
            study.add_trial(optuna.trial.create_trial(params=config, distributions=choices, value=result["loss"]))
        if not known:
            run.say(
                f"grid: trial {len(results)} of {wanted}, {described(config)}: held-out loss {result['loss']:.4f} "
                f"({result['cost']['wall_seconds']:.0f} s)"
            )
    best = min(results, key=lambda ranks: results[ranks]["loss"])
    if not math.isfinite(results[best]["loss"]):
        raise RuntimeError(
            "The loss of every configuration is no number: all trainings diverged. Lower learning_rate."
        )
    return dict(zip(space.sizes, best)), sum_costs(result["cost"] for result in results.values())


def _in_order(trial, space: Space) -> dict[str, int]:
    return {group: trial.params[group] for group in space.sizes}


def _make_sampler(optuna, name: str, seed: int, trials: int):
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # a trial that was killed is still running in the storage, and must not count
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, trials // 4), constant_liar=False)


def build(run) -> Built:
    if run.resume.search_done or run.resume.train_checkpoint:
        ranks = LearnedRanks.load(run.ranks_path)
        cost = _read(os.path.join(run.output_dir, FOLDER, COST))
    else:
        probe = probe_adapter(run)
        space = Space.of(run, component_costs(probe))
        if space.budget is None:
            run.warn(
                "without --rank_budget the configurations are of different sizes, up to rank "
                f"{max(space.levels)} everywhere, and so is the best of them. To compare with AutoLoRA at its default "
                f"size, add --rank_budget lora:{max(1, run.method.initial_rank // 2)}."
            )
        best, cost = search(run, space)
        run.say(f"grid: {described(best)} had the least held-out loss")
        ranks = pattern(run, "grid", space.ranks(best), probe)
        write_atomically(os.path.join(run.output_dir, FOLDER, COST), json.dumps(cost) + "\n")
        ranks.save(run.ranks_path)  # last: it marks the search as finished
    return Built(adapter_of(run, ranks), ranks, {"search": cost})
