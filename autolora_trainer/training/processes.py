"""Several processes: whether they shard the weights, who cannot have that, and how they wait for each other."""

import torch
from accelerate.utils import parse_flag_from_env


def sharding(training) -> str | None:
    """`FSDP` or `DeepSpeed`, where the script's arguments or accelerate's configuration ask for it; else None."""
    for kind, argument in (("DeepSpeed", training.deepspeed), ("FSDP", training.fsdp)):
        if argument or parse_flag_from_env(f"ACCELERATE_USE_{kind.upper()}"):
            return kind
    return None


def refuse_sharding(training, reason: str, cure: str = "or drop --fsdp/--deepspeed") -> None:
    """Raise `ValueError` under FSDP and DeepSpeed, for what takes weights or gradients whole.

    Args:
        reason: a main clause, e.g. "AdaLoRA reads whole gradients".
        cure: what to do besides or instead of plain data parallelism.
    """
    kind = sharding(training)
    if kind is not None:
        raise ValueError(
            f"{reason}, and {kind} shards them. Use plain data parallelism (examples/accelerate/ddp.yaml), {cure}."
        )


def wait_for_everyone() -> None:
    """Until all processes, if there are several, have come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def of_the_first(value):
    """What the first process has here, in every process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        shared = [value]
        torch.distributed.broadcast_object_list(shared)
        return shared[0]
    return value
