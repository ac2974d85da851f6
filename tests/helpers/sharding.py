"""FSDP2 on CPUs: accelerate 1.15 shards on accelerators alone, and on CPUs trains data-parallel without a word."""

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from autolora_trainer.lora.sharded import is_sharded, whole

FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}  # arguments of a training


def shard_on_cpus() -> None:
    """From here on, in this process, Trainer and accelerate do on CPUs and gloo what they do on GPUs under FSDP."""
    start = PartialState.__init__

    def init(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU  # of which AcceleratorState makes FSDP

    PartialState.__init__ = init


def trained(trainer, sharded: bool) -> dict:
    """{name: all of it} of what is trained."""
    found = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(is_sharded(p) == sharded for p in found.values())
    return {name: whole(p).detach().clone() for name, p in found.items()}
