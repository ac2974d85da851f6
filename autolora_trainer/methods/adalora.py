"""AdaLoRA (Zhang et al. 2023), as PEFT builds it: singular values are pruned while the final training runs.

    ΔW = P Λ Q;  the budget b(t) falls from init_r to target_r a module by a cubic law between `tinit` and
    `total_step - tfinal` (their Eq. 12), and triplets with the least smoothed sensitivity x uncertainty are masked

Settings: init_r = 1.5 target_r, β1 = β2 = 0.85 and the weight 0.1 of the orthogonal regularisation are those of the
paper's GLUE runs; its phases, in steps, are kept as shares of the training. Modules and lora_alpha are LoRA's here, so
that methods compare.
"""

import copy
import math
from dataclasses import replace

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model

from autolora_trainer.errors import sentence
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.targets import named_targets
from autolora_trainer.methods.adalora_trainer import AdaLoraTrainer, kept_parameters
from autolora_trainer.methods.base import PEFT_ADAPTER, Built, Job, Method, Plan, peft_type_in
from autolora_trainer.names import SEPARATOR, module_of
from autolora_trainer.ranks.budget import parse_budget
from autolora_trainer.training.processes import refuse_sharding
from autolora_trainer.training.trainer import optimizer_steps

MIN_STEPS = 3  # one that scores, one that allocates, one that trains what is left
ORTHOGONAL_WEIGHT = 0.1


def schedule(total_steps: int) -> dict[str, int]:
    """The phases of a training, for `AdaLoraConfig`: free, budgeting, and fine-tuning of what is left.

    MRPC in the paper has 600 and 1800 of 3450 steps, SST-2 6000 and 22000 of 50500: 15 % and 50 % are between its
    tasks' values, and so is an allocation every 600th of the training (MRPC: every step; SST-2: every 100).

    Raises:
        ValueError: for fewer than 3 steps, which leave no budgeting phase.
    Example:
        >>> schedule(3450)
        {'tinit': 517, 'tfinal': 1725, 'deltaT': 5, 'total_step': 3450}
        >>> schedule(3)
        {'tinit': 0, 'tfinal': 1, 'deltaT': 1, 'total_step': 3}
    """
    if total_steps < MIN_STEPS:
        raise ValueError(
            f"--method adalora needs at least {MIN_STEPS} optimizer steps to allocate its budget, got {total_steps}. "
            "Raise --num_train_epochs or --max_steps."
        )
    return {
        "tinit": total_steps * 15 // 100,
        "tfinal": total_steps // 2,
        "deltaT": max(1, total_steps // 600),
        "total_step": total_steps,
    }


def target_rank(method, costs: list[int]) -> int:
    """The average rank to end with: `--size` in units of a rank everywhere (rounded down), else `--lora_r`;
    `costs` are the parameters of one LoRA component, for every module. Raises `ValueError` below rank 1."""
    if method.size is None:
        return method.rank
    parameters = parse_budget(method.size, costs)
    if parameters < sum(costs):
        raise ValueError(
            f"size {method.size} is {parameters:,} adapter parameters, and rank 1 in every module has "
            f"{sum(costs):,}. AdaLoRA's budget is an average rank; raise size, e.g. lora:4."
        )
    return parameters // sum(costs)


def adalora_config(lora_config, target: int, **phases) -> AdaLoraConfig:
    """The settings of a `PeftModel`'s LoRA as AdaLoRA's, from 1.5 x `target` down to `target` singular values a module
    in the phases of `schedule`."""
    shared = "task_type target_modules exclude_modules lora_alpha lora_dropout modules_to_save".split()
    return AdaLoraConfig(
        **{name: getattr(lora_config, name) for name in shared},
        target_r=target,
        init_r=math.ceil(1.5 * target),
        orth_reg_weight=ORTHOGONAL_WEIGHT,
        **phases,
    )


class AdaLora(Method):
    name = "adalora"
    reads = frozenset({"lora_r", "size", "lora_target_modules"})
    has_lora = True
    form = replace(PEFT_ADAPTER, is_in=lambda folder: peft_type_in(folder) == "ADALORA", trainer=AdaLoraTrainer)

    def check_request(self, request) -> None:
        settings, training = request.settings, request.training
        if settings.use_rslora:
            raise ValueError("AdaLoRA scales by lora_alpha / init_r, got --use_rslora. Drop it.")
        if training.load_best_model_at_end:
            raise ValueError(
                "--load_best_model_at_end would bring back an adapter from before AdaLoRA had reached its budget. "
                "Drop it."
            )
        if training.auto_find_batch_size and training.max_steps <= 0:
            raise ValueError(
                "AdaLoRA's schedule is made for a number of steps, and --auto_find_batch_size may change it. Drop it, "
                "or add --max_steps."
            )
        for target in settings.lora_target_modules or ():
            if SEPARATOR in target:
                raise ValueError(
                    f"AdaLoRA adapts whole modules, got --lora_target_modules {target}. Give {module_of(target)}."
                )
        refuse_sharding(training, "AdaLoRA reads whole gradients")

    def prepare(self, job: Job) -> Plan:
        job.source.refuse_experts()
        job.source.refuse_nonlinear()
        skeleton = job.source.skeleton()
        with torch.device("meta"):
            config = named_targets(skeleton, job.source.lora_config(r=1))
            probe = get_peft_model(skeleton, config)  # whole modules, fused too
        costs = [part.cost for part in lora_parts(probe).values()]
        phases = schedule(optimizer_steps(job.request.training, len(job.rows.datasets["train"])))
        config = adalora_config(probe.peft_config["default"], target_rank(job.request.settings, costs), **phases)
        skeleton = job.source.skeleton()
        try:
            with torch.device("meta"):
                get_peft_model(skeleton, copy.deepcopy(config))  # PEFT writes into it
        except Exception as error:  # PEFT raises nearly every kind
            raise ValueError(
                f"--method adalora does not work with {type(skeleton).__name__}: {sentence(error)} Give other "
                "--lora_target_modules, or type --method lora."
            ) from error
        return lambda: Built(get_peft_model(job.source.base_model(), config), trainer=AdaLoraTrainer)

    def parameters(self, model: PeftModel) -> int:
        return kept_parameters(model)
