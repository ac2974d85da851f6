"""AutoLoRA (Zhang et al., NAACL 2024, arXiv:2403.09113) for PEFT and `Trainer`: search LoRA ranks, retrain, ship."""

from autolora_trainer.arguments import AutoLoraTrainingArguments
from autolora_trainer.callbacks import RankSelectionCallback
from autolora_trainer.ranks import LearnedRanks
from autolora_trainer.retrain import build_adapter
from autolora_trainer.trainer import AutoLoraMixin, AutoLoraTrainer
from autolora_trainer.version import __version__

__all__ = [
    "AutoLoraMixin",
    "AutoLoraTrainer",
    "AutoLoraTrainingArguments",
    "LearnedRanks",
    "RankSelectionCallback",
    "__version__",
    "build_adapter",
]
