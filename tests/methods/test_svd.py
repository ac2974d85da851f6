"""Does a truncated SVD keep the largest singular values of all modules, and no cut more?"""

import pytest
import torch
from peft import LoraConfig

import run_glue
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.methods import svd
from autolora_trainer.ranks.learned import LearnedRanks
from tests.helpers.commands import command
from tests.helpers.methods import COST
from tests.helpers.models import tiny_roberta


def test_the_cut_keeps_the_largest_singular_values_of_all_modules(place, tmp_path):
    """Against ranks counted by hand, on the adapter that was cut."""
    wide = add_lora(tiny_roberta(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    for scale, layer in enumerate(lora_layers(wide).values(), 1):
        layer.lora_B["default"].weight.data.normal_().mul_(scale)
    values = torch.stack(
        [torch.linalg.svdvals(layer.get_delta_weight("default"))[:4] for layer in lora_layers(wide).values()]
    ).detach()
    ranks = svd.ranks_by_singular_values(wide, 7 * COST, min_rank=0)
    level = values.flatten().sort(descending=True).values[6]
    assert list(ranks.values()) == (values >= level - 1e-5).sum(dim=1).tolist() and sum(ranks.values()) == 7
    assert svd.ranks_by_singular_values(wide, 4 * COST) == dict.fromkeys(ranks, 1)


def test_a_cut_to_everything_is_plain_lora(place, tmp_path):
    cut = run_glue.main(command(place, tmp_path / "cut", method="svd", size="lora:4"))
    lora = run_glue.main(command(place, tmp_path / "lora", method="lora", lora_r=4))
    assert cut["eval_loss"] == pytest.approx(lora["eval_loss"], abs=1e-5)
    assert LearnedRanks.load(tmp_path / "cut" / "ranks.json").rank_rule == "svd"
