"""All of a model, to compare."""

import random

import numpy as np
import torch


def everything(model):
    """What can be seen of a model: bytes, flags, gradients, hooks, modes, attributes, configs, numbers to come."""
    named = model.state_dict(keep_vars=True)
    weights = {n: (id(p), p.dtype, p.requires_grad, p.detach().clone()) for n, p in named.items()}
    modules = {n: (id(m), type(m), m.training, sorted(vars(m)), [len(v) for k, v in vars(m).items() if "hooks" in k])
               for n, m in model.named_modules()}  # fmt: skip
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    kinds = ("config", "generation_config")
    configs = [getattr(model, kind).to_dict() for kind in kinds if hasattr(model, kind)]
    return weights, modules, grads, configs, torch.get_rng_state(), random.getstate(), np.random.get_state()[1]


def same(one, other) -> bool:
    if torch.is_tensor(one) or isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
