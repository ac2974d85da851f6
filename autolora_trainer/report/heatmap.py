"""The grid of ranks as a picture (Figure 3 of the paper), written to a folder."""

import os

import numpy as np

from autolora_trainer.drawing import pixels, save_in_both_forms, style
from autolora_trainer.ranks.heatmap import heatmap_figure
from autolora_trainer.ranks.learned import LearnedRanks

HEATMAP_FILES = ("rank_heatmap.png", "rank_heatmap.svg")


def save_rank_heatmap(ranks: LearnedRanks, folder: str | os.PathLike, title: str | None = None) -> tuple[str, str]:
    """Write `rank_heatmap.png` and `rank_heatmap.svg`: Figure 3, with the rank written in each cell; the shade is the
    module's contribution where contributions were learned, else the rank.

    The same ranks give the same bytes. Blocks beyond 24 continue in further bands.

    Args:
        folder: where to write; it must exist.
        title: Default: the base model's name.
    Returns:
        The two paths.
    """
    with style():
        figure = heatmap_figure(ranks.ranks, ranks.shades, title or ranks.title)
        return save_in_both_forms(figure, folder, HEATMAP_FILES, dpi=200)


def rank_heatmap_pixels(ranks: LearnedRanks) -> np.ndarray:
    """The picture of `save_rank_heatmap` as (height, width, 3) bytes, for trackers."""
    with style():
        return pixels(ranks.plot())
