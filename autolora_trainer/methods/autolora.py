"""AutoLoRA: search (§4.2-4.3), ranks (§4.4), and the adapter that the final training retrains (§4.5)."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from accelerate.utils import release_memory
from transformers import Trainer

from autolora_trainer.errors import sentence
from autolora_trainer.files import read_json
from autolora_trainer.hub.card import PAPER_URL, Card
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import adaptable_names
from autolora_trainer.methods.base import Built, Job, Plan
from autolora_trainer.methods.patterns import SizedMethod, check_first_component, cut_adapter, equal_scores
from autolora_trainer.methods.search_phase import search, search_arguments, search_trainer
from autolora_trainer.ranks.adapter import build_adapter, is_other_model
from autolora_trainer.ranks.budget import parse_budget
from autolora_trainer.ranks.learned import RANKS_FILE, LearnedRanks
from autolora_trainer.report.curve import format_curve
from autolora_trainer.runs.outputs import COST_FILE, HANDOVER_FILE, SEARCH_FOLDER
from autolora_trainer.runs.resume import Progress
from autolora_trainer.search.arguments import check_schedule
from autolora_trainer.search.checks import check_devices, check_length, check_sharding
from autolora_trainer.search.handover import load_handover
from autolora_trainer.training.callbacks import CutCallback
from autolora_trainer.training.processes import fsdp_plugin, refuse_sharding, sharding
from autolora_trainer.training.trainer import optimizer_steps
from autolora_trainer.values import setting


@dataclass
class RetrainArguments:
    retrain_epochs: float | None = setting(None, "Epochs of the retrain of autolora. Default: num_train_epochs.")
    retrain_init: str | None = setting(
        None,
        "search: from the search's kept components and head; scratch: from the pre-trained model (§4.5). "
        "Default: search where this run searches, without --retrain_cut.",
    )
    retrain_cut: float = setting(
        0.0,
        "Share of the retrain that trains all initial_rank components; then every update is cut to its "
        "learned rank (truncated SVD) and trained on. 0: the learned ranks from the start (§4.5).",
    )

    count_search: bool = setting(
        False, "Take the passes of the search off those of the retrain, so that both cost what training alone would."
    )

    @property
    def warm_start(self) -> bool:
        """Whether the retrain begins where the search ended; `ranks`, of `--ranks`, stands beside these fields."""
        if self.retrain_init is None:
            return self.ranks is None and not self.retrain_cut
        return self.retrain_init == "search"


class AutoLora(SizedMethod):
    name = "autolora"
    arguments = RetrainArguments
    outputs = frozenset({SEARCH_FOLDER})
    phase = "retrain"

    def searches(self, request) -> bool:
        return not request.settings.ranks

    def check_request(self, request) -> None:
        settings, training = request.settings, request.training
        if self.searches(request):
            if training.mixed_precision == "fp16":  # of --fp16, or of accelerate's configuration
                raise ValueError(
                    "The search does not run in fp16: its loss scale hides the hypergradient. Use --bf16 or fp32."
                )
            check_schedule(training.lr_scheduler_type, "the search")
            if training.auto_find_batch_size:
                raise ValueError(
                    "--auto_find_batch_size tries batch sizes until one fits, and the search has a batch of D_val "
                    "beside each. Drop it, and lower --per_device_train_batch_size with --gradient_accumulation_steps."
                )
            check_sharding(sharding(training), fsdp_plugin(training), settings.hypergradient)
        if settings.retrain_cut:
            refuse_sharding(training, "A truncated SVD takes whole LoRA weights")
            if training.load_best_model_at_end:
                raise ValueError(
                    "--load_best_model_at_end could bring back an adapter from before --retrain_cut cut it. Drop one "
                    "of them."
                )

    def prepare(self, job: Job) -> Plan:
        if self.searches(job.request):
            self._check_search(job)
        else:
            self._check_given_ranks(job)
        return lambda: self._learn(job)

    def _check_search(self, job: Job) -> None:
        """Raise `ValueError` for processes, rows, modules or a size that would fail in a search or after it."""
        settings, source = job.request.settings, job.source
        arguments = search_arguments(job.request)
        check_devices(arguments)
        check_length(arguments, self.steps_before(job))
        (job.split_three if arguments.finds_size else job.split)(arguments.val_fraction)
        size = None if arguments.finds_size else settings.size
        if size is not None:
            equal_scores(job, size, settings.least_rank)
        source.refuse_nonlinear()
        if size is not None:
            check_first_component(job, parse_budget(size, list(source.costs.values())), settings.least_rank)

    def _check_given_ranks(self, job: Job) -> None:
        """Raise `ValueError` for `--ranks` that do not fit the model: names alone do not tell."""
        settings, source, ranks = job.request.settings, job.source, job.ranks
        skeleton = source.skeleton()
        try:
            build_adapter(skeleton, ranks, source.lora_config(), settings.scaling)
        except ValueError as error:
            raise ValueError(
                f"--ranks {settings.ranks} does not fit {type(skeleton).__name__}: {sentence(error)} Give ranks that "
                "were learned on this model, or search without --ranks."
            ) from error
        if settings.retrain_cut:
            ranks.check_names(source.costs, exactly=True)
            largest = max(ranks.ranks, key=ranks.ranks.get)
            if ranks.ranks[largest] > ranks.initial_rank:
                raise ValueError(
                    f"--retrain_cut begins with initial_rank {ranks.initial_rank} of --ranks in every module, and "
                    f"{largest!r} has rank {ranks.ranks[largest]}. Drop --retrain_cut, or correct the file."
                )

    def adapted(self, job: Job) -> list[str]:
        return list(job.ranks.modules) if job.ranks else super().adapted(job)

    def progress(self, request, trained: bool) -> Progress:
        if not self.searches(request):
            return Progress()
        search = os.path.join(request.output_dir, SEARCH_FOLDER)
        files = [os.path.join(request.output_dir, RANKS_FILE), os.path.join(search, COST_FILE)]
        if request.settings.warm_start and not trained:
            files.append(os.path.join(search, HANDOVER_FILE))  # what the retrain begins with
        return Progress(done=all(map(os.path.exists, files)), checkpoints=search)

    def steps_before(self, job: Job) -> int:
        if not self.searches(job.request):
            return 0
        rows = len(job.rows.datasets["train"]) * (1 - job.request.settings.val_fraction)
        return optimizer_steps(search_arguments(job.request), math.ceil(rows))

    def rehearsals(self, job: Job, plan: Plan) -> dict[str, Callable[[dict, list], Trainer]]:
        if not self.searches(job.request):
            return super().rehearsals(job, plan)
        arguments, rank = search_arguments(job.request), job.request.settings.initial_rank

        def retrain(changes: dict, callbacks: list) -> Trainer:  # of other ranks than it will have
            wide = add_lora(job.source.base_model(), job.source.lora_config(r=rank))
            return job.trainer(Built(wide), callbacks, changes)

        return {
            "search": lambda changes, callbacks: search_trainer(job, replace(arguments, **changes), callbacks),
            "retrain": retrain,
        }

    def _learn(self, job: Job) -> Built:
        settings, resume = job.request.settings, job.folder.resume
        search_folder, phases = job.folder.file(SEARCH_FOLDER), {}
        if job.ranks is not None:
            ranks = job.ranks
            job.say(f"ranks from {os.path.basename(settings.ranks)}, no search")
        elif resume.search_done:
            ranks = LearnedRanks.load(job.folder.ranks_path)
            phases["search"] = read_json(os.path.join(search_folder, COST_FILE))
        else:
            ranks, phases["search"] = search(job, search_folder)
            if ranks.curve is not None:
                size = sum(job.source.costs[name] * rank for name, rank in ranks.ranks.items())
                job.say(format_curve(ranks.curve, size))
            release_memory()  # the search's model hangs in cycles, and on a GPU there may be no room for two
        base = job.source.base_model()
        ranks.check_names(adaptable_names(base))
        if is_other_model(ranks, base):
            job.warn(f"the ranks were learned on {ranks.base_model}, and this base model has other weights")
        built = Built(base, ranks, phases, arguments=retrain_length(job, phases))
        if settings.retrain_cut:
            built.model = add_lora(base, job.source.lora_config(r=ranks.initial_rank))
            built.callbacks = [CutCallback(ranks, settings.retrain_cut)]
            built.finish = lambda wide: cut_adapter(job, wide.cpu(), ranks)
            return built
        built.model = job.build(ranks, base)
        if settings.warm_start and not resume.train_checkpoint:
            load_handover(os.path.join(search_folder, HANDOVER_FILE), built.model)
        return built

    def card(self, folder: str) -> Card:
        how = f"with one rank for every module, learned by [AutoLoRA]({PAPER_URL})"
        sentence = "A LoRA adapter{of_base}, trained on {data}, " + how + "."
        return Card(self.name, sentence, ("lora", "autolora"), cites=True)


def retrain_length(job: Job, phases: dict) -> dict:
    """The arguments that say how long the retrain is, where it differs from the user's."""
    settings, training = job.request.settings, job.request.training
    changes = {} if settings.retrain_epochs is None else {"num_train_epochs": settings.retrain_epochs}
    if not settings.count_search or "search" not in phases:
        return changes
    planned = copy.copy(training)
    planned.num_train_epochs = changes.get("num_train_epochs", training.num_train_epochs)
    steps = optimizer_steps(planned, len(job.rows.datasets["train"]))
    taken = math.ceil(phases["search"]["passes"] / training.gradient_accumulation_steps)
    if taken >= steps:
        raise ValueError(
            f"The search took {taken} steps, and the retrain has {steps}: --count_search leaves none. Drop it, or "
            "train longer."
        )
    job.say(f"--count_search: the search took {taken} of {steps} steps, {steps - taken} are left")
    return {**changes, "max_steps": steps - taken}
