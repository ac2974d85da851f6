"""Numbers per module: learned ranks, patterns, budgets."""

from typing import TYPE_CHECKING

from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank

if TYPE_CHECKING:
    from autolora_trainer.ranks.adapter import build_adapter

__all__ = ["LearnedRanks", "ModuleRank", "build_adapter"]


def __getattr__(name: str):
    if name != "build_adapter":  # which loads torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autolora_trainer.ranks.adapter import build_adapter

    return build_adapter
