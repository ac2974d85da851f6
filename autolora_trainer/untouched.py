"""A model and the generators of random numbers that are given back as they came, whatever happened in between."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Inside, anything may be done to `model`: layers wrapped, hooks added, weights trained, its forward replaced, its
    dtypes changed. Afterwards it is what it was, bit for bit, after an exception and Ctrl-C too, and so are Python's,
    numpy's and torch's global generators.

    What every module holds is kept by reference, and so is what lies beside a quantized weight; of values only those
    of what asks for a gradient are copied, so that weights which are frozen before and inside take no memory.
    """
    modules = {module: (type(module), _shallow(vars(module))) for module in model.modules()}
    weights = {p: (p.data, p.requires_grad, p.grad) for p in (*model.parameters(), *model.buffers())}
    beside = [(held, dict(vars(held))) for p in weights for held in (p, *_objects(p))]  # of a quantized weight
    values = {p: p.detach().clone() for p, (_, asks, _) in weights.items() if asks}
    gradients = {p: grad.clone() for p, (_, _, grad) in weights.items() if grad is not None}
    configs = {id(config): (config, _deep(vars(config))) for config in _configs(modules)}
    generators = _generators()
    try:
        yield
    finally:
        for module, (kind, held) in modules.items():
            module.__class__ = kind  # torch.nn.utils.parametrize and some loaders give a module another
            vars(module).clear()
            vars(module).update(_shallow(held))
        for held, values_of in beside:
            vars(held).clear()
            vars(held).update(values_of)
        for weight, (data, asks, gradient) in weights.items():
            weight.data, weight.grad = data, gradient
            weight.requires_grad_(asks)
        with torch.no_grad():
            for weight, value in values.items():
                weight.copy_(value)
            for weight, value in gradients.items():
                weight.grad.copy_(value)
        for config, held in configs.values():
            vars(config).clear()
            vars(config).update(held)
        _restore(generators)


def sharing_memory(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose plain weights are other parameters over the same memory: to be sharded, which changes a model for
    good, moved to a device, and never written to."""
    shared = {}
    for weight in model.parameters():
        if type(weight) is torch.nn.Parameter:
            shared[id(weight)] = torch.nn.Parameter(weight.data, weight.requires_grad)
            vars(shared[id(weight)]).update(vars(weight))
    return copy.deepcopy(model, shared)


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside, anything may draw from Python's, numpy's and torch's global generators; afterwards they are what they
    were."""
    generators = _generators()
    try:
        yield
    finally:
        _restore(generators)


def _shallow(held: dict) -> dict:
    """A module's attributes, its own containers (parameters, buffers, modules, hooks, sets of names) copied."""
    kinds = (dict, list, set)
    return {name: copy.copy(value) if isinstance(value, kinds) else value for name, value in held.items()}


def _objects(weight: torch.Tensor) -> list:
    """What a quantized weight is read by: bitsandbytes repacks it in its first forward on some CPUs, and notes it in
    the state that goes with it."""
    return [value for value in vars(weight).values() if type(value).__name__ == "QuantState"]


def _deep(held: dict) -> dict:
    """A configuration's attributes, containers copied with all that is in them."""
    return {
        name: copy.deepcopy(value) if isinstance(value, (dict, list, set)) else value for name, value in held.items()
    }


def _configs(owners) -> list:
    """The configurations that objects hold, of their adapters and generation too, and those within."""
    found, left = {}, list(owners)
    while left:
        for value in vars(left.pop()).values():
            for config in value.values() if isinstance(value, dict) else (value,):
                if hasattr(config, "to_dict") and hasattr(config, "__dict__") and id(config) not in found:
                    found[id(config)] = config
                    left.append(config)
    return list(found.values())


def _generators():
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _restore(states) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
