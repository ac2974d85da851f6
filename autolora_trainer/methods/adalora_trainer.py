"""The training of AdaLoRA on the standard Trainer: allocation after every step, regularisation, exact resume."""

import logging
import os

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from autolora_trainer.files import read_json, write_json
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.training.callbacks import cut_short
from autolora_trainer.training.trainer import FinalTrainer, trainable

logger = logging.getLogger("autolora_trainer")

ALLOCATOR_TENSORS = "adalora.safetensors"
ALLOCATOR_STATE = "adalora.json"
STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # running statistics of PEFT's RankAllocator


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


def orthogonal_regularization(model: PeftModel) -> torch.Tensor:
    """R of their Eq. 4 as PEFT weighs it: the mean of ||PᵀP - I|| and ||QQᵀ - I||, in Frobenius norm, over modules."""
    products = []
    for layer in lora_layers(model).values():
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        products += [a @ a.T, b.T @ b]
    return torch.stack([torch.linalg.norm(p - torch.eye(len(p), out=torch.empty_like(p))) for p in products]).mean()


class AllocationCallback(TrainerCallback):
    """Scores and masks singular values after every optimizer step: neither PEFT nor Trainer does so by itself.

    It raises `RuntimeError` at the start for a schedule of another number of steps, and at the end of a training that
    has not reached its budget, unless SIGTERM has stopped it on the way there.
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
        skipped = all(p.grad is None for p in model.parameters())  # see `training/finite.py`
        skipped |= self.trainer is not None and self.trainer.accelerator.optimizer_step_was_skipped  # by fp16's scaler
        scored = model.base_model.rankallocator.exp_avg_ipt
        if skipped and (step < config.total_step - config.tfinal or not scored):  # later ones do not read gradients
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


class AdaLoraTrainer(FinalTrainer):
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

    # the same pair of Trainer's hooks as the search's checkpoints (see search/state.py)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            allocator = self.model.base_model.rankallocator
            tensors = {f"model.{name}": parameter.detach() for name, parameter in trainable(self.model).items()}
            for kind in STATISTICS:
                tensors |= {f"{kind}.{name}": value for name, value in getattr(allocator, kind).items()}
            tensors = {name: value.contiguous() for name, value in tensors.items()}
            save_file(tensors, os.path.join(output_dir, ALLOCATOR_TENSORS))
            state = {"calls": self.allocation.calls, "rank_pattern": self.model.peft_config["default"].rank_pattern}
            write_json(os.path.join(output_dir, ALLOCATOR_STATE), state)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """In place of PEFT's loading: its files lack the masked triplets, so they do not fit a model in training."""
        tensors = load_file(os.path.join(resume_from_checkpoint, ALLOCATOR_TENSORS))
        with torch.no_grad():
            for name, parameter in trainable(self.model).items():
                parameter.copy_(tensors[f"model.{name}"])

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = read_json(os.path.join(checkpoint, ALLOCATOR_STATE))
        tensors = load_file(os.path.join(checkpoint, ALLOCATOR_TENSORS), device=str(self.args.device))
        allocator = self.model.base_model.rankallocator
        for kind in STATISTICS:
            own = {n.removeprefix(f"{kind}."): value for n, value in tensors.items() if n.startswith(f"{kind}.")}
            setattr(allocator, kind, own)
        self.allocation.calls = state["calls"]
        self.model.peft_config["default"].rank_pattern = state["rank_pattern"]
