"""AutoLoRA (Zhang et al., NAACL 2024, arXiv:2403.09113) for PEFT and `Trainer`: search LoRA ranks, retrain, ship."""

import logging

# on some CPUs bitsandbytes, which PEFT imports where it is there, misses another package at every start
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from autolora_trainer.ranks.adapter import build_adapter  # noqa: E402
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank  # noqa: E402
from autolora_trainer.search.arguments import AutoLoraTrainingArguments  # noqa: E402
from autolora_trainer.search.callback import RankSelectionCallback  # noqa: E402
from autolora_trainer.search.trainer import AutoLoraMixin, AutoLoraTrainer  # noqa: E402
from autolora_trainer.version import __version__  # noqa: E402

__all__ = [
    "AutoLoraMixin",
    "AutoLoraTrainer",
    "AutoLoraTrainingArguments",
    "LearnedRanks",
    "ModuleRank",
    "RankSelectionCallback",
    "__version__",
    "build_adapter",
]
