"""`AutoLoraTrainer`: a Trainer whose training is the search of Algorithm 1.

    while not converged:
        1. W descends ∇_W L_tr(W, D_tr)                       (`training_step`, then Trainer's own optimizer step)
        2. A descends ∇_A L_val(W - η ∇_W L_tr(W), D_val)     (`outer_step`)

Both steps use one gradient of the training loss, computed once, at the W and α that the step began with. The selection
variables and their optimizer live beside the model, not in it.
"""

import json
import math
import os
from contextlib import nullcontext

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import Trainer

from autolora_trainer import hypergradient
from autolora_trainer.arguments import AutoLoraTrainingArguments
from autolora_trainer.callbacks import RankSelectionCallback
from autolora_trainer.finite import FiniteStepMixin
from autolora_trainer.fused import adapt, lora_parts
from autolora_trainer.gates import attach_gates
from autolora_trainer.probe import GradientProbe
from autolora_trainer.progress import show_phase
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.retrain import kept_components, start_from
from autolora_trainer.rules import SearchState, select_ranks, slope_statistic
from autolora_trainer.splits import EndlessBatches, split_train
from autolora_trainer.trackers import SearchTracking
from autolora_trainer.trainer_utils import (
    RandomState,
    ResumeMixin,
    fix_loss_scale,
    full_precision,
    is_full_precision,
    unrecorded,
)

SELECTION_TENSORS = "selection.safetensors"
SELECTION_STATE = "selection.json"


class AutoLoraMixin(FiniteStepMixin, ResumeMixin):
    """The search as a mixin over `transformers.Trainer` or a subclass of it: `class MyTrainer(AutoLoraMixin,
    Seq2SeqTrainer)`.

    Args:
        model: a `PeftModel` whose LoRA adapter has rank `args.initial_rank` everywhere, or any model together with
            `peft_config`.
        args: `AutoLoraTrainingArguments`.
        train_dataset: the training set. It is split into D_tr and D_val by `args.val_fraction`, unless `val_dataset`
            is given, which then is D_val whole.
        val_dataset: D_val, if you split yourself, as the collator takes it. `eval_dataset` stays the benchmark's: it
            takes no part in the search.
        peft_config: the `LoraConfig` to wrap `model` with; its `r` is replaced by `args.initial_rank`.
        callbacks, **trainer_arguments: as in `Trainer`.
    Attributes:
        gates: the `SelectionGates` of the model. `gates.bake()` folds α into the adapter, `gates.remove()` lets go of
            it.
        learned_ranks: `LearnedRanks`, after `train()`.
    Raises:
        ValueError: before the first step, for what the search cannot do.
    """

    def __init__(
        self,
        model=None,
        args=None,
        *,
        train_dataset=None,
        val_dataset=None,
        peft_config=None,
        callbacks=None,
        **trainer_arguments,
    ):
        self._check_construction(model, args, train_dataset, peft_config, trainer_arguments)
        if peft_config is not None:
            model = adapt(model, peft_config, rank=args.initial_rank)
        callbacks = [callback() if isinstance(callback, type) else callback for callback in callbacks or []]
        if not any(isinstance(callback, RankSelectionCallback) for callback in callbacks):
            callbacks.append(RankSelectionCallback())
        super().__init__(model=model, args=args, train_dataset=train_dataset, callbacks=callbacks, **trainer_arguments)
        if val_dataset is None:  # after the Trainer has prepared its rows, as TRL's do: tokenized, packed
            self.train_dataset, val_dataset = split_train(self.train_dataset, args.val_fraction, args.seed)
        else:
            self._check_prepared(train_dataset, val_dataset)
        fix_loss_scale(self)
        self.gates = attach_gates(self.model, args.constraint, gate_scaling=args.gate_scaling)
        if self.gates.initial_rank != args.initial_rank:
            self.gates.remove()
            raise ValueError(
                f"The adapter has rank {self.gates.initial_rank}, and the search asks for initial_rank="
                f"{args.initial_rank}. Use LoraConfig(r={args.initial_rank}) or "
                f"initial_rank={self.gates.initial_rank}."
            )
        self.selection_optimizer = torch.optim.AdamW(
            [self.gates.logits], lr=args.selection_learning_rate, weight_decay=0.0  # AdamW: §5.1
        )
        self.val_dataset = val_dataset
        self.selection_passes = 0  # forward-backward passes that selection steps took, on this process
        collator = self.data_collator
        if hasattr(val_dataset, "column_names"):
            val_dataset = self._remove_unused_columns(val_dataset, "held-out")
        else:
            collator = self._get_collator_with_removed_columns(collator, "held-out")
        self._val_batches = EndlessBatches(
            val_dataset,
            args.per_device_train_batch_size,
            collator,
            seed=args.seed,
            process_index=args.process_index,
            num_processes=args.world_size,
        )
        self._window = []  # (inputs, RandomState) of the micro-batches of a selection step
        self._sensitivity_sum = torch.zeros_like(self.gates.selection)
        self._selection_steps = 0
        self.last_val_loss = torch.zeros((), device=self.gates.selection.device)  # of the last one that counted
        self.last_selection_step_counted = False  # whether its hypergradient was finite
        self.probe = GradientProbe(self.gates, args.seed)
        # of the usable selection steps t: count, Σ gain, Σ gain², Σ t, Σ t², Σ loss, Σ loss², Σ loss t
        device = self.gates.selection.device
        self._evidence_sums = torch.zeros(8, dtype=hypergradient.accurate(device), device=device)
        self._sums = self._zero_sums()
        self.rank_selection = next(c for c in self.callback_handler.callbacks if isinstance(c, RankSelectionCallback))
        self.rank_selection.bind(self)
        # both first in line: when training ends, they are through before a tracker closes what they write to
        others = [callback for callback in self.callback_handler.callbacks if callback is not self.rank_selection]
        self.callback_handler.callbacks = [self.rank_selection, SearchTracking(self), *others]
        show_phase(self, "search", lambda: self.rank_selection.total_rank)

    @staticmethod
    def _check_construction(model, args, train_dataset, peft_config, trainer_arguments):
        if not isinstance(args, AutoLoraTrainingArguments):
            raise ValueError(
                f"args must be AutoLoraTrainingArguments, got {type(args).__name__}. They take every argument of "
                "TrainingArguments."
            )
        if model is None or trainer_arguments.get("model_init") is not None:
            given = "model_init" if trainer_arguments.get("model_init") is not None else "none"
            raise ValueError(f"The search needs the model itself, got {given}. Pass model=..., e.g. model_init().")
        if train_dataset is None:
            raise ValueError("The search needs train_dataset, got none. D_tr and D_val both come from it.")
        if peft_config is not None and not isinstance(peft_config, LoraConfig):
            raise ValueError(f"peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}.")
        for name, what in (("rank_pattern", "rank k"), ("alpha_pattern", "scale")):
            if getattr(peft_config, name, None):
                raise ValueError(
                    f"The search needs the same {what} in every LoRA layer, got a {name} in peft_config. Drop {name} "
                    "from the LoraConfig."
                )
        if peft_config is None and not isinstance(model, PeftModel):
            raise ValueError(
                f"The search needs a LoRA adapter, got a plain {type(model).__name__}. Pass "
                "peft_config=LoraConfig(...) or wrap the model with get_peft_model."
            )

    def _check_prepared(self, given, val_dataset):
        """Raise `ValueError` where the Trainer has made columns of its training rows that D_val lacks."""
        columns = [set(getattr(rows, "column_names", None) or ()) for rows in (self.train_dataset, given, val_dataset)]
        missing = sorted(columns[0] - columns[1] - columns[2])
        if missing:
            raise ValueError(
                f"val_dataset lacks {', '.join(missing)}, which {type(self).__name__} has made of train_dataset. Give "
                "rows that are prepared likewise, or leave val_dataset out: the search then splits train_dataset."
            )

    # ---- Algorithm 1

    def train(self, *args, **kwargs):
        """Run the search. Afterwards `learned_ranks` holds the ranks; the gates stay on the model."""
        self._check_environment()
        return super().train(*args, **kwargs)

    def _check_environment(self):
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            kind = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
            raise ValueError(
                f"The search moves whole LoRA weights and {kind} shards them. Search with plain data parallelism (the "
                "LoRA weights are small) and use it for the retrain."
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"The search runs one process per GPU, got one process for {self.args.n_gpu}. Start it with "
                "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES."
            )

    def training_is_over(self) -> bool:
        return super().training_is_over() or self.rank_selection.settled

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Step 1 of Algorithm 1 for one micro-batch; after the last one of a window, step 2 every T weight steps."""
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
        self._step_selection(self._hypergradient(num_items_in_batch))
        self.probe.collect(self._reduce)

    def _hypergradient(self, num_items_in_batch) -> hypergradient.Hypergradient:
        """Eq. 5 for the weight step whose gradient the weights hold, by the method of the arguments.

        Under bf16 the passes of a difference run in fp32: rounding is as large as the difference of two passes, and in
        v a second derivative magnifies it. Only ∇_W L_tr is that of the bf16 weight step, which says where W' is.
        `first_order` takes no difference: its one gradient is as rounded as those that train the weights.
        """
        method, selection, count = self.args.hypergradient, self.gates.selection, len(self._window)
        base, selection.grad = selection.grad, None
        val_inputs = [self._prepare_inputs(next(self._val_batches)) for _ in range(count)]
        val_items = self._get_num_items_in_batch(val_inputs, self.args.device)

        def val_losses():
            for inputs in val_inputs:
                self.selection_passes += 1
                with self.probe.watching():
                    loss = self._micro_loss(inputs, val_items, count)
                yield loss

        def train_losses():  # the same function at every call: same rows, same dropout masks, no bf16 rounding
            now = RandomState(self.args.device)
            for inputs, random_state in self._window:
                self.selection_passes += 1
                random_state.restore()
                yield self._micro_loss(inputs, num_items_in_batch, count)
            now.restore()

        if method == "first_order":
            return hypergradient.first_order(val_losses, selection, self._reduce)
        with full_precision(self.model):
            weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            train_gradient = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            virtual_step = self._virtual_step(train_gradient)
            losses = (train_losses, val_losses)
            if method == "exact":
                self.selection_passes += count  # its training pass goes backward twice
                return hypergradient.exact(
                    *losses, weights, selection, train_gradient, virtual_step, reduce=self._reduce
                )
            if self.args.finite_difference == "one_sided" and base is None:
                base = hypergradient.selection_gradient(train_losses, selection)
            radius = self.args.finite_difference_radius
            return hypergradient.finite_difference(
                *losses, weights, selection, train_gradient, virtual_step, radius, base, self._reduce
            )

    def _shares_base_point(self) -> bool:
        """Whether the weight step's pass is one of the two of a one-sided difference: the same function of α, with
        the same rounding (fp32) and the same dropout masks (compiled dropout draws others)."""
        one_sided = self.args.hypergradient == "finite_difference" and self.args.finite_difference == "one_sided"
        return one_sided and is_full_precision(self.model) and not self.args.torch_compile

    def _micro_loss(self, inputs, num_items_in_batch, count):
        """The loss that `Trainer.training_step` would differentiate for one micro-batch of a window of `count`."""
        with self.compute_loss_context_manager(), unrecorded(self):
            loss = self.compute_loss(self.model, dict(inputs), num_items_in_batch=num_items_in_batch)
        normalized = self.loss_is_scaled_for_ga
        if normalized is None:
            normalized = (
                self.model_accepts_loss_kwargs and num_items_in_batch is not None
            ) or self.compute_loss_func is not None
        return loss if normalized else loss / count

    def _virtual_step(self, train_gradient):
        group = self.optimizer.param_groups[0]
        if self.args.virtual_step == "sgd":
            return hypergradient.sgd_step(group["lr"] if self.args.inner_lr is None else self.args.inner_lr)
        clip = 1.0
        if self.args.max_grad_norm:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(train_gradient)))
            clip = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        return hypergradient.adamw_step(self.optimizer, self.args.inner_lr, clip)

    @torch.no_grad()
    def _step_selection(self, result: hypergradient.Hypergradient) -> None:
        direct, gradient = self.gates.pull_back(result.direct), self.gates.pull_back(result.total)
        t = self._selection_steps
        self._selection_steps += 1
        self._usable_selection_step = bool(torch.isfinite(gradient).all() & torch.isfinite(result.val_loss))
        self.last_selection_step_counted = self._usable_selection_step
        if not self._usable_selection_step:
            self._sums[3] += 1
            return
        gain = -(self.gates.selection * result.direct).sum().to(self._evidence_sums)
        loss = result.val_loss.to(self._evidence_sums)
        one = torch.ones_like(loss)
        self._evidence_sums += torch.stack([one, gain, gain**2, one * t, one * t**2, loss, loss**2, loss * t])
        self.gates.logits.grad = gradient
        self.selection_optimizer.step()
        self.gates.logits.grad = None
        self.gates.refresh()
        self._sensitivity_sum += direct.abs()
        self.last_val_loss = result.val_loss
        ratio = (gradient - direct).norm() / direct.norm().clamp_min(1e-30)
        one = torch.ones_like(ratio)
        self._sums += torch.stack([loss.to(ratio), gradient.norm(), ratio, 0 * one, one])

    def trained_tensors(self):
        yield from super().trained_tensors()
        yield "the selection", self.gates.selection
        yield "the selection logits", self.gates.logits.detach()
        yield from ((f"{name} of the selection", value) for name, value in self._evidence().items())

    def _reduce(self, tensors: list[torch.Tensor]) -> None:
        """Average over processes in place, as one flat vector."""
        if self.args.world_size > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            torch.distributed.all_reduce(flat)
            flat /= self.args.world_size
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
                tensor.copy_(part.view_as(tensor))

    # ---- What the search knows

    @property
    def learned_ranks(self) -> LearnedRanks | None:
        return self.rank_selection.learned_ranks

    @property
    def sensitivity(self) -> torch.Tensor:
        """Running mean of |∂L_val/∂β|, shape (M, k)."""
        return self._sensitivity_sum / self._evidence_sums[0].clamp_min(1)

    def search_state(self) -> SearchState:
        """What the rank rules read, as it is now."""
        return SearchState.of(
            self.gates,
            self.sensitivity,
            self.args.threshold,
            energy=self.probe.energy,
            evidence=self.held_out_evidence(),
        )

    def start_retrain(self, model: PeftModel) -> None:
        """Let `model` begin where the search ended: every module's update becomes the best approximation of its rank
        to the gated update (rules `adaptive`, `singular` and `uniform`; the others keep its strongest components), and
        the heads are the trained ones. Without it a retrain starts from the pre-trained model, as in the paper (§4.5).

        Args:
            model: an adapter on the same base model, of the learned ranks or of others up to `initial_rank`.
        Raises:
            ValueError: if `model` has a module, rank or head that the search did not have.
        """
        built = {name: part.lora_A.shape[0] for name, part in lora_parts(model).items()}
        ranks = [built.get(name, 0) for name in self.gates.names]
        start_from(kept_components(self.gates, self.search_state(), ranks, self.args.rank_rule, self.model), model)

    def held_out_evidence(self) -> tuple[float, float]:
        """What the held-out rows say of the search, as two t statistics over its selection steps.

        Returns:
            gain: of the mean of  -Σ_lj α_l^j ∂L_val/∂α_l^j, what the held-out loss would lose, to first order, if the
                learned update grew; below zero where the update has learned noise, or has overshot.
            trend: of the slope by which the held-out loss falls.
            Both are zero before the fourth selection step.
        """
        n, gain, gain2, t, t2, loss, loss2, loss_t = self._evidence_sums.tolist()
        if n < 4:
            return 0.0, 0.0
        mean, variance = gain / n, max(gain2 / n - (gain / n) ** 2, 0.0) / (n - 1)
        spread = max((t2 / n - (t / n) ** 2) * (loss2 / n - (loss / n) ** 2), 0.0)
        r = (loss_t / n - t * loss / n**2) / math.sqrt(spread) if spread else 0.0
        return (mean / math.sqrt(variance) if variance else 0.0), -slope_statistic(r, n)

    def current_ranks(self) -> list[int]:
        """The ranks that the search would end with if it ended now, in the order of `gates.names`."""
        return select_ranks(self.search_state(), self.args.rank_rule, self.args.rank_budget, self.args.min_rank)

    def _evidence(self) -> dict[str, torch.Tensor]:
        """The sums over selection steps that rank rules read."""
        return {
            "sensitivity_sum": self._sensitivity_sum,
            "energy_sum": self.probe.energy_sum,
            "evidence_sums": self._evidence_sums,
        }

    # ---- Logs

    def _zero_sums(self):
        """Sums since the last log: held-out loss, hypergradient norm, ratio, unusable steps, selection steps."""
        return torch.zeros(5, device=self.gates.selection.device)

    def log(self, logs, *args, **kwargs):
        """Log with the phase in the keys: `search_train_loss`, `search_val_loss`, `search_total_rank`, …"""
        names = {"loss": "search_train_loss", "train_loss": "search_train_loss"}
        training = "loss" in logs
        logs = {
            names.get(key)
            or ("search_" + key.removeprefix("train_") if not key.startswith(("eval_", "epoch")) else key): value
            for key, value in logs.items()
        }
        if training:
            logs.update(self._selection_logs())
        super().log(logs, *args, **kwargs)

    def _selection_logs(self):
        val_loss, norm, ratio, unusable, steps = self._sums.tolist()
        self._sums = self._zero_sums()
        alpha = self.gates.selection
        share = alpha.abs() / alpha.abs().sum(dim=-1, keepdim=True)
        logs = {
            "search_total_rank": sum(self.current_ranks()),
            "search_selection_entropy": -(share * share.clamp_min(1e-30).log()).sum(dim=-1).mean().item(),
        }
        if steps:
            logs["search_val_loss"] = val_loss / steps
            logs["search_hypergradient_norm"] = norm / steps
            logs["search_implicit_ratio"] = ratio / steps
        if unusable:
            logs["search_skipped_selection_steps"] = int(unusable)
        return logs

    def save_model(self, output_dir=None, _internal_call=False):
        """The adapter as it computes, with α folded in; a checkpoint of the search holds the two apart."""
        with nullcontext() if _internal_call else self.gates.folded():
            super().save_model(output_dir, _internal_call)

    def push_to_hub(self, *args, **kwargs):
        """Push the adapter of `save_model`: Trainer saves what it pushes as it saves a checkpoint."""
        with self.gates.folded():
            return super().push_to_hub(*args, **kwargs)

    # ---- Checkpoints
    # Trainer's pair of private hooks is the only one that runs before a checkpoint is rotated or pushed, honours
    # save_only_model, and loads after accelerate has prepared the optimizer.

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            optimizer = self.selection_optimizer.state.get(self.gates.logits, {})
            tensors = {"logits": self.gates.logits.detach(), "sums": self._sums, **self._evidence()}
            tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
            tensors = {name: value.contiguous() for name, value in tensors.items()}
            save_file(tensors, os.path.join(output_dir, SELECTION_TENSORS))
            state = {
                "names": self.gates.names,
                "val_position": self._val_batches.position,
                "selection_steps": self._selection_steps,
                "selection_passes": self.selection_passes,
                "probe_count": self.probe.count,
                "callback": self.rank_selection.checkpoint(),
            }
            with open(os.path.join(output_dir, SELECTION_STATE), "w", encoding="utf-8") as file:
                json.dump(state, file)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        with open(os.path.join(checkpoint, SELECTION_STATE), encoding="utf-8") as file:
            state = json.load(file)
        if state["names"] != self.gates.names:
            raise ValueError(
                f"The checkpoint searched {len(state['names'])} modules, the model has {len(self.gates.names)} "
                "others. Resume with the lora_target_modules and the model of the first run."
            )
        tensors = load_file(os.path.join(checkpoint, SELECTION_TENSORS), device=str(self.gates.logits.device))
        with torch.no_grad():
            self.gates.logits.copy_(tensors["logits"])
        self.gates.refresh()
        prefix = "optimizer."
        optimizer = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if optimizer:
            if not self.selection_optimizer.defaults["capturable"]:
                optimizer["step"] = optimizer["step"].cpu()  # where AdamW keeps it
            self.selection_optimizer.state[self.gates.logits] = optimizer
        self._sensitivity_sum, self._sums = tensors["sensitivity_sum"], tensors["sums"]
        self.probe.energy_sum, self.probe.count = tensors["energy_sum"], state["probe_count"]
        self._evidence_sums = tensors["evidence_sums"]
        self._val_batches.position = state["val_position"]
        self._selection_steps, self.selection_passes = state["selection_steps"], state["selection_passes"]
        self.rank_selection.restore(state["callback"])


class AutoLoraTrainer(AutoLoraMixin, Trainer):
    __doc__ = "The search of Algorithm 1 on `transformers.Trainer`." + AutoLoraMixin.__doc__.split(".", 1)[1]
