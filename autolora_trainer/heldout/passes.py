"""Passes over held-out rows: their loss as a sum and a count, without dropout, and leaving the model as it was."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from autolora_trainer.compat import gradients_through_4_bit
from autolora_trainer.lora.parts import base_model_of
from autolora_trainer.training.passes import shifts_labels
from autolora_trainer.training.shares import IGNORED, Idle, count_targets


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Inside, `model` computes without dropout, no parameter asks for a gradient, and activations are kept or computed
    anew as in training; afterwards modes, `requires_grad` and pending gradients are what they were.

    transformers checkpoints activations in training mode only, where dropout drops; here its layers do in
    evaluation mode (without reentrance: there the factors of components would get no gradient).
    """
    modes = {module: module.training for module in model.modules()}
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = [m for m in modes if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    config = getattr(base_model_of(model), "config", None)
    caches = [part for part in _configs(config) if getattr(part, "use_cache", None)]
    model.eval()
    for parameter in asked:
        parameter.requires_grad_(False)
    for part in caches:
        part.use_cache = False  # as in training; a checkpointed layer would fill it twice
    own = {layer: vars(layer).get("forward") for layer in layers}  # accelerate's hooks set one
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        with gradients_through_4_bit(model):
            yield
    finally:
        for layer, forward in own.items():
            del layer.forward
            if forward is not None:
                layer.forward = forward
        for part in caches:
            part.use_cache = True
        for parameter in asked:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def _configs(config) -> list:
    """A model's config and those of its parts (vision and text)."""
    names = getattr(config, "sub_configs", None) or ()
    return [config, *filter(None, (getattr(config, name, None) for name in names))] if config is not None else []


def target_loss(model: torch.nn.Module, inputs: Mapping, forward: Callable | None = None):
    """The summed loss and the number of the targets of one batch, for a transformers model.

    Args:
        inputs: keyword arguments of the model, labels among them.
        forward: inputs -> (mean loss, outputs). Default: the model's own loss.
    Returns:
        (sum, count), scalars. Where no gradient is asked for, and the model's logits (or log-probabilities of the
        targets, of TRL's fused head) explain its loss, one of each for every row, (b,): differences between rows then
        say how sure a mean is.
    """
    if forward is None:
        outputs = model(**inputs)
        loss = outputs.loss
    else:
        loss, outputs = forward(inputs)
    count = count_targets(model, inputs)
    if not torch.is_grad_enabled():
        rows = _rows(model, outputs, inputs.get("labels")) if isinstance(outputs, Mapping) else None
        rounding = 2 * torch.finfo(loss.dtype).eps  # of a model in bfloat16: near in one batch is near in all
        near = {
            "rtol": max(1e-3, rounding),
            "atol": 1e-6,
            "equal_nan": True,
        }  # or NaN of a row would hide in its batch
        if rows is not None and torch.isclose(rows[0].sum() / rows[1].sum(), loss.float(), **near):
            return rows
    return loss * count, count


def _rows(model: torch.nn.Module, outputs: Mapping, labels) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(sum, count) of every row by the usual losses; None for labels of another kind."""
    if outputs.get("log_probs") is not None and outputs.get("label_mask") is not None:
        return -outputs["log_probs"].float().sum(-1), outputs["label_mask"].sum(-1).float()
    logits = outputs.get("logits")
    if not torch.is_tensor(logits) or not torch.is_tensor(labels):
        return None
    logits, ones = logits.float(), torch.ones(len(labels), device=labels.device)
    if labels.is_floating_point():
        squared = logits.shape[-1] == 1 or labels.dim() == 1
        loss = mse_loss if squared else binary_cross_entropy_with_logits
        if logits.numel() != labels.numel():
            return None
        return loss(logits.view(labels.shape), labels, reduction="none").reshape(len(labels), -1).mean(1), ones
    if labels.dim() == 1 and logits.dim() == 2:
        return cross_entropy(logits, labels, reduction="none"), ones
    if labels.dim() != 2 or logits.shape[:-1] != labels.shape:
        return None
    if shifts_labels(base_model_of(model)):
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(1), (labels != IGNORED).sum(1).float()


@contextmanager
def last_outputs(model: torch.nn.Module) -> Iterator[dict]:
    """What the model's last forward inside gave, where that has names."""
    found: dict = {}

    def keep(module, arguments, outputs):
        found.clear()
        found.update(outputs if isinstance(outputs, Mapping) else {})

    hook = model.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def ordered_batches(rows, batch_size: int, collate: Callable, process_index: int = 0, num_processes: int = 1) -> list:
    """Rows as batches, those of like length together, of which this process takes its share; every row is in one, and
    where they do not come out even some processes have an `Idle` one."""
    order = sorted(range(len(rows)), key=lambda row: _length(rows[row]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    own = [collate([rows[row] for row in batch]) for batch in batches[process_index::num_processes]]
    if len(own) < -(-len(batches) // num_processes):
        own.append(Idle(collate([rows[row] for row in batches[0]])))
    return own


def _length(row) -> int:
    ids = row.get("input_ids") if isinstance(row, Mapping) else None
    return len(ids) if ids is not None else 0
