r"""What every component of an adapter takes off the held-out loss: its contribution.

Take each module's update, gates folded in, in the basis of its singular vectors, and give component j a selection
variable α_j. Its contribution is the integrated gradient of α from no adapter (0) to the whole adapter (1):

    φ_j = - ∫_0^1 ∂L_val(τ·1)/∂α_j dτ  ≈  - Σ_i w_i ∂L_val(τ_i·1)/∂α_j        (Gauss-Legendre points τ_i in [0, 1])

    Σ_j φ_j = L_val(0) - L_val(1)

which is the direct term of AutoLoRA's hypergradient (Eq. 5, η = 0), integrated instead of taken at one point
(integrated gradients, Sundararajan et al. 2017): the Aumann-Shapley values of the game in which components buy
held-out loss. What does nothing has 0, what has learned noise 0 or less.

Cost: one forward and backward pass of the held-out rows per point, 3 by default, with no gradient but α's.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

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


def contributions(
    model: torch.nn.Module,
    batches: Iterable,
    loss: Callable = target_loss,
    *,
    adapter_name: str = "default",
    points: int = 3,
    reduce: Callable[[list[torch.Tensor]], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Held-out contribution of every component of a LoRA adapter, in the basis of its update's singular vectors.

    Args:
        model: a `PeftModel` with a LoRA adapter of any ranks; it ends as it was, bit for bit.
        batches: held-out batches, of which every process has its own; read once.
        loss: (model, batch) -> (sum of the losses of all targets, their number); L_val = Σ sums / Σ numbers, whatever
            the size of the batches.
        points: of the path.
        reduce: adds up tensors over processes, in place.
    Returns:
        {module or part of a fused one, as `c_attn#q`: φ, (r,) in float64 on the CPU}, in nats a target, components by
        falling singular value.
    Raises:
        ValueError: if there are no held-out targets, no gradient reaches a module, or a loss is no finite number.
    """
    parts = lora_parts(model, adapter_name)
    if not parts:
        raise ValueError(f"contributions found no LoRA layer of adapter {adapter_name!r}. Give a PeftModel with one.")
    path, count = path_points(points), 0
    with undisturbed(model), in_svd_basis(parts), gated(parts, requires_grad=True) as factors, torch.enable_grad():
        sums = {
            layer: torch.zeros_like(leaf, dtype=torch.float64, device="cpu") for layer, leaf in factors.leaves.items()
        }
        reached = dict.fromkeys(sums, 0)
        for batch in batches:
            for tau, weight in path:
                factors.fill(tau)
                value, number = loss(model, batch)
                value.sum().backward()  # of the sum: in fp16 the gradient of a mean would vanish
                for layer, leaf in factors.leaves.items():
                    if leaf.grad is not None:
                        sums[layer] -= weight * leaf.grad.detach().cpu().double()
                        reached[layer] += 1
                        leaf.grad = None
            count += int(torch.as_tensor(number).sum())
        total = torch.cat([torch.tensor([float(count), *map(float, reached.values())]).double(), *sums.values()])
        if reduce is not None:
            reduce([total])
        count, hits, flat = total[0].item(), total[1 : 1 + len(sums)], total[1 + len(sums) :]
        found = factors.by_part(dict(zip(sums, flat.split([len(value) for value in sums.values()]))))
    if not count:
        raise ValueError("contributions needs held-out rows with at least one target, got none. Give more rows.")
    layers = {part.layer: name for name, part in reversed(parts.items())}
    for layer, hit in zip(sums, hits.tolist()):
        if not hit:
            raise ValueError(
                f"No held-out gradient reaches {layers[layer]!r}: it did not run, or runs without gradient. Take it "
                "out of target_modules."
            )
    for name, value in found.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"The held-out loss has no finite gradient at {name!r}: the adapter has diverged. Lower the learning "
                "rate."
            )
    return {name: value / count for name, value in found.items()}
