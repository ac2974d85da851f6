r"""How strongly the held-out loss pulls at every module, whatever its LoRA factors happen to be.

    e_l² = E ‖G_l‖²_F,   G_l = ∂L_val/∂W_l ∈ R^{m_l x n_l}          (mean over the held-out batches of the search)

The gradients of `lora_A` and `lora_B` see G_l through a random `lora_A`, another one in every run, and through factors
that grow with the training; e_l does not, which is why it agrees between seeds (`benchmarks/ranks.py`).

G_l itself is never formed. A hook projects the layer's input on p random directions Ω, (n_l, p), and adds up
Y = ∂L/∂y^T (x Ω) = G_l Ω, (m_l, p), from the backward pass that the selection step makes anyway; E ‖Y‖² / p = ‖G_l‖²
(Hutchinson's estimator), with new directions for every batch. That is less than 1 % of a pass.
"""

from contextlib import contextmanager

import torch

from autolora_trainer.lora.parts import LoraPart

DIRECTIONS = 8  # p


class GradientProbe:
    """Held-out gradient energy of all modules of an adapter.

    Args:
        parts: {name: `LoraPart`}, M of them.
        device: where the sums are kept.
    Attributes:
        energy_sum: sum over the collected batches of the estimate of ‖G_l‖²_F, (M,), float32.
        count: batches collected. With `energy_sum` it is the whole state.
    """

    def __init__(self, parts: dict[str, LoraPart], device: torch.device, seed: int = 0):
        self._parts, self._device, self._seed = list(parts.values()), device, seed
        self._layers = list(dict.fromkeys(part.layer for part in self._parts))
        self._layer_of = [self._layers.index(part.layer) for part in self._parts]
        self.energy_sum = torch.zeros(len(self._parts), device=device)
        self.count = 0
        self._directions: dict[int, torch.Tensor] = {}  # {n_l: Ω} of the running held-out pass
        self._sketches: list[torch.Tensor | None] = [None] * len(self._layers)

    def _watch(self, row: int):
        def hook(module, args, output):
            if not output.requires_grad:
                return
            with torch.no_grad():
                inputs = args[0].flatten(0, -2)
                directions = self._directions[inputs.shape[1]]
                projected = inputs.to(directions.dtype) @ directions.to(inputs.device)  # (tokens, p)

            def add(gradient):
                sketch = (gradient.flatten(0, -2).to(projected.dtype).T @ projected).to(self._device)  # (m, p) = G Ω
                self._sketches[row] = sketch if self._sketches[row] is None else self._sketches[row] + sketch

            output.register_hook(add)

        return hook

    @contextmanager
    def watching(self):
        """Forward passes inside are watched; their backward passes may come later, until `collect`. Outside there is
        no hook, where it would break the graph of a compiled weight step."""
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + self.count)  # the same for a whole window
        widths = sorted({part.lora_A.shape[1] for part in self._parts})
        self._directions = {n: torch.randn(n, DIRECTIONS, generator=generator).to(self._device) for n in widths}
        handles = [layer.register_forward_hook(self._watch(row)) for row, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def collect(self, reduce) -> None:
        """End one held-out batch: average its gradients over processes with `reduce`, and add their energies."""
        found = {index: sketch for index, sketch in enumerate(self._sketches) if sketch is not None}
        self._sketches = [None] * len(self._layers)
        if not found:
            return
        reduce(list(found.values()))
        rows = [row for row, index in enumerate(self._layer_of) if index in found]
        sketches = [self._parts[row].rows_of(found[self._layer_of[row]]) for row in rows]  # (m_l, p)
        energies = torch.stack(torch._foreach_norm(sketches)).square() / DIRECTIONS
        self.energy_sum[rows] += torch.nan_to_num(energies, nan=0.0, posinf=0.0)
        self.count += 1

    @property
    def energy(self) -> torch.Tensor:
        """e_l, the root mean square of ‖∂L_val/∂W_l‖_F, (M,)."""
        return (self.energy_sum / max(1, self.count)).sqrt()
