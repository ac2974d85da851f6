"""What a server has to be told to serve an adapter of these ranks."""

from collections.abc import Mapping

from autolora_trainer.ranks.names import by_module

# `MaxLoRARanks` of vLLM's vllm/config/lora.py. It has 1 too, which older releases refuse; 8 serves rank 1 as well.
SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def lora_rank_for_servers(ranks: Mapping[str, int]) -> int:
    """The value of vLLM's `--max-lora-rank` that serves this adapter: its default, 16, refuses larger ranks.

    vLLM takes the values of `MaxLoRARanks` in vllm/config/lora.py only: 1, 8, 16, 32, 64, 128, 256, 320, 512.

    Args:
        ranks: {module: rank}, as `LearnedRanks.ranks`; those of a fused projection's parts add up.
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
