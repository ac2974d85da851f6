"""`AutoLoraTrainer`: a Trainer whose training is the search of Algorithm 1.

    while not converged:
        1. W descends ∇_W L_tr(W, D_tr)                       (`training_step`, then Trainer's own optimizer step)
        2. A descends ∇_A L_val(W - η ∇_W L_tr(W), D_val)     (`outer_step`)

Both steps use one gradient of the training loss, computed once, at the W and α that the step began with. The selection
variables and their optimizer live beside the model, not in it.
"""

from contextlib import nullcontext

import torch
from peft import PeftModel
from transformers import Trainer

from autolora_trainer.heldout.groups import parted
from autolora_trainer.heldout.split import split_held_out
from autolora_trainer.lora.heads import trained_beside_lora
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.names import module_of
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.report.trackers import spare_the_run
from autolora_trainer.search import hypergradient
from autolora_trainer.search.base import SearchBase, adapted
from autolora_trainer.search.callback import RankSelectionCallback, SearchTracking
from autolora_trainer.search.checks import (
    check_batch,
    check_construction,
    check_environment,
    check_optimizer,
    check_prepared,
)
from autolora_trainer.search.handover import handover_tensors, start_from
from autolora_trainer.search.logs import SelectionMeans, selection_entropy, show_in_notebook, with_phase
from autolora_trainer.search.measure import MeasurementMixin
from autolora_trainer.search.passes import HypergradientPassesMixin
from autolora_trainer.search.reach import Reach, without_reentrance
from autolora_trainer.search.rules import check_reachable
from autolora_trainer.search.selection import attach_gates
from autolora_trainer.search.state import SearchStateMixin
from autolora_trainer.search.suitability import check_order, check_trainer
from autolora_trainer.training.finite import FiniteStepMixin
from autolora_trainer.training.finite_rows import FiniteRowsMixin
from autolora_trainer.training.padding import align_tokens, tokenizer_of, warn_of_padding
from autolora_trainer.training.passes import RandomState, fix_loss_scale
from autolora_trainer.training.progress import show_phase
from autolora_trainer.training.shares import SharesMixin
from autolora_trainer.training.trainer import ResumeMixin


class AutoLoraMixin(
    MeasurementMixin,
    HypergradientPassesMixin,
    SearchStateMixin,
    FiniteStepMixin,
    FiniteRowsMixin,
    ResumeMixin,
    SharesMixin,
):
    """The search as a mixin over `transformers.Trainer` or a subclass of it: `class MyTrainer(AutoLoraMixin,
    Seq2SeqTrainer)`.

    Args:
        model: a `PeftModel` whose LoRA adapter has rank `args.initial_rank` everywhere, or any model together with
            `peft_config`.
        args: `AutoLoraTrainingArguments`.
        train_dataset: the training set. It is split into D_tr and D_val by `args.val_fraction`, unless `val_dataset`
            is given, which then is D_val whole.
        val_dataset: D_val, if you split yourself, as the collator takes it; or the same object as `eval_dataset`, and
            the Trainer prepares it. Another `eval_dataset` stays the benchmark's: it takes no part in the search.
        size_dataset: rows that judge the size where it is found; others of D_val order the components. Default: half
            of D_val.
        peft_config: the `LoraConfig` to wrap `model` with; its `r` is replaced by `args.initial_rank`.
        callbacks, **trainer_arguments: as in `Trainer`.
    Attributes:
        gates: the `SelectionGates` of the model. `gates.bake()` folds α into the adapter, `gates.remove()` lets go of
            it.
        learned_ranks: `LearnedRanks`, after `train()`.
    Raises:
        ValueError: before the first step, for what the search cannot do.
    """

    _checked = False  # whether a batch has been looked at

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        check_order(cls, AutoLoraMixin)
        check_trainer(cls)

    def __init__(
        self,
        model=None,
        args=None,
        *,
        train_dataset=None,
        val_dataset=None,
        size_dataset=None,
        peft_config=None,
        callbacks=None,
        **trainer_arguments,
    ):
        held_out = {"val_dataset": val_dataset, "size_dataset": size_dataset}
        check_construction(model, args, train_dataset, held_out, peft_config, trainer_arguments)
        model = adapted(model, peft_config, args.initial_rank)
        callbacks = [callback() if isinstance(callback, type) else callback for callback in callbacks or []]
        if not any(isinstance(callback, RankSelectionCallback) for callback in callbacks):
            callbacks.append(RankSelectionCallback())
        super().__init__(model=model, args=args, train_dataset=train_dataset, callbacks=callbacks, **trainer_arguments)
        if val_dataset is not None and val_dataset is trainer_arguments.get("eval_dataset"):
            val_dataset = self.eval_dataset  # which the Trainer has prepared likewise
        elif val_dataset is not None:
            check_prepared(self, train_dataset, val_dataset)
        fix_loss_scale(self)
        align_tokens(self.model, tokenizer_of(self.processing_class, self.data_collator))
        place = self.args.device if self.is_fsdp_enabled else None  # where the weights will be
        self.gates = attach_gates(self.model, args.constraint, gate_scaling=args.gate_scaling, device=place)
        if self.gates.initial_rank != args.initial_rank:
            self.gates.remove()
            raise ValueError(
                f"The adapter has rank {self.gates.initial_rank}, and the search asks for initial_rank="
                f"{args.initial_rank}. Use LoraConfig(r={args.initial_rank}) or "
                f"initial_rank={self.gates.initial_rank}."
            )
        check_optimizer(self)
        check_reachable(args, self.gates.parts)
        # after the Trainer has prepared its rows, as TRL's do: tokenized, packed
        self.train_dataset, self.val_dataset, groups = parted(self, val_dataset, size_dataset)
        adamw, learning_rate = torch.optim.AdamW, args.selection_learning_rate  # §5.1
        self.selection_optimizer = adamw([self.gates.logits], lr=learning_rate, weight_decay=0.0)
        self.order_dataset, self.size_dataset = self.val_dataset, size_dataset
        if size_dataset is None and args.finds_size:
            self.order_dataset, self.size_dataset = split_held_out(self.val_dataset, args.seed, groups)
        warn_of_padding(self, self.train_dataset)
        self.selection_passes = 0  # forward-backward passes that selection steps took, on this process
        self._val_batches = self._endless_batches(self.order_dataset)
        self._window = []  # (inputs, RandomState) of the micro-batches of a selection step
        self.means, self.reach = SelectionMeans(self.gates.selection.device), Reach(self.gates)
        self.base = SearchBase(self.model, {module_of(name): layer for name, layer in self.gates.layers.items()})
        self.fresh_heads = {name: p.detach().clone() for name, p in trained_beside_lora(self.model).items()}
        self.rank_selection = next(c for c in self.callback_handler.callbacks if isinstance(c, RankSelectionCallback))
        self.rank_selection.search = self
        # both first in line: when training ends, they are through before a tracker closes what they write to
        others = [callback for callback in self.callback_handler.callbacks if callback is not self.rank_selection]
        self.callback_handler.callbacks = [self.rank_selection, SearchTracking(self), *others]
        spare_the_run(self)
        show_phase(self, "search", self.means.latest)
        show_in_notebook(self)

    def train(self, *args, **kwargs):
        """Run the search. Afterwards `learned_ranks` holds the ranks; the gates stay on the model."""
        check_environment(self)
        with without_reentrance(self.model, self.args):
            return super().train(*args, **kwargs)

    def hyperparameter_search(self, *args, **kwargs):
        """Not of a search.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "hyperparameter_search makes a model for every trial, and the selection variables belong to the one that "
            "was given. Call it on the Trainer of the retrain, with a model_init that calls build_adapter."
        )

    def training_is_over(self) -> bool:
        return super().training_is_over() or self.rank_selection.settled

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Step 1 of Algorithm 1 for one micro-batch; after the last one of a window, step 2 every T weight steps."""
        if not self._checked:
            check_batch(self, inputs)
            self._checked = True
        takes_selection_step = self.state.global_step % self.args.hypergradient_interval == 0
        if takes_selection_step:
            self._window.append((self._prepare_inputs(dict(inputs)), RandomState(self.args.device)))
            # a by-product of the backward pass, and unlike <B_j, ∂L/∂B_j> / α_j it has no pole at α_j = 0
            self.gates.selection.requires_grad_(self._shares_base_point())
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.gates.selection.requires_grad_(False)
        if takes_selection_step and self.accelerator.sync_gradients:
            self.outer_step(num_items_in_batch)
            self._window.clear()
        return loss

    def outer_step(self, num_items_in_batch=None) -> None:
        """Step 2 of Algorithm 1: β descends the hypergradient of Eq. 5. The weights and their gradients end as they
        were."""
        with self.reach.explained():
            result = self._hypergradient(num_items_in_batch)
        self._check_reach()
        self._step_selection(result)

    @torch.no_grad()
    def _step_selection(self, result: hypergradient.Hypergradient) -> None:
        direct, gradient = self.gates.pull_back(result.direct), self.gates.pull_back(result.total)
        usable = bool(torch.isfinite(gradient).all() & torch.isfinite(result.val_loss))
        self._usable_selection_step = usable
        if not usable:
            self.means.sums[3] += 1
            return
        self.gates.logits.grad = gradient
        self.selection_optimizer.step()
        self.gates.logits.grad = None
        self.gates.refresh()
        self.means.add(result.val_loss, gradient, direct)

    def trained_tensors(self):
        yield from super().trained_tensors()
        yield "the selection", self.gates.selection
        yield "the selection logits", self.gates.logits.detach()

    @property
    def learned_ranks(self) -> LearnedRanks | None:
        return self.rank_selection.learned_ranks

    def start_retrain(self, model: PeftModel) -> None:
        """Let `model` begin where the search ended: with its kept components and its trained heads. Without it a
        retrain starts from the pre-trained model, as in the paper (§4.5).

        Args:
            model: an adapter on the same base model, of the learned ranks. Of others up to `initial_rank` a module
                begins with its leading components: by singular value, for the rule `threshold` by α.
        Raises:
            ValueError: if `model` has a module, rank or head that the search did not have, or lacks a head that it
                trained, or if its base model is another one.
        """
        built = {name: part.rank for name, part in lora_parts(model).items()}
        directions, found = self.args.rank_rule != "threshold", self.rank_selection.found
        chosen = {} if found is None else found.chosen
        if {name: len(own) for name, own in chosen.items() if own} != built:
            order = self.gates.selection.argsort(dim=1, descending=True, stable=True).tolist()
            rows = [list(range(len(own))) if directions else own for own in order]
            chosen = {name: sorted(own[: built.get(name, 0)]) for name, own in zip(self.gates.names, rows)}
        start_from(handover_tensors(self.gates, chosen, directions, self.model), model, self.base.check)
        self.base.hand_over_buffers(model)

    def log(self, logs, *args, **kwargs):
        """Log with the phase in the keys: `search_train_loss`, `search_val_loss`, `search_total_rank`, …"""
        training, logs = "loss" in logs, with_phase(logs)
        if training:
            if self.args.rank_rule == "threshold":  # contributions are taken at the end
                logs["search_total_rank"] = sum(self.find().ranks.values())
            logs["search_selection_entropy"] = selection_entropy(self.gates.selection)
            logs.update(self.means.take())
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        """The adapter as it computes, with α folded in; a checkpoint of the search holds the two apart."""
        with self.gates.apart() if _internal_call else nullcontext():
            super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, *args, **kwargs):
        with self.gates.apart():
            super()._load_from_checkpoint(*args, **kwargs)

    def push_to_hub(self, *args, **kwargs):
        """Push the adapter of `save_model`: Trainer saves what it pushes as it saves a checkpoint."""
        with self.gates.folded():
            return super().push_to_hub(*args, **kwargs)


class AutoLoraTrainer(AutoLoraMixin, Trainer):
    __doc__ = "The search of Algorithm 1 on `transformers.Trainer`." + AutoLoraMixin.__doc__.split(".", 1)[1]
