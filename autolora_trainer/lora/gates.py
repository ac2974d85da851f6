"""A factor for every rank-1 component of an adapter, ranks equal or not:  Δ_l = Σ_j α_l^j b_l^j a_l^j  (Eq. 2).

Here for the time of a measurement, by a forward hook on PEFT's `lora_A`; those of a search stay, in `lora/gated.py`.
Of a parameter, of one or many experts, PEFT reads the weight of `lora_A` in a pass: it gets another to read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper

from autolora_trainer.lora.parts import LoraPart


def times(components: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """(…, r) by (r,), in float32: a factor that moves by a thousandth is none in bfloat16, and its gradient is a sum
    over all tokens, which half precision does not hold."""
    return (components.float() * factors.to(components.device)).to(components.dtype)


class _ReadGate:
    """A gate on the LoRA of a parameter while its passes run; a handle, like that of a hook."""

    def __init__(self, layer: ParamWrapper, adapter_name: str, factors: Callable[[], torch.Tensor]):
        self.module, self.experts, self.factors = layer.lora_A[adapter_name], layer.num_experts, factors
        after = layer.register_forward_hook(self._after, always_call=True)
        self.handles = [layer.register_forward_pre_hook(self._before), after]

    def _before(self, *_) -> None:
        weight = times(self.module.weight.T, self.factors().repeat(self.experts)).T  # row e r + j
        vars(self.module)["weight"] = weight  # which Python finds before the parameter

    def _after(self, *_) -> None:
        vars(self.module).pop("weight", None)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def attach_gate(layer: LoraLayer, adapter_name: str, factors: Callable[[], torch.Tensor]):
    """Multiply the components of a layer by `factors()`, shape (r,) in float32, read at every pass.

    Returns:
        the handle that takes the gate away.
    """
    if isinstance(layer, ParamWrapper):
        return _ReadGate(layer, adapter_name, factors)
    return layer.lora_A[adapter_name].register_forward_hook(lambda module, args, output: times(output, factors()))


class Factors:
    """The factors of all components of an adapter; see `gated`.

    Attributes:
        leaves: {layer: (r,)} in float32, of the components of its parts in their order.
    """

    def __init__(self, parts: dict[str, LoraPart], requires_grad: bool):
        self._names = list(parts)
        self._own: dict[LoraLayer, list[LoraPart]] = {}
        for part in parts.values():
            self._own.setdefault(part.layer, []).append(part)
        self.leaves = {
            layer: torch.ones(sum(part.rank for part in own), device=own[0].device, requires_grad=requires_grad)
            for layer, own in self._own.items()
        }

    @torch.no_grad()
    def fill(self, value: float) -> None:
        """The same factor for every component."""
        for leaf in self.leaves.values():
            leaf.fill_(value)

    @torch.no_grad()
    def keep(self, chosen: dict[str, list[int]]) -> None:
        """1 for the `chosen` components of every part, 0 for all others."""
        for layer, own in self._own.items():
            leaf, start = self.leaves[layer].fill_(0), 0
            for part in own:
                leaf[[start + j for j in chosen.get(part.name, ())]] = 1
                start += part.rank

    def by_part(self, values: dict[LoraLayer, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{part: (r,)} of {layer: (r,)}."""
        found = {}
        for layer, own in self._own.items():
            found.update(zip((part.name for part in own), values[layer].split([part.rank for part in own])))
        return {name: found[name] for name in self._names}


@contextmanager
def gated(parts: dict[str, LoraPart], requires_grad: bool = False) -> Iterator[Factors]:
    """Inside, every component of `parts` has a factor, 1 to begin with."""
    factors = Factors(parts, requires_grad)
    handles = [
        attach_gate(part.layer, part.adapter_name, lambda layer=part.layer: factors.leaves[layer])
        for part in {part.layer: part for part in parts.values()}.values()
    ]
    try:
        yield factors
    finally:
        for handle in handles:
            handle.remove()
