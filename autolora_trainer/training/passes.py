"""What a pass of a Trainer's model computes: the loss on the right scale, without records, in fp32, and repeatable."""

import ast
import copy
import inspect
import textwrap
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from transformers import Trainer
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from autolora_trainer.lora.parts import base_model_of
from autolora_trainer.training.own_loss import Scale, scale_of

# Heads that average over the micro-batch and do not look at `num_items_in_batch`, or not for every kind of label.
_MEAN_LOSS_HEADS = (
    *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"),
    *("ForImageClassification", "ForVideoClassification", "ForAudioClassification"),
)


def fix_loss_scale(trainer: Trainer) -> Trainer:
    """Make the loss of a step the mean over its whole global batch, for classification heads, T5, GPT-2 and its like,
    and return the trainer.

    Trainer takes every model whose `forward` has `**kwargs` for one that divides by `num_items_in_batch`, and so
    neither divides by the accumulation steps nor averages over processes. Classification heads do not divide: with 4
    accumulation steps loss and gradient are 4 times too large (seen with transformers 5.23), and clipping and the
    virtual step of Eq. 4 with them; nor do models like T5, which average by themselves. `…LMHeadModel` (GPT-2, GPT,
    CTRL, BERT) has no `loss_type`, and although its loss is then the causal one, it comes out (T-1)/T too small.

    A `compute_loss` of the user's own is scaled as it is written: see `own_loss`. Call this before `train()`, on a
    plain Trainer too; `AutoLoraTrainer` does so itself.
    """
    base, own = base_model_of(trainer.model), scale_of(trainer)
    if own is Scale.COUNT:
        return trainer  # the count is passed to it as Trainer passes it
    if own is Scale.MEAN or type(base).__name__.endswith(_MEAN_LOSS_HEADS) or not _reads_item_count(base):
        trainer.model_accepts_loss_kwargs = False
    elif _is_causal_without_saying(base):
        base.loss_type = "ForCausalLM"
        trainer._loss_shifts_labels = True  # which Trainer.__init__ has read already
    return trainer


def check_smoothing(model: torch.nn.Module, factor: float) -> None:
    """Raise `ValueError` where labels are scores or sets of classes: smoothing is of one class a target."""
    base = base_model_of(model)
    config = getattr(base, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem is None and type(base).__name__.endswith("ForSequenceClassification"):
        problem = "regression" if getattr(config, "num_labels", None) == 1 else None
    if factor and problem in ("regression", "multi_label_classification"):
        what = "scores" if problem == "regression" else "sets of classes"
        raise ValueError(
            f"label_smoothing_factor {factor} smooths classes, and the labels of this {type(base).__name__} are "
            f"{what}. Set it to 0."
        )


def shifts_labels(base: torch.nn.Module) -> bool:
    """Whether a model's loss compares every token with the label of the next."""
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return False
    causal = LOSS_MAPPING.get(getattr(base, "loss_type", None)) is ForCausalLMLoss
    return causal or _is_causal_without_saying(base)


def _is_causal_without_saying(base: torch.nn.Module) -> bool:
    return (
        getattr(base, "loss_type", "") is None
        and _calls_loss_function(base)
        and not hasattr(base, "_loss_function")  # it was given one
        and not base.config.is_encoder_decoder  # whose labels are not shifted
    )


def _reads_item_count(model: torch.nn.Module) -> bool:
    """Whether a model's `forward` divides by `num_items_in_batch`, itself or by passing its `**kwargs` on to
    `self.loss_function`. A wrong no is harmless: Trainer then passes no count, and averages over the micro-batches."""
    code = getattr(inspect.unwrap(type(model).forward), "__code__", None)
    named = code is not None and "num_items_in_batch" in code.co_names + code.co_varnames + code.co_consts
    return named or _calls_loss_function(model)


def _calls_loss_function(model: torch.nn.Module) -> bool:
    """Whether a model's `forward` calls `self.loss_function(…, **kwargs)`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(type(model).forward))))
    except (OSError, TypeError, SyntaxError):  # no source, or none by itself
        return False
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    losses = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "loss_function"]
    return any(keyword.arg is None for call in losses for keyword in call.keywords)


@contextmanager
def unrecorded(trainer: Trainer):
    """Inside, `compute_loss` leaves no records: what it counts on the trainer ends as it was.

    TRL's trainers count tokens and collect accuracies in `compute_loss`, and the passes of a hypergradient are no
    training. Records are numbers, and mappings that end in numbers, text or sequences of them; no data set is one.
    """
    records = {
        name: copy.deepcopy(value)
        for name, value in vars(trainer).items()
        if isinstance(value, (int, float, Mapping)) and not name.endswith("dataset") and _is_record(value)
    }
    try:
        yield
    finally:
        vars(trainer).update(records)


def _is_record(value) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_record, value.values()))
    if isinstance(value, (list, tuple, deque)):
        return all(map(_is_record, value))
    return value is None or isinstance(value, (int, float, str))


class RandomState:
    """The state of the generators that dropout draws from, to be restored before a pass is repeated."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state(device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            getattr(torch, self.device.type).set_rng_state(self.accelerator, self.device)


def is_full_precision(model: torch.nn.Module) -> bool:
    """Whether `model` runs in fp32 as it is: no autocast around its `forward`, no TF32 in its products."""
    return not hasattr(model, "_original_forward") and torch.backends.cuda.matmul.fp32_precision != "tf32"


@contextmanager
def full_precision(model: torch.nn.Module):
    """Inside, `model` runs without the autocast that accelerate wrapped around its `forward`, and without TF32, which
    `--tf32` and `--torch_compile` turn on.

    The difference of two bf16 passes is mostly rounding; two fp32 passes measure the implicit term of Eq. 5.
    """
    wrapped, original = model.forward, getattr(model, "_original_forward", None)  # set by Accelerator.prepare_model
    products = torch.backends.cuda.matmul.fp32_precision
    if products == "tf32":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    if original is not None:
        model.forward = original
    try:
        yield
    finally:
        if original is not None:
            model.forward = wrapped
        if products == "tf32":
            torch.backends.cuda.matmul.fp32_precision = products
