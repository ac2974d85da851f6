"""Ranks that rise linearly with depth, at a given size: the cheapest pattern that is not uniform (PRILoRA's idea:
Benedek and Wolf 2024).

    r_d ∝ 1/2 + d / (D - 1),   d = 0 … D-1 the block, from the first to the last

so the first block has half of the mean rank and the last one and a half times it.
"""

import re
from functools import partial

import torch

from autolora_trainer.methods.common import Built, build_pattern, check_pattern
from autolora_trainer.rules import apportioned, fill_budget


def split_block(name: str) -> tuple[str, str]:
    """(block, projection) of a module's name; a module that is in no numbered block is one of its own.

    Example:
        >>> split_block("encoder.layer.3.attention.query"), split_block("pooler.dense")
        (('encoder.layer.3', 'encoder.layer.attention.query'), ('pooler.dense', 'pooler.dense'))
    """
    found = re.match(r"(.*?)(\.?\d+)\.(.*)", name)
    if found is None:
        return name, name
    return found[1] + found[2], f"{found[1]}.{found[3]}".lstrip(".")


def depths(names) -> list[int]:
    """The place of every module's block in the order of the model.

    Example:
        >>> depths(["encoder.0.q", "encoder.0.v", "encoder.1.q", "pooler"])
        [0, 0, 1, 2]
    """
    blocks: dict[str, int] = {}
    return [blocks.setdefault(split_block(name)[0], len(blocks)) for name in names]


def linear_ranks(costs: dict[str, int], parameters: int, min_rank: int = 1) -> dict[str, int]:
    """Components shared out in proportion to 1/2 + depth (Sainte-Laguë) until the next would exceed `parameters`: no
    block has a smaller rank than an earlier one of the same projection.

    Args:
        costs: {module: parameters of one component}, in the order of the model.
        parameters: adapter parameters to spend.
        min_rank: 0 or 1, as in `rules.select_ranks`.
    Example:
        >>> linear_ranks({"0.q": 10, "1.q": 10, "2.q": 10}, 120)
        {'0.q': 2, '1.q': 4, '2.q': 6}
    """
    places = torch.tensor(depths(costs), dtype=torch.double)
    shares = 0.5 + places / places.max().clamp_min(1)
    most = int(parameters / min(costs.values()) * (shares.max() / shares.sum()).item()) + 2  # the last block's rank
    return dict(zip(costs, fill_budget(apportioned(shares, most), list(costs.values()), parameters, min_rank)))


def share_out(run):
    return partial(linear_ranks, min_rank=run.method.min_rank)


def check(run) -> None:
    check_pattern(run, share_out(run))


def build(run) -> Built:
    return build_pattern(run, "linear", share_out(run))
