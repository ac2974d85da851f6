r"""Eq. 4-5: the gradient of the held-out loss by the selection variables, through one virtual weight step.

    W' = W - u(g),  g = ∇_W L_tr(W, α)          (Eq. 4; u(g) = η g)
    d/dα L_val(W', α) = ∇_α L_val(W', α)  -  ∇²_αW L_tr(W, α) · J v,   v = ∇_W' L_val(W', α)       (Eq. 5)
                        ------ direct -----     ------- implicit -------

with J = ∂u/∂g, which is η for the plain step and diagonal for AdamW's. `exact` computes the implicit term by
double backward, `finite_difference` by two passes at W ± ε J v (DARTS, Liu et al. 2019, Eq. 7-8), `first_order` leaves
it out (η = 0, §5.5).

Nothing here knows a Trainer or a data set. A loss is a closure that yields the losses of the micro-batches, whose sum
is the loss; two calls of the training loss must give the same function, so its dropout masks have to be replayed by
the closure (with fresh masks the difference measures noise: 4 to 28 times the signal).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Losses = Callable[[], Iterable[torch.Tensor]]
# (weights, gradients) -> (u(g), J = ∂u/∂g), two lists of tensors shaped like the weights
VirtualStep = Callable[[list[torch.Tensor], list[torch.Tensor]], tuple[list[torch.Tensor], list[torch.Tensor]]]
Reduce = Callable[[list[torch.Tensor]], None]


@dataclass
class Hypergradient:
    """The two terms of Eq. 5, each with the shape of the selection variables, and the held-out loss at W'."""

    direct: torch.Tensor
    implicit: torch.Tensor
    val_loss: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.direct + self.implicit


def sgd_step(learning_rate: float) -> VirtualStep:
    """The virtual step of Eq. 4 as written: u(g) = η g."""

    def step(weights, gradients):
        return torch._foreach_mul(gradients, learning_rate), [torch.full_like(w, learning_rate) for w in weights]

    return step


def adamw_step(
    optimizer: torch.optim.Optimizer, learning_rate: float | None = None, clip: torch.Tensor | float = 1.0
) -> VirtualStep:
    """The step that AdamW is about to take, and its derivative by the gradient (not in the paper, which trains with
    AdamW but writes a plain step in Eq. 4). Formulas: Loshchilov & Hutter 2019, Algorithm 2.

    Args:
        optimizer: a `torch.optim.AdamW` (or `Adam`) that holds the weights; it is read, never changed.
        learning_rate: η; default: that of each parameter group.
        clip: the factor by which the gradient will be clipped, treated as a constant.
    Raises:
        ValueError: if a weight is not in the optimizer.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}

    def step(weights, gradients):
        updates, jacobians = [], []
        for weight, gradient in zip(weights, gradients):
            if weight not in groups:
                raise ValueError(
                    "The virtual step needs every weight in the optimizer; one of shape "
                    f"{tuple(weight.shape)} is missing."
                )
            group, state = groups[weight], optimizer.state.get(weight, {})
            lr = group["lr"] if learning_rate is None else learning_rate
            beta1, beta2 = group["betas"]
            t = state["step"].double() + 1 if "step" in state else 1
            g = gradient * clip
            first = (1 - beta1) * g + (beta1 * state["exp_avg"] if "exp_avg" in state else 0)
            second = (1 - beta2) * g * g + (beta2 * state["exp_avg_sq"] if "exp_avg_sq" in state else 0)
            m_hat = first / (1 - beta1**t)
            root = (second / (1 - beta2**t)).sqrt()
            denominator = root + group["eps"]
            updates.append(lr * m_hat / denominator + lr * group["weight_decay"] * weight)
            slope = (1 - beta1) / (1 - beta1**t) / denominator
            bend = (
                m_hat / denominator * ((1 - beta2) / (1 - beta2**t) * g / root) / denominator
            )  # ∂root/∂g in the middle
            # A weight that never had a gradient (lora_A while lora_B = 0) stands on the kink g / |g|, with a slope of
            # η / eps.
            jacobians.append(torch.where(second > 0, lr * clip * (slope - bend), 0.0))
        return updates, jacobians

    return step


@contextmanager
def moved(
    weights: list[torch.Tensor], offsets: list[torch.Tensor], factor: torch.Tensor | float = 1.0
) -> Iterator[None]:
    """Inside, the weights stand at W + factor · offsets; afterwards they are bit for bit what they were."""
    with torch.no_grad():
        backup = [weight.detach().clone() for weight in weights]
        torch._foreach_add_(weights, torch._foreach_mul(offsets, factor))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, backup)


def gradients(losses: Losses, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Sum over the micro-batches of ∇ loss by `inputs`, and of the loss; an input that a loss does not reach counts
    zero."""
    total, value = [torch.zeros_like(x) for x in inputs], torch.zeros((), device=inputs[0].device)
    for loss in losses():
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        total = [t if g is None else t + g for t, g in zip(total, grads)]
        value = value + loss.detach()
    return total, value


@contextmanager
def _asking(tensor: torch.Tensor) -> Iterator[None]:
    tensor.requires_grad_(True)
    try:
        yield
    finally:
        tensor.requires_grad_(False)


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _look_ahead(val_losses, weights, selection, train_gradient, virtual_step, reduce):
    """W' and the held-out gradients there: (∇_α L_val, J v, L_val)."""
    with torch.no_grad():
        updates, jacobians = virtual_step(weights, train_gradient)
    with moved(weights, updates, -1.0):
        (direct, *v), val_loss = gradients(val_losses, [selection, *weights])
    reduce([direct, *v, val_loss])
    return direct, torch._foreach_mul(v, jacobians), val_loss


def _no_reduce(tensors):
    """A single process has the whole mean already."""


def finite_difference(
    train_losses: Losses,
    val_losses: Losses,
    weights: list[torch.Tensor],
    selection: torch.Tensor,
    train_gradient: list[torch.Tensor],
    virtual_step: VirtualStep,
    radius: float = 0.01,
    reduce: Reduce = _no_reduce,
) -> Hypergradient:
    r"""Eq. 5 with the implicit term by central differences:

        ∇²_αW L_tr · u  ≈  (∇_α L_tr(W + ε u, α) - ∇_α L_tr(W - ε u, α)) / 2ε,   u = J v,  ε = R / ‖u‖

    Three passes, and no more memory than a training step; the error falls with R².

    Args:
        train_losses: closure of L_tr on the batch of the weight step, the same function at every call.
        val_losses: closure of L_val on a held-out batch.
        weights: W, all trainable tensors, LoRA factors and heads; restored bit for bit.
        selection: α, shape (M, k), a leaf without gradient that both losses read.
        train_gradient: ∇_W L_tr(W, α), already there from the weight step, so that pass is shared.
        virtual_step: `sgd_step(η)` or `adamw_step(optimizer)`.
        radius: R, the distance between the base point and each of the two points.
        reduce: averages a list of tensors over processes in place; every process must end with the same numbers.
    Returns:
        `Hypergradient`, by α; `SelectionGates.pull_back` carries it on to β.
    """
    with _asking(selection):
        direct, u, val_loss = _look_ahead(val_losses, weights, selection, train_gradient, virtual_step, reduce)
        norm = _norm(u)
        step = radius / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)  # no host synchronisation, no 0/0
        with moved(weights, u, step):
            (ahead,), _ = gradients(train_losses, [selection])
        with moved(weights, u, -step):
            (behind,), _ = gradients(train_losses, [selection])
    difference = ahead - behind
    reduce([difference])
    return Hypergradient(direct, -difference / (2 * step), val_loss)


def exact(
    train_losses: Losses,
    val_losses: Losses,
    weights: list[torch.Tensor],
    selection: torch.Tensor,
    train_gradient: list[torch.Tensor],
    virtual_step: VirtualStep,
    reduce: Reduce = _no_reduce,
) -> Hypergradient:
    """Eq. 5 with the implicit term by double backward; arguments as in `finite_difference`. For tests and small
    models:
    about 4.5 times a training step and 60 % more memory. Attention runs on PyTorch's math kernel, the only one that
    can be differentiated twice."""
    with _asking(selection):
        direct, u, val_loss = _look_ahead(val_losses, weights, selection, train_gradient, virtual_step, reduce)
        mixed = torch.zeros_like(selection)
        with sdpa_kernel(SDPBackend.MATH):
            for loss in train_losses():
                slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
                product = sum((s * x).sum() for s, x in zip(slopes, u) if s is not None)
                (part,) = torch.autograd.grad(product, [selection], allow_unused=True)
                mixed = mixed if part is None else mixed + part
    reduce([mixed])
    return Hypergradient(direct, -mixed, val_loss)


def first_order(val_losses: Losses, selection: torch.Tensor, reduce: Reduce = _no_reduce) -> Hypergradient:
    """η = 0 (§5.5): the gradient of L_val(W, α) by α at the present weights, and no implicit term. One pass."""
    with _asking(selection):
        (direct,), val_loss = gradients(val_losses, [selection])
    reduce([direct, val_loss])
    return Hypergradient(direct, torch.zeros_like(direct), val_loss)
