"""AdaLoRA (Zhang et al. 2023), as PEFT builds it: singular values are pruned while the final training runs.

    ΔW = P Λ Q;  the budget b(t) falls from init_r to target_r a module by a cubic law between `tinit` and
    `total_step - tfinal` (their Eq. 12), and triplets with the least smoothed sensitivity x uncertainty are masked

Settings: init_r = 1.5 target_r, β1 = β2 = 0.85 and the weight 0.1 of the orthogonal regularisation are those of the
paper's GLUE runs; its phases, in steps, are kept as shares of the training. Modules and lora_alpha are LoRA's here, so
that methods compare.
"""

import json
import logging
import math
import os

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from autolora_trainer.checkpoints import write_atomically
from autolora_trainer.errors import sentence
from autolora_trainer.fused import SEPARATOR, lora_layers, module_of
from autolora_trainer.methods.common import Built, component_costs, refuse_sharding, skeleton_adapter
from autolora_trainer.rules import parse_budget
from autolora_trainer.termination import cut_short
from autolora_trainer.trainer_utils import RetrainTrainer

logger = logging.getLogger("autolora_trainer")

ALLOCATOR_TENSORS = "adalora.safetensors"
ALLOCATOR_STATE = "adalora.json"
STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # running statistics of PEFT's RankAllocator
MIN_STEPS = 3  # one that scores, one that allocates, one that trains what is left
ORTHOGONAL_WEIGHT = 0.1


def schedule(total_steps: int) -> dict[str, int]:
    """The phases of a training: free, budgeting, and fine-tuning of what is left.

    MRPC in the paper has 600 and 1800 of 3450 steps, SST-2 6000 and 22000 of 50500: 15 % and 50 % are between its
    tasks' values, and so is an allocation every 600th of the training (MRPC: every step; SST-2: every 100).

    Returns:
        `tinit`, `tfinal`, `deltaT` and `total_step` of `AdaLoraConfig`.
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


def optimizer_steps(arguments, rows: int) -> int:
    """How many steps a Trainer with these arguments will take on `rows` rows, before there is a Trainer."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    size, processes = arguments.train_batch_size, arguments.world_size
    batches = rows // size if arguments.dataloader_drop_last else math.ceil(rows / size)
    batches = batches // processes if arguments.dataloader_drop_last else math.ceil(batches / processes)
    return math.ceil(arguments.num_train_epochs * max(1, math.ceil(batches / arguments.gradient_accumulation_steps)))


def target_rank(method, costs: list[int]) -> int:
    """The average rank to end with: `--rank_budget` in units of a rank everywhere (rounded down), else `--lora_r`.

    Args:
        method: `MethodArguments`.
        costs: parameters of one LoRA component, for every module.
    Raises:
        ValueError: if the budget is below rank 1.
    """
    if method.rank_budget is None:
        return method.rank
    parameters = parse_budget(method.rank_budget, costs)
    if parameters < sum(costs):
        raise ValueError(
            f"rank_budget {method.rank_budget} is {parameters:,} adapter parameters, and rank 1 in every module has "
            f"{sum(costs):,}. AdaLoRA's budget is an average rank; raise rank_budget, e.g. lora:4."
        )
    return parameters // sum(costs)


def adalora_config(lora_config, target: int, **phases) -> AdaLoraConfig:
    """LoRA's settings as AdaLoRA's, from 1.5 x `target` down to `target` singular values a module.

    Args:
        lora_config: of a `PeftModel`, so that its target modules are known.
        target: average rank at the end.
        **phases: see `schedule`.
    """
    return AdaLoraConfig(
        task_type=lora_config.task_type,
        target_modules=lora_config.target_modules,
        exclude_modules=lora_config.exclude_modules,
        lora_alpha=lora_config.lora_alpha,
        lora_dropout=lora_config.lora_dropout,
        modules_to_save=lora_config.modules_to_save,
        target_r=target,
        init_r=math.ceil(1.5 * target),
        orth_reg_weight=ORTHOGONAL_WEIGHT,
        **phases,
    )


def plan(run, base: torch.nn.Module) -> AdaLoraConfig:
    """The whole configuration of a run, from its arguments and data."""
    with torch.device("meta"):
        probe = get_peft_model(type(base)(base.config), run.lora_config(r=1))
    target = target_rank(run.method, list(component_costs(probe).values()))
    phases = schedule(optimizer_steps(run.training, len(run.train_dataset)))
    return adalora_config(probe.peft_config["default"], target, **phases)


def check(run) -> None:
    """Raise `ValueError` for what AdaLoRA cannot do, before anything is written."""
    if not run.training.do_train:
        return
    if run.method.use_rslora:
        raise ValueError("AdaLoRA scales by lora_alpha / init_r, got --use_rslora. Drop it.")
    if run.training.load_best_model_at_end:
        raise ValueError(
            "--load_best_model_at_end would bring back an adapter from before AdaLoRA had reached its budget. Drop it."
        )
    if run.training.auto_find_batch_size and run.training.max_steps <= 0:
        raise ValueError(
            "AdaLoRA's schedule is made for a number of steps, and --auto_find_batch_size may change it. Drop it, or "
            "add --max_steps."
        )
    for target in run.method.lora_target_modules or ():
        if SEPARATOR in target:
            raise ValueError(
                f"AdaLoRA adapts whole modules, got --lora_target_modules {target}. Give {module_of(target)}."
            )
    refuse_sharding(run, "AdaLoRA reads whole gradients")
    skeleton_adapter(run)
    base = run.load_ahead()
    config = plan(run, base)
    try:
        with torch.device("meta"):
            get_peft_model(type(base)(base.config), config)
    except Exception as error:  # PEFT raises nearly every kind
        raise ValueError(
            f"--method adalora does not work with {type(base).__name__}: {sentence(error)} Give other "
            "--lora_target_modules, or type --method lora."
        ) from error


def build(run) -> Built:
    base = run.base_model()
    return Built(get_peft_model(base, plan(run, base)))


# ---- what is left after allocation


def is_adalora(model: torch.nn.Module) -> bool:
    return isinstance(getattr(model, "peft_config", {}).get("default"), AdaLoraConfig)


def kept_ranks(model: PeftModel) -> dict[str, int]:
    """{module: singular values that the last allocation kept}; all of them before the first."""
    pattern = model.peft_config["default"].rank_pattern or {}
    pattern = {name.removesuffix(".default"): kept for name, kept in pattern.items()}
    return {
        name: sum(pattern.get(f"{name}.lora_E", [True] * layer.lora_E["default"].shape[0]))
        for name, layer in lora_layers(model).items()
    }


def kept_parameters(model: PeftModel) -> int:
    """Adapter parameters of the kept triplets, which are those that are saved: m + n + 1 for each."""
    layers, ranks = lora_layers(model), kept_ranks(model)
    return sum(
        rank * (layers[name].lora_A["default"].shape[1] + layers[name].lora_B["default"].shape[0] + 1)
        for name, rank in ranks.items()
    )


# ---- training


def orthogonal_regularization(model: PeftModel) -> torch.Tensor:
    """R of their Eq. 4 as PEFT weighs it: the mean of ||PᵀP - I|| and ||QQᵀ - I||, in Frobenius norm, over modules."""
    products = []
    for layer in lora_layers(model).values():
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        products += [a @ a.T, b.T @ b]
    return torch.stack([torch.linalg.norm(p - torch.eye(len(p), out=torch.empty_like(p))) for p in products]).mean()


class AllocationCallback(TrainerCallback):
    """Scores and masks singular values after every optimizer step: neither PEFT nor Trainer does so by itself.

    Raises:
        RuntimeError: before the first step if the schedule was made for another number of steps, and at the end of a
            training that has not reached its budget, unless SIGTERM has stopped it on the way there.
    """

    def __init__(self):
        self.calls = 0  # of this training, resumed parts included
        self.trainer = None  # whose callback it is

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        planned = model.peft_config["default"].total_step
        if state.max_steps != planned:
            raise RuntimeError(f"AdaLoRA's schedule is for {planned} steps, and the training has {state.max_steps}.")

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):  # gradients are still there
        config, step = model.peft_config["default"], state.global_step + 1
        skipped = all(p.grad is None for p in model.parameters())  # see `finite.py`
        skipped |= self.trainer is not None and self.trainer.accelerator.optimizer_step_was_skipped  # by fp16's scaler
        if skipped and step < config.total_step - config.tfinal:  # later ones do not read gradients
            return
        model.base_model.update_and_allocate(step)
        self.calls += 1

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.trainer is not None and cut_short(self.trainer):
            return
        config = model.peft_config["default"]
        if not self.calls or config.rank_pattern is None:
            raise RuntimeError(
                f"AdaLoRA ended after {state.global_step} steps without having allocated its budget: its adapter is "
                "no AdaLoRA adapter."
            )
        kept, budget = sum(kept_ranks(model).values()), model.base_model.rankallocator.target_bgt
        if kept > budget:
            raise RuntimeError(
                f"AdaLoRA ended with {kept} singular values, and its budget is {budget}: training stopped at step "
                f"{state.global_step} of {config.total_step}."
            )
        if kept < budget:
            logger.warning(f"AdaLoRA kept {kept} of {budget} singular values: the others had equal scores")


class AdaLoraTrainer(RetrainTrainer):
    """The standard Trainer with AdaLoRA's allocation, an evaluation loss without the regularisation, and exact resume.

    PEFT saves only the kept triplets, and masked ones can come back while the budget falls. A checkpoint therefore
    holds, beside PEFT's files, every trainable tensor whole and the allocator's running statistics.
    """

    def __init__(self, model=None, args=None, callbacks=None, **arguments):
        self.allocation = AllocationCallback()
        # PEFT's forward pass adds the regularisation to a loss that the model itself has computed: never under label
        # smoothing, and whole in every micro-batch of one that counts items. It is added once a step, below
        model.base_model.forward = model.base_model.model.forward
        super().__init__(model=model, args=args, callbacks=[self.allocation, *(callbacks or [])], **arguments)
        self.allocation.trainer = self

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Trainer's loss, in training with the regularisation, once a step."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            term = self.model.peft_config["default"].orth_reg_weight * orthogonal_regularization(self.model)
            counts_items = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            loss = loss + (term / self.current_gradient_accumulation_steps if counts_items else term)
        return (loss, outputs) if return_outputs else loss

    # the same pair of Trainer's hooks as the search's checkpoints (see trainer.py)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            allocator = self.model.base_model.rankallocator
            tensors = {f"model.{name}": parameter.detach() for name, parameter in self._trainable().items()}
            for kind in STATISTICS:
                tensors |= {f"{kind}.{name}": value for name, value in getattr(allocator, kind).items()}
            tensors = {name: value.contiguous() for name, value in tensors.items()}
            save_file(tensors, os.path.join(output_dir, ALLOCATOR_TENSORS))
            pattern = self.model.peft_config["default"].rank_pattern
            state = {"calls": self.allocation.calls, "rank_pattern": pattern}
            write_atomically(os.path.join(output_dir, ALLOCATOR_STATE), json.dumps(state) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """In place of PEFT's loading: its files lack the masked triplets, so they do not fit a model in training."""
        tensors = load_file(os.path.join(resume_from_checkpoint, ALLOCATOR_TENSORS))
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                parameter.copy_(tensors[f"model.{name}"])

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        with open(os.path.join(checkpoint, ALLOCATOR_STATE), encoding="utf-8") as file:
            state = json.load(file)
        tensors = load_file(os.path.join(checkpoint, ALLOCATOR_TENSORS), device=str(self.args.device))
        allocator = self.model.base_model.rankallocator
        for kind in STATISTICS:
            prefix = f"{kind}."
            statistics = {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
            setattr(allocator, kind, statistics)
        self.allocation.calls = state["calls"]
        self.model.peft_config["default"].rank_pattern = state["rank_pattern"]

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
