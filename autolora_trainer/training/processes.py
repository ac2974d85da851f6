"""Several processes: whether a launcher started them, whether they shard the weights, who cannot have that, and how
they wait for each other."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env

from autolora_trainer.compat import layers_to_shard

LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets
MPI = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # whose processes know their places otherwise
LONG_WAIT = 60.0  # seconds after which it is said what is waited for


def launched() -> int:
    """How many processes a launcher has started, by the environment; 1 without a launcher.

    Raises:
        ValueError: where the environment says that this is one of several, and no launcher can have said so: a
            variable is left over, and this process would wait for the others for ever.
    """
    given = {name: value for name in LAUNCHED if (value := os.environ.get(name)) not in (None, "", "-1")}
    count = given.get("WORLD_SIZE", "1")
    whole = len(given) == len(LAUNCHED) or any(map(os.environ.get, MPI))
    if not count.isdecimal() or ((int(count) > 1 or "LOCAL_RANK" in given) and not whole):
        said = " ".join(f"{name}={value}" for name, value in given.items())
        missing = " and ".join(name for name in LAUNCHED if name not in given) or "number"
        raise ValueError(
            f"The environment holds {said} and no {missing}, so no launcher has started this. Type unset "
            f"{' '.join(given)}, or start it with accelerate launch or torchrun."
        )
    return int(count)


@contextmanager
def waiting_is_said() -> Iterator[None]:
    """Inside, the processes of a launcher find each other; after a minute of that it is said what is waited for."""
    place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    line = f"waiting for {launched()} processes at {place}; without a launcher, type unset {' '.join(LAUNCHED)}\n"
    slow = threading.Timer(LONG_WAIT, lambda: sys.stderr.write(line))
    slow.daemon = True
    slow.start()
    try:
        yield
    finally:
        slow.cancel()


def sharding(training) -> str | None:
    """`FSDP` or `DeepSpeed`, where the script's arguments or accelerate's configuration ask for it; else None."""
    for kind in ("DeepSpeed", "FSDP"):
        if getattr(training, kind.lower(), None) or parse_flag_from_env(f"ACCELERATE_USE_{kind.upper()}"):
            return kind
    return None


def fsdp_plugin(training) -> FullyShardedDataParallelPlugin | SimpleNamespace | None:
    """What Trainer will shard by under FSDP, by the same arguments and variables; of FSDP1 the version alone."""
    if sharding(training) != "FSDP":
        return None
    given = training.fsdp_plugin_args or {}
    version = int(given.get("fsdp_version") or os.environ.get("FSDP_VERSION") or 1)
    if version == 1:  # whose plugin asks for a GPU at once
        return SimpleNamespace(fsdp_version=version)
    return FullyShardedDataParallelPlugin(**given)


def name_layers(trainer) -> None:
    """Before a model is sharded: the layers that become units of their own, where nobody has named them."""
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layers_to_shard(trainer.model)


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
