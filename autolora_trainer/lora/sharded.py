"""Weights in shards: the one place that knows FSDP2's, of which every process holds some rows.

What reads or writes one as a whole is a collective: all processes have to do it, in the same order. Where nothing is
sharded, these functions are what they are called.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor: FSDP2's, or its gradient."""
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The rows that this process holds, detached; what is written to them is written."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it in every process, detached where it is gathered. A collective."""
    return tensor.full_tensor().detach() if is_sharded(tensor) else tensor


@torch.no_grad()
def write_whole(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Write all of a tensor: of one in shards, with the value of the first process. A collective."""
    if not is_sharded(tensor):
        tensor.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    mesh = tensor.device_mesh
    shared = distribute_tensor(whole(value).to(mesh.device_type, tensor.dtype).contiguous(), mesh, tensor.placements)
    local(tensor).copy_(local(shared))


@contextmanager
def changing(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Inside, the whole of a tensor, to be written to without gradient. A collective."""
    with torch.no_grad():
        full = whole(tensor)
        yield full
        if is_sharded(tensor):
            write_whole(tensor, full)


def by_row(function: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """A function of (rows, n) that keeps its shape, and treats every row alike, of a weight: in shards like it."""
    if not is_sharded(weight):
        return function(weight.detach())
    from torch.distributed.tensor import DTensor

    layout = {"shape": weight.shape, "stride": weight.stride(), "run_check": False}
    return DTensor.from_local(function(local(weight)), weight.device_mesh, weight.placements, **layout)


@torch.no_grad()
def exchange(weight: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Let a weight hold another value, of its own dtype where it is in shards; returns what `put_back` takes."""
    if is_sharded(weight):  # FSDP gathers from this very memory
        raw = local(weight).clone()
        local(weight).copy_(local(value))
    else:
        raw, weight.data = weight.data, value
    return raw


@torch.no_grad()
def put_back(weight: nn.Parameter, raw: torch.Tensor) -> None:
    """Let a weight have its bits again, after `exchange`."""
    if is_sharded(weight):
        local(weight).copy_(raw)
    else:
        weight.data = raw


def reshard_after_forward(model: nn.Module) -> None:
    """Let FSDP2 gather weights for every pass: it keeps some gathered after a pass without gradient (the root's, which
    a head is), and what is written to shards then does not come to the next one."""
    if hasattr(model, "set_reshard_after_forward"):
        model.set_reshard_after_forward(True)


def gradients(loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor | None]:
    """∇ loss by parameters, None by those that it does not reach; by those in shards, of the mean over processes:
    FSDP2 reduces what `backward` leaves in `grad`. What `grad` held stays."""
    if not any(map(is_sharded, parameters)):
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))
    held = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, held):
        parameter.grad = gradient
    return found
