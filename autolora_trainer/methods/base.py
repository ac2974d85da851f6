"""One object per method: one value of `--method`, and all that the package knows of it. Nobody else compares names.

check_request -> prepare -> learn -> (the final training, the same for all) -> finish
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import Trainer, TrainerCallback

from autolora_trainer.errors import sentence
from autolora_trainer.files import check_regular
from autolora_trainer.hub.card import Card
from autolora_trainer.hub.passages import json_in
from autolora_trainer.lora.heads import head_parameters
from autolora_trainer.lora.parts import masked_parameters
from autolora_trainer.ranks.adapter import fingerprint
from autolora_trainer.ranks.adapter_config import CONFIG_FILE
from autolora_trainer.ranks.adapter_file import check_loadable
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.runs.folder import RunFolder
from autolora_trainer.runs.resume import Progress
from autolora_trainer.training.finite import check_weights
from autolora_trainer.training.trainer import FinalTrainer


@dataclass(frozen=True)
class SavedForm:
    """One form of a result."""

    is_in: Callable[[str], bool]  # whether a folder holds it
    load: Callable[[torch.nn.Module, str], torch.nn.Module] | None  # (base model, folder); None: all is in the folder
    what: str = "adapter"  # it is, in a sentence
    trained: str = "adapter"  # whose parameters they are
    trainer: type[FinalTrainer] = FinalTrainer  # evaluates it


def peft_type_in(folder: str) -> str | None:
    """The type of the PEFT adapter in a folder; None where there is none, or its file is no JSON."""
    return json_in(folder, CONFIG_FILE).get("peft_type")


def _load_peft(base: torch.nn.Module, folder: str) -> PeftModel:
    if not os.path.exists(os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)):  # PEFT would ask the Hub for it
        raise ValueError(f"{SAFETENSORS_WEIGHTS_NAME} is missing")
    check_loadable(folder, (name for name, _ in base.named_modules()))
    return PeftModel.from_pretrained(base, folder)


PEFT_ADAPTER = SavedForm(is_in=lambda folder: os.path.exists(os.path.join(folder, CONFIG_FILE)), load=_load_peft)


def load_saved(forms, source, folder: str) -> tuple[torch.nn.Module, SavedForm]:
    """What an earlier run left in a folder, and its form, the first of `forms` that is there.

    Raises:
        ValueError: if there is nothing of the kind, or it does not fit.
        NonFiniteError: if it holds NaN or infinity.
    """
    form = next((form for form in forms if form.is_in(folder)), None)
    if form is None:
        raise ValueError(f"{folder} holds no adapter to evaluate. Add --do_train, or give its --output_dir.")
    if form.load is None:
        model = source.saved_model(folder)
        check_weights(model, folder)
        return model, form
    base = source.base_model()
    given = list(base.parameters())
    try:
        check_regular(folder)
        model = form.load(base, folder)
    except Exception as error:  # PEFT and safetensors raise nearly every kind
        raise ValueError(
            f"The adapter in {folder} does not load on {type(base).__name__}: {type(error).__name__}, "
            f"{sentence(error)} Train it again with --do_train --overwrite, or give another --output_dir."
        ) from error
    check_weights(model, folder, given)
    return model, form


@dataclass
class Built:
    """The model that the final training trains, and what comes with it."""

    model: torch.nn.Module
    ranks: LearnedRanks | None = None  # it was built from; None for methods without a rank per module
    phases: dict[str, dict] = field(default_factory=dict)  # {phase: cost} of what ran before
    callbacks: list[TrainerCallback] = field(default_factory=list)
    finish: Callable[[torch.nn.Module], torch.nn.Module] | None = None  # trained model -> the one to save, if another
    trainer: type[FinalTrainer] = FinalTrainer
    arguments: dict = field(default_factory=dict)  # of the training, those that differ from the user's


class Job(Protocol):
    """What a method may ask for; `scripts.job` has the real one."""

    request: object  # `request.settings` are the method's, `request.training` the final training's
    source: object  # of the base model
    rows: object  # of every split
    folder: RunFolder  # with what a resume found
    ranks: LearnedRanks | None  # of `--ranks`

    def split(self, val_fraction: float): ...  # (D_tr, D_val)
    def split_three(self, val_fraction: float): ...  # (D_tr, rows of D_val that order, rows of it that judge the size)
    def build(self, ranks: LearnedRanks, base: torch.nn.Module | None = None) -> PeftModel: ...
    def trainer(self, built: Built, callbacks: list, changes: dict | None = None) -> Trainer: ...  # the final one
    def try_ranks(self, ranks: dict[str, int], place: str) -> int: ...  # a trial, in a process of its own
    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


Plan = Callable[[], Built]  # its own phases, if any, then the model; whoever writes first calls job.folder.clear()


class Method(ABC):
    """What a method is by default: PEFT's adapter, the standard Trainer, no phase of its own."""

    name = ""  # the value of `--method`
    arguments: type | None = None  # a dataclass of its own fields, which other methods refuse
    # shared fields that act here: ranks, size, lora_r, lora_target_modules, peft_kwargs
    reads: frozenset[str] = frozenset()
    has_lora = False  # its adapter is a LoRA of ours, whose modules have costs, and parts where they are fused
    form: SavedForm = PEFT_ADAPTER  # of its result in a folder
    outputs: frozenset[str] = frozenset()  # names that it adds to the folder
    phase = "training"  # what its final training is called
    base_stays_frozen = True  # False: it refuses `--dtype` and quantization

    def check_request(self, request) -> None:
        """Raise `ValueError` for what the arguments alone rule out, of a run that trains."""

    @abstractmethod
    def prepare(self, job: Job) -> Plan:
        """Build and try what needs no training, and write nothing; raise `ValueError` for what the method cannot do
        with these rows and this model."""

    def steps_before(self, job: Job) -> int:
        """Training steps, at most, before the final training begins, of a phase that `rehearsals` has."""
        return 0

    def rehearsals(self, job: Job, plan: Plan) -> dict[str, Callable[[dict, list], Trainer]]:
        """{phase: (changed arguments, callbacks) -> the Trainer as it would begin}, of every training of the run; none
        where building it is work."""
        return {self.phase: lambda changes, callbacks: job.trainer(plan(), callbacks, changes)}

    def searches(self, request) -> bool:
        """Whether the run learns ranks by a search of its own."""
        return False

    def adapted(self, job: Job) -> list[str]:
        """Names of the modules and parts that its adapter has."""
        return list(job.source.costs) if self.has_lora else []

    def progress(self, request, trained: bool) -> Progress:
        """What an earlier run in `request.output_dir` has finished of the method's own phases; `trained`: there is a
        whole checkpoint of the final training."""
        return Progress()

    def parameters(self, model: torch.nn.Module) -> int:
        """Those that count as the adapter's, by default as in `count_parameters`."""
        return count_parameters(model)[0]

    def card(self, folder: str) -> Card:
        """What the model card of the result in `folder` says of the method."""
        return Card.of_adapter(self.name, self.has_lora)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(adapter, head): the trainable parameters outside the task's head, of fused projections those that can differ
    from zero, and those in it."""
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - head - masked_parameters(model), head


def given_pattern(job: Job, rule: str, ranks: dict[str, int], model: torch.nn.Module) -> LearnedRanks:
    """{module: rank} that no search made, in the form of those that a search did.

    Args:
        rule: the name of the pattern, for `ranks.json`.
        model: the base model, under an adapter or not.
    """
    return LearnedRanks(
        modules={name: ModuleRank(rank, experts=job.source.experts.get(name)) for name, rank in ranks.items()},
        base_model=job.source.name,
        base_model_fingerprint=fingerprint(model, ranks),
        initial_rank=job.ranks.initial_rank if job.ranks else job.request.settings.initial_rank,
        rank_rule=rule,
    )
