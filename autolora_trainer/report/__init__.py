"""Pictures and tables of values."""

from autolora_trainer.report.heatmap import save_rank_heatmap
from autolora_trainer.report.history import save_selection_history

__all__ = ["save_rank_heatmap", "save_selection_history"]
