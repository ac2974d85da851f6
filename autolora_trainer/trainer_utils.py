"""What every Trainer of the package needs: the right loss scale, and what a pass has to have fixed to be repeated."""

import ast
import copy
import inspect
import os
import textwrap
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from autolora_trainer.finite import FiniteStepMixin
from autolora_trainer.fused import base_model_of

# Heads that average over the micro-batch and do not look at `num_items_in_batch`, or not for every kind of label.
_MEAN_LOSS_HEADS = (
    *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"),
    *("ForImageClassification", "ForVideoClassification", "ForAudioClassification"),
)


def fix_loss_scale(trainer: Trainer) -> Trainer:
    """Make the loss of a step the mean over its whole global batch, for classification heads, T5, GPT-2 and its like.

    Trainer takes every model whose `forward` has `**kwargs` for one that divides by `num_items_in_batch`, and so
    neither divides by the accumulation steps nor averages over processes. Classification heads do not divide: with 4
    accumulation steps loss and gradient are 4 times too large (seen with transformers 5.23), and clipping and the
    virtual step of Eq. 4 with them; nor do models like T5, which average by themselves. `…LMHeadModel` (GPT-2, GPT,
    CTRL, BERT) has no `loss_type`, and although its loss is then the causal one, it comes out (T-1)/T too small.

    Returns:
        The same trainer.
    """
    base = base_model_of(trainer.model)
    if type(base).__name__.endswith(_MEAN_LOSS_HEADS) or not _reads_item_count(base):
        trainer.model_accepts_loss_kwargs = False
    elif (
        getattr(base, "loss_type", "") is None
        and _calls_loss_function(base)
        and not hasattr(base, "_loss_function")  # it was given one
        and not base.config.is_encoder_decoder  # whose labels are not shifted
    ):
        base.loss_type = "ForCausalLM"
        trainer._loss_shifts_labels = True  # which Trainer.__init__ has read already
    return trainer


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


# Private methods of Trainer that this package overrides or calls: without one of them a resume would not be exact, a
# bad step not skipped, or rows not in their order, and nothing would say so.
HOOKS = """
    _get_eval_sampler _get_grad_norm _get_num_items_in_batch _get_train_sampler _load_from_checkpoint
    _load_optimizer_and_scheduler _load_rng_state _prepare_inputs _run_epoch _save_checkpoint
    _save_optimizer_and_scheduler _save_rng_state
""".split()


def check_hooks(trainer: type = Trainer) -> None:
    """Raise `ImportError` if the installed transformers has not got every method that this package relies on."""
    missing = [name for name in HOOKS if not hasattr(trainer, name)]
    if missing:
        raise ImportError(
            f"transformers {transformers.__version__} is installed, whose Trainer has no {', '.join(missing)}; what a "
            "run computes and resumes from would change unseen. Install one that is known: transformers==5.23.0"
        )


check_hooks()


class ResumeMixin:
    """Over a Trainer: a resumed run trains what was left of it, no step more and the same rows (seen with transformers
    5.23 in both cases).

    Trainer looks at `max_steps` only after a step, so a run resumed from its last checkpoint would take one too many.
    And `group_by_length` draws an epoch's order from the global generator when the epoch begins; a resume draws it
    again, in whatever state the generator then is, so a checkpoint also holds the one in which the epoch began. Of
    several processes each has drawn its own numbers for dropout by then, and would draw another order; they get a
    generator that they share.
    """

    _order: torch.Generator | None = None
    _epoch_began: torch.Tensor | None = None

    def training_is_over(self) -> bool:
        return self.state.global_step >= self.state.max_steps

    def _run_epoch(self, *args, **kwargs):
        if self.training_is_over():
            self.control.should_training_stop = True
            return
        epoch, checkpoint = kwargs["epoch"], kwargs["resume_from_checkpoint"]
        if checkpoint is not None and epoch == kwargs["epochs_trained"]:
            began = self._epoch_file(checkpoint)
            if not kwargs["steps_trained_in_current_epoch"]:
                self._load_rng_state(checkpoint)
            elif os.path.exists(began):
                torch.set_rng_state(load_file(began)["state"])
        self._epoch_began = torch.get_rng_state()
        if self._order is not None:
            self._order.manual_seed(self.args.seed + int(epoch))
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler) and self.args.world_size > 1:
            sampler.generator = self._order = torch.Generator()
        return sampler

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        save_file({"state": self._epoch_began}, self._epoch_file(output_dir))

    def _epoch_file(self, checkpoint: str) -> str:
        process = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return os.path.join(checkpoint, f"epoch_rng_state{process}.safetensors")


class RetrainTrainer(FiniteStepMixin, ResumeMixin, Trainer):
    """The standard Trainer, but for steps that are no numbers, a resume at its very end, and the rows, the order and
    the loss of evaluation."""

    _evaluated = None  # the rows of the loader that Trainer keeps

    def evaluation_loop(self, *args, **kwargs):
        """Without label smoothing: `eval_loss` then compares between runs, and with LoRA's published ones."""
        smoother, self.label_smoother = self.label_smoother, None
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.label_smoother = smoother

    def get_eval_dataloader(self, eval_dataset=None):
        """All rows, and these: with `dataloader_drop_last` Trainer drops the last ones here too, and with
        `dataloader_persistent_workers` it takes the loader of other rows that it has kept (transformers 5.23)."""
        if eval_dataset is not self._evaluated:
            vars(self).get("_eval_dataloaders", {}).clear()
        self._evaluated = eval_dataset
        with self._argument("dataloader_drop_last", False):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._argument("dataloader_drop_last", False):
            return super().get_test_dataloader(test_dataset)

    def _get_eval_sampler(self, eval_dataset):
        """Rows in their order: with `group_by_length` Trainer evaluates and predicts them by length (transformers
        5.23), and predictions then belong to other rows."""
        with self._argument("train_sampling_strategy", "random"):
            return super()._get_eval_sampler(eval_dataset)

    @contextmanager
    def _argument(self, name: str, value):
        """Inside, an argument has another value."""
        given = getattr(self.args, name)
        setattr(self.args, name, value)
        try:
            yield
        finally:
            setattr(self.args, name, given)


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
