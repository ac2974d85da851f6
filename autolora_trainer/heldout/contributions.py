r"""What every component of an adapter takes off the held-out loss: its contribution.

Take each module's update, gates folded in, in the basis of its singular vectors, and give component j a selection
variable α_j. On the path from no adapter (α = 0) to the whole one (α = 1) the loss falls at the rate
g(τ) = Σ_j g_j(τ), and g_j(τ) = -∂L_val(τ·1)/∂α_j is the part of component j in it: the direct term of AutoLoRA's
hypergradient (Eq. 5, η = 0). Its contribution is its share of that rate, averaged along the path, of the whole gain:

    φ_j = G · ∫_0^1 g_j(τ) / g(τ) dτ       G = L_val(0) - L_val(1) = ∫_0^1 g(τ) dτ = Σ_j φ_j

(Gauss-Legendre points). Without the shares, φ_j = ∫ g_j(τ) dτ, this is the integrated gradient (Sundararajan et al.
2017; Aumann-Shapley values). Where all rates fall alike, the two are the same. Elsewhere most of the gain is had at
the path's start, where nearly any adapter has it, and integrated gradients credit what learned that first. That is
what a cut of this very adapter loses, and `compress` asks it. An adapter that is trained anew at a small size is past
it: shares count what is easy and what is hard alike. What does nothing has 0, what has learned noise 0 or less.

Cost: one forward and backward pass of the held-out rows per point, 2 by default, with no gradient but α's.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from autolora_trainer.errors import NonFiniteError
from autolora_trainer.heldout.passes import target_loss, undisturbed
from autolora_trainer.lora.gates import gated
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.svd import in_svd_basis


def path_points(points: int) -> list[tuple[float, float]]:
    """Gauss-Legendre nodes and weights (τ, w) of [0, 1]; exact for polynomials of degree 2 `points` - 1.

    Example:
        >>> path_points(1)
        [(0.5, 1.0)]
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return [((1 + node) / 2, weight / 2) for node, weight in zip(nodes.tolist(), weights.tolist())]


def integrated(rates: torch.Tensor, path: list[tuple[float, float]]) -> torch.Tensor:
    """∫ g_j(τ) dτ (components,), of the rates g_j(τ_i) (points, components) at the points (τ_i, w_i) of the path."""
    return torch.tensor([weight for _, weight in path], dtype=rates.dtype) @ rates


LEAST = 0.1  # of the mean rate: where the loss hardly falls any more, shares are noise


def shares_of_gain(rates: torch.Tensor, path: list[tuple[float, float]]) -> torch.Tensor:
    """φ (components,) from the rates g_j(τ_i) (points, components) at the points (τ_i, w_i) of the path.

    Where a whole rate is no gain, or less than a tenth of the mean, a tenth of the mean stands in for it. Where there
    is no gain to share, φ is the integrated gradient.

    Example:
        >>> shares_of_gain(torch.tensor([[3.0, 1.0]]), [(0.5, 1.0)])
        tensor([3., 1.])
    """
    weights = torch.tensor([weight for _, weight in path], dtype=rates.dtype)
    own, whole = integrated(rates, path), rates.sum(1)  # (components,), (points,)
    if not (gain := own.sum()) > 0:
        return own
    shares = (weights / whole.clamp_min(LEAST * gain)) @ rates
    return gain * shares / shares.sum() if shares.sum() > 0 else own


def contributions(
    model: torch.nn.Module,
    batches: Iterable,
    loss: Callable = target_loss,
    *,
    adapter_name: str = "default",
    points: int = 2,
    shares: bool = True,
    reduce: Callable[[list[torch.Tensor]], None] | None = None,
    allow_unused: bool = False,
) -> dict[str, torch.Tensor]:
    """Held-out contribution of every component of a LoRA adapter, in the basis of its update's singular vectors.

    Args:
        model: a `PeftModel` with a LoRA adapter of any ranks; it ends as it was, bit for bit.
        batches: held-out batches, of which every process has its own; read once.
        loss: (model, batch) -> (sum of the losses of all targets, their number); L_val = Σ sums / Σ numbers, whatever
            the size of the batches.
        points: of the path.
        shares: average the shares of the rates, for the ranks of a training to come; False integrates the rates
            themselves, for a cut of this adapter.
        reduce: adds up tensors over processes, in place.
        allow_unused: leave out modules that no gradient reaches, where some are reached.
    Returns:
        {module or part of a fused one, as `c_attn#q`: φ, (r,) in float64 on the CPU}, in nats a target, components by
        falling singular value.
    Raises:
        ValueError: if there are no held-out targets, or no gradient reaches a module whose update is not zero: that
            of another is known to take nothing off the loss.
        NonFiniteError: if the loss or its gradient is NaN or infinite.
    """
    parts = lora_parts(model, adapter_name)
    if not parts:
        raise ValueError(f"contributions found no LoRA layer of adapter {adapter_name!r}. Give a PeftModel with one.")
    path, count = path_points(points), 0
    with undisturbed(model), in_svd_basis(parts), gated(parts, requires_grad=True) as factors, torch.enable_grad():
        sums = {  # of every point of the path, (points, r)
            layer: torch.zeros(points, len(leaf), dtype=torch.float64) for layer, leaf in factors.leaves.items()
        }
        reached = dict.fromkeys(sums, 0)
        for batch in batches:
            for point, (tau, _) in enumerate(path):
                factors.fill(tau)
                value, number = loss(model, batch)
                if value.requires_grad:  # not where all of the model runs without gradient
                    value.sum().backward()  # of the sum: in fp16 the gradient of a mean would vanish
                for layer, leaf in factors.leaves.items():
                    if leaf.grad is not None:
                        sums[layer][point] -= leaf.grad.detach().cpu().double()
                        reached[layer] += 1
                        leaf.grad = None
            count += int(torch.as_tensor(number).sum())
        widths = [value.shape[1] for value in sums.values()]
        heads = torch.tensor([float(count), *map(float, reached.values())]).double()
        total = torch.cat([heads, torch.cat(list(sums.values()), dim=1).flatten()])
        if reduce is not None:
            reduce([total])
        count, hits = total[0].item(), total[1 : len(heads)]
        rates = total[len(heads) :].view(points, -1)
        values = (shares_of_gain if shares else integrated)(rates, path)
        found = factors.by_part(dict(zip(sums, values.split(widths))))
        does = {layer: any(part.lora_B.any() for part in parts.values() if part.layer is layer) for layer in sums}
    if not count:
        raise ValueError("contributions needs held-out rows with at least one target, got none. Give more rows.")
    unused = {layer for layer, hit in zip(sums, hits.tolist()) if not hit}
    for name, part in parts.items():
        if part.layer in unused and allow_unused and len(unused) < len(sums):
            del found[name]
        elif part.layer in unused and (does[part.layer] or allow_unused):
            raise ValueError(
                f"No held-out gradient reaches {name!r}: it did not run, or runs without gradient. Take it out of "
                "target_modules."
            )
    for name, value in found.items():
        if not torch.isfinite(value).all():
            raise NonFiniteError(
                f"The held-out loss has no finite gradient at {name!r}: the adapter has diverged. Lower the learning "
                "rate."
            )
    return {name: value / count for name, value in found.items()}
