"""The passes of a selection step: the losses of Eq. 5 as closures over a Trainer, for the method of the arguments."""

import torch

from autolora_trainer.search import hypergradient
from autolora_trainer.training.passes import RandomState, full_precision, is_full_precision, unrecorded


class HypergradientPassesMixin:
    """Over a Trainer with `gates`, batches of D_val and the window of the running weight step."""

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.hypergradient != "first_order" and self.args.virtual_step == "adamw":
            hypergradient.check_adamw(optimizer)
        return optimizer

    def _hypergradient(self, num_items_in_batch) -> hypergradient.Hypergradient:
        """Eq. 5 for the weight step whose gradient the weights hold, with as many rows of D_val as a weight step has,
        also where an epoch ends with fewer.

        Under bf16 the passes of a difference run in fp32. Only ∇_W L_tr is that of the bf16 weight step, which says
        where W' is. `first_order` takes no difference: its one gradient is as rounded as those that train the weights.
        """
        method, selection, count = self.args.hypergradient, self.gates.selection, len(self._window)
        val_count = self.args.gradient_accumulation_steps
        base, selection.grad = selection.grad, None
        val_inputs = [self._prepare_inputs(next(self._val_batches)) for _ in range(val_count)]
        val_items = self._get_num_items_in_batch(val_inputs, self.args.device)
        divisors, val_divisors = self._divisors or [count] * count, [val_count] * val_count
        if self.averages(val_items):
            val_inputs, val_divisors = self.divided(val_inputs)

        def val_losses():
            for inputs, divisor in zip(val_inputs, val_divisors):
                self.selection_passes += 1
                with self.reach.watching():
                    loss = self._micro_loss(inputs, val_items, divisor)
                yield loss

        def train_losses():  # the same function at every call: same rows, same dropout masks, no bf16 rounding
            now = RandomState(self.args.device)
            for (inputs, random_state), divisor in zip(self._window, divisors):
                self.selection_passes += 1
                random_state.restore()
                yield self._micro_loss(inputs, num_items_in_batch, divisor)
            now.restore()

        if method == "first_order":
            return hypergradient.first_order(val_losses, selection, self._reduce)
        with full_precision(self.model):
            weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            train_gradient = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            virtual_step = self._virtual_step(train_gradient)
            terms = (train_losses, val_losses, weights, selection, train_gradient, virtual_step)
            if method == "exact":
                self.selection_passes += count  # its training pass goes backward twice
                return hypergradient.exact(*terms, self._reduce)
            if self.args.finite_difference == "one_sided" and base is None:
                base = hypergradient.selection_gradient(train_losses, selection)
            return hypergradient.finite_difference(*terms, self.args.finite_difference_radius, base, self._reduce)

    def _shares_base_point(self) -> bool:
        """Whether the weight step's pass is one of the two of a one-sided difference: the same function of α, with
        the same rounding (fp32) and the same dropout masks (compiled dropout draws others)."""
        one_sided = self.args.hypergradient == "finite_difference" and self.args.finite_difference == "one_sided"
        return one_sided and is_full_precision(self.model) and not self.args.torch_compile

    def _micro_loss(self, inputs, num_items_in_batch, divisor):
        """The loss that `Trainer.training_step` would differentiate for one micro-batch."""
        with self.compute_loss_context_manager(), unrecorded(self):
            loss = self.compute_loss(self.model, dict(inputs), num_items_in_batch=num_items_in_batch)
        return loss / divisor if self.averages(num_items_in_batch) else loss

    def _virtual_step(self, train_gradient):
        if self.args.virtual_step == "sgd":
            current = self.optimizer.param_groups[0]["lr"]
            return hypergradient.sgd_step(current if self.args.inner_lr is None else self.args.inner_lr)
        clip = 1.0
        if self.args.max_grad_norm:
            norm = hypergradient.norm(train_gradient)
            clip = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        return hypergradient.adamw_step(self.optimizer, self.args.inner_lr, clip)

    def _reduce(self, tensors: list[torch.Tensor]) -> None:
        """Average over processes in place, as one flat vector."""
        if self.args.world_size > 1 and tensors:
            flat = hypergradient.flat(tensors)
            torch.distributed.all_reduce(flat)
            flat /= self.args.world_size
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
                tensor.copy_(part.view_as(tensor))
