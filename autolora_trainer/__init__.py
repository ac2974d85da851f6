"""AutoLoRA (Zhang et al., NAACL 2024, arXiv:2403.09113) for PEFT and `Trainer`: search LoRA ranks, retrain, ship."""

import importlib
import logging
from typing import TYPE_CHECKING

from autolora_trainer.floors import check_floors
from autolora_trainer.version import __version__

if TYPE_CHECKING:
    from autolora_trainer.find.rank_search import RankSearch, find_ranks
    from autolora_trainer.ranks.adapter import build_adapter
    from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
    from autolora_trainer.search.arguments import AutoLoraTrainingArguments
    from autolora_trainer.search.callback import RankSelectionCallback
    from autolora_trainer.search.trainer import AutoLoraMixin, AutoLoraTrainer
    from autolora_trainer.shrink.compressing import compress
    from autolora_trainer.shrink.result import CompressedAdapter
    from autolora_trainer.training.passes import fix_loss_scale

check_floors()

# on some CPUs bitsandbytes, which PEFT imports where it is there, misses another package at every start
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

HOMES = {  # loaded when they are asked for: torch and transformers take seconds
    "AutoLoraMixin": "search.trainer",
    "AutoLoraTrainer": "search.trainer",
    "AutoLoraTrainingArguments": "search.arguments",
    "CompressedAdapter": "shrink.result",
    "LearnedRanks": "ranks.learned",
    "ModuleRank": "ranks.learned",
    "RankSearch": "find.rank_search",
    "RankSelectionCallback": "search.callback",
    "build_adapter": "ranks.adapter",
    "compress": "shrink.compressing",
    "find_ranks": "find.rank_search",
    "fix_loss_scale": "training.passes",
}
__all__ = [
    "AutoLoraMixin",
    "AutoLoraTrainer",
    "AutoLoraTrainingArguments",
    "CompressedAdapter",
    "LearnedRanks",
    "ModuleRank",
    "RankSearch",
    "RankSelectionCallback",
    "__version__",
    "build_adapter",
    "compress",
    "find_ranks",
    "fix_loss_scale",
]


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
