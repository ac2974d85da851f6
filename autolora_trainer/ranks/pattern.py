"""Ranks in PEFT's words: rank_pattern, alpha_pattern and the scale of every update, as plain values."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping

from autolora_trainer.names import module_of
from autolora_trainer.ranks.grid import by_module

SCALINGS = ("constant", "paper")


def mean_rank(ranks: Mapping[str, int]) -> float:
    """Of the modules and parts that have any; plain LoRA of rank R has R.

    Example:
        >>> mean_rank({"q": 2, "k": 0, "v": 4})
        3.0
    """
    kept = [rank for rank in ranks.values() if rank > 0]
    return sum(kept) / len(kept) if kept else 0.0


def lora_pattern(
    ranks: Mapping[str, int],
    lora_alpha: float = 16,
    use_rslora: bool = False,
    scaling: str = "constant",
    parameters: Collection[str] = (),
) -> dict:
    """{"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"} of a `LoraConfig` with these ranks, and
    "target_parameters", where there are any.

    Args:
        ranks: {module or part: rank}.
        lora_alpha: of plain LoRA; the scale is `lora_alpha` over the mean rank, of rsLoRA over its root.
        scaling: see `LearnedRanks.to_lora_config`.
        parameters: names that are none of modules, but of parameters (experts).
    Raises:
        ValueError: if every rank is zero, or `scaling` is unknown.
    Example:
        >>> lora_pattern({"h.0.q": 2, "h.0.v": 4}, lora_alpha=6)["alpha_pattern"]
        {'^h\\\\.0\\\\.q': 4, '^h\\\\.0\\\\.v': 8}
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be constant or paper, got {scaling!r}.")
    kept = {name: rank for name, rank in by_module(ranks).items() if rank > 0}
    if not kept:
        raise ValueError("Every module has rank 0, so there is no adapter to train. Set min_rank 1 or a size.")
    parameters = set(parameters)
    largest, mean = max(kept.values()), mean_rank(ranks)
    keys = {name: "^" + re.escape(name) for name in kept}
    parts = Counter(module_of(name) for name, rank in ranks.items() if rank > 0)  # 1 where there are none
    grow = math.sqrt if use_rslora else float  # rsLoRA divides by sqrt(r)
    if scaling == "constant":
        alphas = {keys[name]: _plain(lora_alpha * grow(rank / mean)) for name, rank in kept.items()}
        lora_alpha = _plain(lora_alpha * grow(largest / mean))
    else:  # a fused module has one scale: that of the mean rank of its parts
        alphas = {keys[name]: _plain(lora_alpha * grow(parts[name])) for name in kept if parts[name] > 1}
    found = {
        "r": largest, "lora_alpha": lora_alpha, "target_modules": [name for name in kept if name not in parameters],
        "rank_pattern": {keys[name]: rank for name, rank in kept.items()}, "alpha_pattern": alphas,
    }  # fmt: skip
    stacked = [name for name in kept if name in parameters]
    return found | ({"target_parameters": stacked} if stacked else {})


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number
