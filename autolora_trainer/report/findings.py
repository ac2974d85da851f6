"""What a folder shows of the ranks that were found: the numbers, the grid, and the curve behind their size."""

import os

from autolora_trainer.drawing import drawn
from autolora_trainer.files import write_json
from autolora_trainer.ranks.curve import CURVE_FILE
from autolora_trainer.ranks.learned import RANKS_FILE, LearnedRanks
from autolora_trainer.report.curve import save_rank_curve
from autolora_trainer.report.heatmap import save_rank_heatmap


def save_findings(ranks: LearnedRanks, folder: str | os.PathLike, parameters: int) -> None:
    """Write ranks.json and the heatmap; curve.json and its picture too, where there is a curve. A picture that cannot
    be drawn is named in a warning.

    Args:
        folder: where to write; it must exist.
        parameters: the chosen size.
    """
    ranks.save(os.path.join(folder, RANKS_FILE))
    with drawn("rank_heatmap"):
        save_rank_heatmap(ranks, folder)
    if ranks.curve is not None:
        write_json(os.path.join(folder, CURVE_FILE), ranks.curve.to_dict() | {"size": parameters}, indent=1)
        with drawn("rank_curve"):
            save_rank_curve(ranks.curve, folder, parameters)
