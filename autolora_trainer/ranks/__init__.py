"""Numbers per module: learned ranks, patterns, budgets."""

from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank

__all__ = ["LearnedRanks", "ModuleRank", "build_adapter"]
