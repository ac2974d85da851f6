"""What methods share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from autolora_trainer.cut import copy_cut
from autolora_trainer.fused import adapt, lora_parts
from autolora_trainer.ranks import LearnedRanks, ModuleRank, fingerprint
from autolora_trainer.retrain import build_adapter
from autolora_trainer.rules import parse_budget


@dataclass
class Built:
    """The model to train, and what comes with it.

    Attributes:
        model: what the final training trains.
        ranks: the ranks it was built from; None for methods without a rank per module.
        phases: {phase: cost} of what ran before the final training.
        callbacks: of the final training.
        finish: trained model -> the model to evaluate and save, where that is another.
    """

    model: torch.nn.Module
    ranks: LearnedRanks | None = None
    phases: dict[str, dict] = field(default_factory=dict)
    callbacks: list[TrainerCallback] = field(default_factory=list)
    finish: Callable[[torch.nn.Module], torch.nn.Module] | None = None


def sharding(training) -> str | None:
    """`FSDP` or `DeepSpeed`, where the script's arguments or accelerate's configuration ask for it; else None."""
    for kind, argument in (("DeepSpeed", training.deepspeed), ("FSDP", training.fsdp)):
        if argument or parse_flag_from_env(f"ACCELERATE_USE_{kind.upper()}"):
            return kind
    return None


def refuse_sharding(run, reason: str, cure: str = "or drop --fsdp/--deepspeed") -> None:
    """Raise `ValueError` under FSDP and DeepSpeed, for what takes weights or gradients whole.

    Args:
        run: `pipeline.Run`.
        reason: a main clause, e.g. "AdaLoRA reads whole gradients".
        cure: what to do besides or instead of plain data parallelism.
    """
    kind = sharding(run.training)
    if kind is not None:
        raise ValueError(
            f"{reason}, and {kind} shards them. Use plain data parallelism (examples/accelerate/ddp.yaml), {cure}."
        )


def adapter_of(run, ranks: LearnedRanks) -> PeftModel:
    """The run's base model, anew, under the ordinary adapter of some ranks."""
    return build_adapter(run.base_model(), ranks, run.lora_config(), run.method.scaling)


def shrink(run, wide: PeftModel, ranks: LearnedRanks) -> PeftModel:
    """The ordinary adapter of `ranks` that a wide one, cut to them, computes like."""
    small = adapter_of(run, ranks)
    copy_cut(wide, small)
    return small


def probe_adapter(run) -> PeftModel:
    """The pre-trained model under a rank-1 adapter: tells which modules an adapter would have."""
    return adapt(run.base_model(), run.lora_config(r=1))


def skeleton_adapter(run) -> PeftModel:
    """The same on a model without weights: tells shapes before anything is written.

    Raises:
        ValueError: for a layer that is not linear: LoRA adapts it, and it has no rank here.
    """
    base = run.load_ahead()
    with torch.device("meta"):
        probe = adapt(type(base)(base.config), run.lora_config(r=1))
    for name, layer in probe.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer.get_base_layer(), (torch.nn.Linear, Conv1D)):
            raise ValueError(
                f"--method {run.method.method} finds ranks of linear layers, and --lora_target_modules has {name!r} "
                f"({type(layer.get_base_layer()).__name__}). Leave it out, or type --method lora."
            )
    return probe


def check_first_component(run, size: int, costs: list[int]) -> None:
    """Raise `ValueError` where the best component may cost more than the size, and no module would get one."""
    if run.method.min_rank == 0 and size < max(costs):
        raise ValueError(
            f"rank_budget {size} has no room for a component of the largest module, {max(costs):,} adapter "
            "parameters, which may be the best. Raise rank_budget."
        )


def component_costs(model: PeftModel) -> dict[str, int]:
    """{module: parameters of one rank-1 component, m_l + n_l}."""
    return {name: part.cost for name, part in lora_parts(model).items()}


def pattern_size(run, costs: dict[str, int]) -> int:
    """Adapter parameters of a pattern baseline: those of `--ranks FILE`, else `--rank_budget`, else uniform rank 4."""
    if run.given_ranks:
        run.given_ranks.check_names(costs, exactly=True)
        return sum(costs[name] * rank for name, rank in run.given_ranks.ranks.items())
    return parse_budget(run.method.rank_budget or "lora:4", list(costs.values()))


def pattern(run, rule: str, ranks: dict[str, int], model: PeftModel) -> LearnedRanks:
    """Ranks that no search made, in the form of those that a search did.

    Args:
        run: `pipeline.Run`.
        rule: the name of the pattern, for `ranks.json`.
        ranks: {module: rank}.
        model: the base model, under an adapter or not.
    """
    return LearnedRanks(
        modules={name: ModuleRank(rank) for name, rank in ranks.items()},
        base_model=run.base_model_name,
        base_model_fingerprint=fingerprint(model, ranks),
        initial_rank=run.given_ranks.initial_rank if run.given_ranks else run.method.initial_rank,
        rank_rule=rule,
    )


def check_pattern(run, share_out: Callable[[dict[str, int], int], dict[str, int]]) -> None:
    """Raise `ValueError` for a size that a pattern cannot have, before anything is written; see `build_pattern`."""
    if run.training.do_train:
        skeleton_adapter(run)
        size = pattern_size(run, run.costs)
        if not any(share_out(run.costs, size).values()):
            raise ValueError(
                f"--method {run.method.method} has {size:,} adapter parameters to share out, and a component takes "
                f"{min(run.costs.values()):,}. Raise --rank_budget, e.g. lora:1, or give other --ranks."
            )


def build_pattern(run, rule: str, share_out: Callable[[dict[str, int], int], dict[str, int]]) -> Built:
    """An adapter whose ranks no search made, in the form of one that a search did.

    Args:
        run: `pipeline.Run`.
        rule: the name of the pattern, for `ranks.json`.
        share_out: ({module: parameters of one component}, adapter parameters to spend) -> {module: rank}.
    """
    probe = probe_adapter(run)
    costs = component_costs(probe)
    learned = pattern(run, rule, share_out(costs, pattern_size(run, costs)), probe)
    return Built(adapter_of(run, learned), learned)
