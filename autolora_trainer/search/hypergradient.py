r"""Eq. 4-5: the gradient of the held-out loss by the selection variables, through one virtual weight step.

    W' = W - u(g),  g = ∇_W L_tr(W, α)          (Eq. 4; u(g) = η g)
    d/dα L_val(W', α) = ∇_α L_val(W', α)  -  ∇²_αW L_tr(W, α) · J v,   v = ∇_W' L_val(W', α)       (Eq. 5)
                        ------ direct -----     ------- implicit -------

with J = ∂u/∂g, which is η for the plain step and diagonal for AdamW's. `exact` computes the implicit term by
double backward, `finite_difference` by passes at W ± ε J v (DARTS, Liu et al. 2019, Eq. 7-8), `first_order` leaves it
out (η = 0, §5.5).

Nothing here knows a Trainer or a data set. A loss is a closure that yields the losses of the micro-batches, whose sum
is the loss; two calls of the training loss must give the same function, so its dropout masks have to be replayed by
the closure (with fresh masks the difference measures noise: 5 to 62 times the signal). Both losses have to be fp32:
rounding to bf16 is as large as the difference, and in v a second derivative magnifies it (the numbers:
RESULTS.md, Hypergradient). Nothing here waits for the device; small tensors are lists or one flat vector.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Losses = Callable[[], Iterable[torch.Tensor]]
# (weights, gradients) -> (u(g), J = ∂u/∂g): a list of tensors shaped like the weights; another one, or one number
VirtualStep = Callable[[list[torch.Tensor], list[torch.Tensor]], tuple[list[torch.Tensor], list[torch.Tensor] | float]]
Reduce = Callable[[list[torch.Tensor]], None]

# R of `finite_difference`. Central: error 3e-5 at 0.01, 2e-3 at 0.1. One-sided: its bias falls with R and its rounding
# grows with 1/R; 0.001 is about where they meet (6e-4 through a plain step, 6e-3 at 0.01; 3e-3 through AdamW's).
RADIUS = {"central": 0.01, "one_sided": 0.001}


@dataclass
class Hypergradient:
    """The two terms of Eq. 5, (M, k) each, and the held-out loss where they were taken."""

    direct: torch.Tensor
    implicit: torch.Tensor
    val_loss: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.direct + self.implicit


def accurate(device: torch.device) -> torch.dtype:
    """The dtype for sums of squares on a device: double, where it has it (Apple's mps does not)."""
    return torch.float32 if device.type == "mps" else torch.double


def sgd_step(learning_rate: float) -> VirtualStep:
    """The virtual step of Eq. 4 as written: u(g) = η g."""
    return lambda weights, gradients: (torch._foreach_mul(gradients, learning_rate), learning_rate)


def check_adamw(optimizer) -> None:
    """Raise `ValueError` for an optimizer whose step is not the one that `adamw_step` writes down."""
    own, groups = getattr(optimizer, "optimizer", optimizer), optimizer.param_groups  # under accelerate's wrapper
    kind = type(own).__name__
    if any(group.get("amsgrad") or group.get("maximize") for group in groups):
        kind += " with amsgrad or maximize"
    elif (
        isinstance(own, torch.optim.AdamW)
        or isinstance(own, torch.optim.Adam)
        and not any(group["weight_decay"] for group in groups)
    ):
        return
    raise ValueError(
        f"virtual_step adamw reads the state of PyTorch's AdamW, got {kind}. Use virtual_step sgd, or hypergradient "
        "first_order, or that optimizer."
    )


def adamw_step(
    optimizer: torch.optim.Optimizer, learning_rate: float | None = None, clip: torch.Tensor | float = 1.0
) -> VirtualStep:
    """The step that AdamW is about to take, and its derivative by the gradient (not in the paper, which trains with
    AdamW but writes a plain step in Eq. 4). Formulas: Loshchilov & Hutter 2019, Algorithm 2.

    Args:
        optimizer: a `torch.optim.AdamW` (or `Adam`); it is read, never changed.
        learning_rate: η; default: that of each parameter group.
        clip: the factor by which the gradient will be clipped, treated as a constant.
    Raises:
        ValueError: if it is another optimizer, or a weight is not in it.
    """
    check_adamw(optimizer)
    groups = {parameter: index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]}

    def step(weights, gradients):
        members = {}  # group -> positions of its weights, which share every number but their count of steps
        for position, weight in enumerate(weights):
            if weight not in groups:
                shape = tuple(weight.shape)
                raise ValueError(
                    f"The virtual step needs every weight in the optimizer; one of shape {shape} is missing."
                )
            members.setdefault(groups[weight], []).append(position)
        updates, jacobians = [None] * len(weights), [None] * len(weights)
        for index, positions in members.items():
            part = [weights[position] for position in positions]
            group, states = optimizer.param_groups[index], [optimizer.state.get(weight, {}) for weight in part]
            lr = group["lr"] if learning_rate is None else learning_rate
            values = _adamw(group, lr, clip, part, [gradients[position] for position in positions], states)
            for results, vector in zip((updates, jacobians), values):
                for position, weight, value in zip(positions, part, vector.split([weight.numel() for weight in part])):
                    results[position] = value.view_as(weight)
        return updates, jacobians

    return step


def _adamw(group, lr, clip, weights, gradients, states) -> tuple[torch.Tensor, torch.Tensor]:
    """u and J of the weights of one parameter group as flat vectors: a dozen kernels, however many modules."""
    # the optimizer counts steps on the CPU or, fused, on the device: they must not be read, or moved one by one
    no_steps = torch.zeros((), device=next((s["step"].device for s in states if "step" in s), "cpu"))
    t = torch.stack([s.get("step", no_steps) for s in states]).to(accurate(no_steps.device)) + 1

    def average(name):
        return flat([s[name] if name in s else torch.zeros_like(weight) for s, weight in zip(states, weights)])

    def bias(beta):
        corrections = (1 - beta**t).to(weights[0], non_blocking=True)
        return flat([c.expand(weight.numel()) for c, weight in zip(corrections.unbind(), weights)])

    beta1, beta2 = group["betas"]
    g, weight, first, second = flat(gradients) * clip, flat(weights), average("exp_avg"), average("exp_avg_sq")
    bias1, bias2 = bias(beta1), bias(beta2)
    first = (1 - beta1) * g + beta1 * first
    second = (1 - beta2) * g * g + beta2 * second
    m_hat = first / bias1
    root = (second / bias2).sqrt()
    denominator = root + group["eps"]
    update = lr * m_hat / denominator + lr * group["weight_decay"] * weight
    slope = (1 - beta1) / bias1 / denominator
    bend = m_hat / denominator * ((1 - beta2) / bias2 * g / root) / denominator  # ∂root/∂g in the middle
    # A weight that never had a gradient (lora_A while lora_B = 0) stands on the kink g / |g|, with a slope of η / eps.
    return update, torch.where(second > 0, lr * clip * (slope - bend), 0.0)


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@contextmanager
def moved(weights: list[torch.Tensor], offsets: list[torch.Tensor], factor: torch.Tensor | float):
    """Inside, the weights stand at W + factor · offsets; afterwards they are bit for bit what they were."""
    with torch.no_grad():
        backup = torch._foreach_mul(weights, 1.0)
        torch._foreach_add_(weights, torch._foreach_mul(offsets, factor))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, backup)


def gradients(losses: Losses, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Sum over the micro-batches of ∇ loss by `inputs`, zero for one that a loss does not reach, and of the loss."""
    total, value = None, None
    for loss in losses():
        grads = torch.autograd.grad(loss, inputs, materialize_grads=True)
        total = list(grads) if total is None else list(torch._foreach_add(total, grads))
        value = loss.detach() if value is None else value + loss.detach()
    return total, value


@contextmanager
def _asking(tensor: torch.Tensor):
    tensor.requires_grad_(True)
    try:
        yield
    finally:
        tensor.requires_grad_(False)


def selection_gradient(losses: Losses, selection: torch.Tensor) -> torch.Tensor:
    """∇_α of a loss at the present weights, shape (M, k). One pass, which computes no gradient of a weight."""
    with _asking(selection):
        return gradients(losses, [selection])[0][0]


def norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _look_ahead(val_losses, weights, selection, train_gradient, virtual_step, reduce):
    """W' and the held-out gradients there: (∇_α L_val, J v, L_val)."""
    with torch.no_grad():
        updates, jacobians = virtual_step(weights, train_gradient)
    with moved(weights, updates, -1.0), _asking(selection):
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
    radius: float | None = None,
    base: torch.Tensor | None = None,
    reduce: Reduce = _no_reduce,
) -> Hypergradient:
    r"""Eq. 5 with the implicit term by differences, with u = J v and ε = R / ‖u‖:

        ∇²_αW L_tr · u  ≈  (∇_α L_tr(W + ε u, α) - ∇_α L_tr(W - ε u, α)) / 2ε     central, without `base`
        ∇²_αW L_tr · u  ≈  (∇_α L_tr(W + ε u, α) - ∇_α L_tr(W, α)) / ε            one-sided (not in the paper)

    Three passes, or two, and no more memory than a training step; the error falls with R², or with R.

    Args:
        train_losses: closure of L_tr on the batch of the weight step, the same function at every call.
        val_losses: closure of L_val on a held-out batch.
        weights: W, all trainable tensors, LoRA factors and heads; restored bit for bit.
        selection: α, shape (M, k), a leaf without gradient that both losses read.
        train_gradient: ∇_W L_tr(W, α), already there from the weight step, so that pass is shared.
        virtual_step: `sgd_step(η)` or `adamw_step(optimizer)`.
        radius: R, the distance between the base point and the points beside it; default: `RADIUS`.
        base: ∇_α L_tr(W, α), shape (M, k), of the very function that `train_losses` computes: one that was rounded to
            bf16 or had other dropout masks makes the difference noise.
        reduce: averages a list of tensors over processes in place; every process must end with the same numbers.
    Returns:
        `Hypergradient`, by α; `SelectionGates.pull_back` carries it on to β.
    """
    radius = radius or RADIUS["central" if base is None else "one_sided"]
    direct, u, val_loss = _look_ahead(val_losses, weights, selection, train_gradient, virtual_step, reduce)
    length = norm(u)
    step = radius / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5)  # no host synchronisation, no 0/0
    with moved(weights, u, step):
        ahead = selection_gradient(train_losses, selection)
    if base is None:
        with moved(weights, u, -step):
            base = selection_gradient(train_losses, selection)
        step = 2 * step
    difference = ahead - base
    reduce([difference])
    # u = 0 (no virtual step) has no implicit term, but a base from another pass still differs by rounding
    return Hypergradient(direct, -torch.where(length > 0, difference / step, 0.0), val_loss)


def exact(train_losses, val_losses, weights, selection, train_gradient, virtual_step, reduce=_no_reduce):
    """Eq. 5 with the implicit term by double backward; arguments as in `finite_difference`. For tests and small
    models: about 4.5 times a training step and a fifth more memory. Attention runs on PyTorch's math kernel, the only
    one that can be differentiated twice."""
    direct, u, val_loss = _look_ahead(val_losses, weights, selection, train_gradient, virtual_step, reduce)
    mixed = torch.zeros_like(selection)
    with _asking(selection), sdpa_kernel(SDPBackend.MATH):
        for loss in train_losses():
            slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            product = sum((s * x).sum() for s, x in zip(slopes, u) if s is not None)
            if not torch.is_tensor(product):  # the loss reaches no weight
                continue
            (part,) = torch.autograd.grad(product, [selection], allow_unused=True)
            mixed = mixed if part is None else mixed + part
    reduce([mixed])
    return Hypergradient(direct, -mixed, val_loss)


def first_order(val_losses: Losses, selection: torch.Tensor, reduce: Reduce = _no_reduce) -> Hypergradient:
    """η = 0 (§5.5): `direct` is ∇_α L_val(W, α) at the present weights, and there is no implicit term. One pass."""
    with _asking(selection):
        (direct,), val_loss = gradients(val_losses, [selection])
    reduce([direct, val_loss])
    return Hypergradient(direct, torch.zeros_like(direct), val_loss)
