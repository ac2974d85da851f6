"""LoRA with its ranks tuned by trial and error: the rival of Table 5, "LoRA + Grid Search" over 16 configurations.

    D -> (D_tr, D_val);   for every configuration: train on D_tr, take the loss on D_val;   the best one, on all of D

A configuration is one rank for each projection, the same in every block: with query and value the grid is
{1, 2, 4, 8}², which is 16 (the paper does not say which 16 it had). A projection alone is divided at half the depth;
of more than two, `--grid_trials` are drawn.
`--sampler random` and `tpe` draw ranks from 1 to `initial_rank` instead. Configurations beyond `--size` are not
tried. The benchmark's validation rows take no part.

A trial is a process of its own with the training of the other methods, `num_train_epochs` included, so nothing of one
stays in memory for the next. Its result is a file, and Optuna's storage is `grid/study.db`: a run that was killed goes
on with `--resume_from_checkpoint` and does not run a finished trial again.
"""

import importlib.util
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass

from autolora_trainer.files import read_json, write_json
from autolora_trainer.methods.base import Built, Job, Plan, given_pattern
from autolora_trainer.methods.grid_space import Space, configurations, described, sampler, some
from autolora_trainer.methods.patterns import SizedMethod
from autolora_trainer.ranks.learned import RANKS_FILE, LearnedRanks
from autolora_trainer.runs.outputs import COST_FILE, TRIAL_FILE
from autolora_trainer.runs.resume import Progress
from autolora_trainer.search.arguments import check_schedule
from autolora_trainer.training.cost import sum_costs
from autolora_trainer.training.processes import sharding
from autolora_trainer.values import setting

TRIALS = 16  # §5.7
FOLDER, STUDY = "grid", "study.db"
ERROR = "error.txt"  # of a trial


@dataclass
class GridArguments:
    sampler: str | None = setting(None, "Of --method grid: grid (default), random or tpe (Optuna's samplers).")
    grid_trials: int | None = setting(None, f"Configurations that --method grid tries. Default: {TRIALS} (§5.7).")


class Grid(SizedMethod):
    name = "grid"
    arguments = GridArguments
    reads = frozenset({"size", "lora_target_modules"})
    outputs = frozenset({FOLDER})

    def check_request(self, request) -> None:
        training = request.training
        check_schedule(training.lr_scheduler_type, "a trial of --method grid")
        if importlib.util.find_spec("optuna") is None:
            raise ValueError('--method grid needs Optuna. Type pip install ".[grid]".')
        if training.world_size > 1 or sharding(training):
            raise ValueError(
                f"--method grid starts a process for every trial, got {training.world_size} processes. Start it "
                "without torchrun or accelerate launch, --fsdp and --deepspeed."
            )

    def prepare(self, job: Job) -> Plan:
        settings = job.request.settings
        job.split(settings.val_fraction)
        job.source.refuse_nonlinear()
        space = Space.of(settings, job.source.costs)
        least = sum(space.sizes.values()) * min(space.levels)
        if space.budget is not None and least > space.budget:
            raise ValueError(
                f"size {settings.size} is {space.budget:,} adapter parameters, and the smallest "
                f"configuration has {least:,}. Raise size."
            )
        return lambda: self._learn(job, space)

    def rehearsals(self, job: Job, plan: Plan) -> dict:
        return {}  # the first trial is a training to its end

    def progress(self, request, trained: bool) -> Progress:
        place = os.path.join(request.output_dir, FOLDER)
        names = os.listdir(place) if os.path.isdir(place) else []
        chosen = [os.path.join(place, COST_FILE), os.path.join(request.output_dir, RANKS_FILE)]
        trials = sum(os.path.isfile(os.path.join(place, name, TRIAL_FILE)) for name in names)
        return Progress(done=all(map(os.path.exists, chosen)), trials=trials)

    def _learn(self, job: Job, space: Space) -> Built:
        resume, cost_path = job.folder.resume, job.folder.file(FOLDER, COST_FILE)
        if resume.search_done or resume.train_checkpoint:
            ranks = LearnedRanks.load(job.folder.ranks_path)
            return Built(job.build(ranks), ranks, {"search": read_json(cost_path)})
        if space.budget is None:
            job.warn(
                "without --size the configurations are of different sizes, up to rank "
                f"{max(space.levels)} everywhere, and so is the best of them. Give --size, that of what it is "
                "compared with."
            )
        job.folder.clear()
        if job.rows.sharing:
            job.say(f"grid: {job.rows.sharing}")
        best, cost = search(job, space)
        job.say(f"grid: {described(best)} had the least held-out loss")
        base = job.source.base_model()
        ranks = given_pattern(job, self.name, space.ranks(best), base)
        write_json(cost_path, cost)
        ranks.save(job.folder.ranks_path)  # last: it marks the search as finished
        return Built(job.build(ranks, base), ranks, {"search": cost})


def evaluate(job: Job, space: Space, config: dict[str, int]) -> dict:
    """{"loss", "cost"} of a configuration: from its file, or from a trial in a process of its own; raises
    `RuntimeError` if that failed."""
    folder = job.folder.file(FOLDER, "-".join(map(str, config.values())))
    path, error = os.path.join(folder, TRIAL_FILE), os.path.join(folder, ERROR)
    if not os.path.isfile(path):
        os.makedirs(folder, exist_ok=True)
        with suppress(FileNotFoundError):  # of an earlier run
            os.remove(error)
        started = time.perf_counter()
        status = job.try_ranks(space.ranks(config), folder)
        if not os.path.isfile(path):
            reason = f"its process ended with status {status}"
            with suppress(OSError), open(error, encoding="utf-8") as file:
                reason = file.read().strip()
            raise RuntimeError(f"The trial with {described(config)} failed: {reason}")
        result = read_json(path)
        result["cost"]["wall_seconds"] = round(time.perf_counter() - started, 3)  # with the start of the process
        write_json(path, result)
    result = read_json(path)
    return {**result, "loss": math.inf if result["loss"] is None else result["loss"]}


class _Study:
    """Optuna's storage of the trials, in the folder of the grid, and which configuration is next."""

    def __init__(self, job: Job, space: Space):
        import optuna
        from sqlalchemy.engine import URL

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = URL.create("sqlite", database=os.path.abspath(job.folder.file(FOLDER, STUDY)))
        self.study = optuna.create_study(storage=str(url), study_name="ranks", load_if_exists=True)
        self.choices = {group: optuna.distributions.CategoricalDistribution(space.levels) for group in space.sizes}
        self.optuna, self.space, self.seed = optuna, space, job.request.training.seed
        self.kind = sampler(job.request.settings)
        self.possible = configurations(space.sizes, space.levels, space.budget, self.seed)
        self.wanted = min(job.request.settings.grid_trials or TRIALS, len(self.possible))

    def finished(self) -> list[dict[str, int]]:
        """The configurations whose loss is stored."""
        complete = (self.optuna.trial.TrialState.COMPLETE,)
        return [self._config(trial) for trial in self.study.get_trials(states=complete)]

    def next(self, known) -> tuple[dict[str, int], object]:
        """A configuration to try, and Optuna's trial where its sampler has drawn it; `known` are the ranks, as tuples,
        that have been tried."""
        if self.kind == "grid":
            return _first_unknown(some(self.possible, self.wanted, self.seed), known), None
        states = self.optuna.trial.TrialState
        while True:
            number = len(self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))
            # a sampler of its own for every trial: what is drawn depends on the trials before it and on nothing else,
            # so a run that goes on draws what it would have drawn
            self.study.sampler = self._make_sampler(self.seed + number)
            trial = self.study.ask(self.choices)
            config = self._config(trial)
            if number >= 100 * self.wanted:  # it keeps drawing what it knows
                unknown = _first_unknown(self.possible, known)
                return unknown, trial if config == unknown else None
            if self.space.fits(config):
                return config, trial
            self.study.tell(trial, state=states.PRUNED)

    def store(self, config: dict[str, int], trial, loss: float) -> None:
        if trial is not None:
            self.study.tell(trial, loss)
        else:
            create = self.optuna.trial.create_trial
            self.study.add_trial(create(params=config, distributions=self.choices, value=loss))

    def _config(self, trial) -> dict[str, int]:
        """In the order of the groups."""
        return {group: trial.params[group] for group in self.space.sizes}

    def _make_sampler(self, seed: int):
        if self.kind == "random":
            return self.optuna.samplers.RandomSampler(seed=seed)
        # a trial that was killed is still running in the storage, and must not count
        startup = max(2, self.wanted // 4)
        return self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=False)


def _first_unknown(configs: list[dict[str, int]], known) -> dict[str, int]:
    return next(config for config in configs if tuple(config.values()) not in known)


def search(job: Job, space: Space) -> tuple[dict[str, int], dict]:
    """Run the trials that are missing: the configuration with the least loss on D_val (of equals the first), and the
    cost of all trials."""
    os.makedirs(job.folder.file(FOLDER), exist_ok=True)
    study = _Study(job, space)
    results = {tuple(config.values()): evaluate(job, space, config) for config in study.finished()}
    while len(results) < study.wanted:
        config, trial = study.next(results)
        ranks = tuple(config.values())
        known, result = ranks in results, evaluate(job, space, config)
        results[ranks] = result
        study.store(config, trial, result["loss"])
        if not known:
            job.say(
                f"grid: trial {len(results)} of {study.wanted}, {described(config)}: held-out loss "
                f"{result['loss']:.4f} ({result['cost']['wall_seconds']:.0f} s)"
            )
    best = min(results, key=lambda ranks: results[ranks]["loss"])
    if not math.isfinite(results[best]["loss"]):
        raise RuntimeError(
            "The loss of every configuration is no number: all trainings diverged. Lower learning_rate."
        )
    return dict(zip(space.sizes, best)), sum_costs(result["cost"] for result in results.values())
