"""A `lora_B` under gates, whose files, merges and copies hold the gates: what is saved is what was computed.

PEFT computes `lora_B(lora_A(dropout(x))) * scaling`, and column j of `lora_B` meets only entry j of its input, so that
gates on that axis are Eq. 2 exactly. While gates are on it, a `lora_B` is of a class of its own:

    state_dict, save_pretrained     the weight with the gates folded in; loading takes them out again
    copy.deepcopy, pickle           a plain layer with the gates folded in
    get_delta_weight, and so merge_and_unload, merge_adapter, save_as_lora; add_weighted_adapter    likewise

Of a parameter (experts) PEFT calls no layer but reads the weight: while it does, the weight is the gated one.
"""

import functools
from collections.abc import Callable, Iterable
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from autolora_trainer.lora.gates import times
from autolora_trainer.lora.sharded import by_row, exchange, put_back


class Gated:
    """Over the class of a linear layer, see `gate_layer`.

    Attributes:
        gate: () -> the factors of the columns, (r,) or (r E,) in float32; read at every pass.
        is_folded: the weight holds the factors, and passes do without them.
        is_apart: files hold the weight as it is, as the checkpoints of a search do.
    """

    gate: Callable[[], torch.Tensor]
    is_folded = is_apart = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if self.is_folded else times(x, self.gate()))

    @torch.no_grad()
    def product(self) -> torch.Tensor:
        """The weight with the factors folded in, (m, r)."""
        if self.is_folded:
            return self.weight.detach()
        return by_row(lambda weight: weight * self.gate().to(weight), self.weight)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not (keep_vars or self.is_apart):  # who keeps variables asks for the parameters themselves
            destination[prefix + "weight"] = self.product()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        given = state_dict.get(prefix + "weight")
        if given is not None and not (self.is_folded or self.is_apart):
            gate = self.gate().detach()
            if not gate.all():
                errors.append(f"{prefix}weight: a gate is zero. Call gates.remove() or gates.bake() before loading.")
            state_dict[prefix + "weight"] = by_row(lambda rows: rows / gate.to(rows), given)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def __reduce_ex__(self, protocol):
        state = {name: value for name, value in vars(self).items() if name not in ("gate", "is_folded", "is_apart")}
        weight = nn.Parameter(self.product().clone(), self.weight.requires_grad)
        state["_parameters"] = {**self._parameters, "weight": weight}
        return _blank, (type(self).plain,), state


def _blank(kind: type) -> nn.Module:
    """One without any attribute, which those of a copy are put into."""
    return kind.__new__(kind)


@functools.cache
def _gated(kind: type[nn.Linear]) -> type:
    return type(f"Gated{kind.__name__}", (Gated, kind), {"plain": kind})


class Folding:
    """A method of an object that runs with the gates in the weights, inside of `folded()`. In a copy of the object,
    which has no gates, it is the method of its class."""

    def __init__(self, owner, name: str, folded: Callable):
        self.owner, self.name, self.folded = owner, name, folded

    def __call__(self, *args, **kwargs):
        with self.folded():
            return getattr(type(self.owner), self.name)(self.owner, *args, **kwargs)

    def __deepcopy__(self, memo):
        return getattr(memo[id(self.owner)], self.name)  # copied with its owner, which comes first

    def __reduce__(self):
        return getattr, (self.owner, self.name)


READERS = ("get_delta_weight", "get_delta_factors")  # of a layer's update; the second of parameters alone


def is_gated(layer: LoraLayer, adapter_name: str) -> bool:
    return isinstance(layer.lora_B[adapter_name], Gated)


def gate_layer(layer: LoraLayer, adapter_name: str, gate: Callable[[], torch.Tensor]) -> Gated:
    """Multiply the components of a layer by `gate()`, shape (r,) in float32, read at every pass, until `ungate_layer`;
    returns its `lora_B`, which stays the same object."""
    module = layer.lora_B[adapter_name]
    module.__class__ = _gated(type(module))
    if isinstance(layer, ParamWrapper):
        module.gate = lambda: gate().repeat_interleave(layer.num_experts)  # column j E + e
        for name in READERS:
            setattr(layer, name, Folding(layer, name, functools.partial(applied, module)))
    else:
        module.gate = gate
        layer.get_delta_weight = Folding(layer, "get_delta_weight", functools.partial(folded, [module]))
    return module


def ungate_layer(layer: LoraLayer, adapter_name: str) -> None:
    """Make it what it was, its weight as it is."""
    module = layer.lora_B[adapter_name]
    module.__class__ = type(module).plain
    for name in ("gate", "is_folded", "is_apart"):
        vars(module).pop(name, None)
    for name in READERS:
        vars(layer).pop(name, None)


@contextmanager
def applied(module: Gated):
    """Inside, whoever reads the weight gets it with the gates in it, and the gradient of both."""
    if module.is_folded:
        yield
        return
    vars(module)["weight"] = times(module.weight, module.gate())  # which Python finds before the parameter
    try:
        yield
    finally:
        del vars(module)["weight"]


@contextmanager
def folded(modules: Iterable[Gated]):
    """Inside, the weights hold their gates, and the layers compute the same; afterwards they have their bits again."""
    modules = [module for module in modules if not module.is_folded]
    raw = []
    for module in modules:
        raw.append((module.weight, exchange(module.weight, module.product())))
        module.is_folded = True
    try:
        yield
    finally:
        for module, held in zip(modules, raw):
            put_back(*held)
            module.is_folded = False
