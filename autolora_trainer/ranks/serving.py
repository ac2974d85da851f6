"""What a server needs for an adapter of given ranks."""

from collections.abc import Mapping

from autolora_trainer.ranks.grid import by_module

# All that vLLM takes: `MaxLoRARanks` of its vllm/config/lora.py. That has 1 too, which older releases refuse.
SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def lora_rank_for_servers(ranks: Mapping[str, int]) -> int:
    """The value of vLLM's `--max-lora-rank` that serves an adapter of these ranks, those of a fused projection's parts
    added up: its default, 16, refuses larger ranks.

    Raises:
        ValueError: if a rank is beyond 512, which vLLM cannot serve.
    Example:
        >>> lora_rank_for_servers({"q": 9})
        16
    """
    largest = max(by_module(ranks).values(), default=0)
    for allowed in SERVER_RANKS:
        if largest <= allowed:
            return allowed
    raise ValueError(f"vLLM serves LoRA up to rank {SERVER_RANKS[-1]}, got rank {largest}. Lower initial_rank.")
