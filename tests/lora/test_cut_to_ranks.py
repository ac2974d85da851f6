"""A retrain that begins wide and is cut to the learned ranks."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import Trainer

from autolora_trainer import LearnedRanks
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.svd import copy_cut, cut_to_ranks
from autolora_trainer.ranks.adapter import build_adapter
from autolora_trainer.ranks.learned import ModuleRank
from autolora_trainer.training.callbacks import CutCallback
from tests.helpers.models import lora, tiny_gpt2, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import short_training

LEARNED = [1, 3, 0, 2]


def learned(model):
    ranks = {name: ModuleRank(rank) for name, rank in zip(lora_parts(model), LEARNED)}
    return LearnedRanks(ranks, initial_rank=4)


def deltas(model):
    return {name: part.lora_B @ part.lora_A * part.scaling for name, part in lora_parts(model).items()}


def test_a_cut_keeps_the_best_approximation_of_each_rank():
    model = lora(tiny_roberta())
    before = deltas(model)
    cut_to_ranks(model, learned(model).ranks)
    for (name, after), rank in zip(deltas(model).items(), LEARNED):
        u, s, vh = torch.linalg.svd(before[name])
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert torch.allclose(after, best, atol=1e-5), name


@pytest.mark.parametrize("make, targets", [(tiny_roberta, ["query", "value"]), (tiny_gpt2, ["c_attn#q", "c_attn#v"])])
def test_what_is_cut_stays_cut_and_the_small_adapter_computes_the_same(make, targets, tmp_path):
    base = make()
    kind = "SEQ_CLS" if make is tiny_roberta else "CAUSAL_LM"
    config = LoraConfig(task_type=kind, lora_alpha=8, target_modules=targets)
    model = add_lora(copy.deepcopy(base), config, rank=4)
    ranks = learned(model)
    data = rows(32)
    if make is tiny_gpt2:
        data = data.map(lambda row: {"labels": row["input_ids"]}, keep_in_memory=True, load_from_cache_file=False)
    arguments = short_training(tmp_path, max_steps=10)
    callback = CutCallback(ranks, 0.5)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    assert callback.step(10) == 5
    for part, rank in zip(lora_parts(model).values(), LEARNED):
        assert not part.lora_A[rank:].any() and not part.lora_B[:, rank:].any()
        assert rank == 0 or part.lora_B[:, :rank].any()
    small = build_adapter(copy.deepcopy(base), ranks, config)
    copy_cut(model, small)
    ids = torch.randint(3, 60, (4, 8))
    with torch.no_grad():
        assert torch.allclose(small.eval()(ids).logits, model.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("share, steps, expected", [(0.5, 10, 5), (0.99, 10, 9), (0.01, 10, 1), (0.8, 2, 1)])
def test_at_least_one_step_comes_before_the_cut_and_one_after_it(share, steps, expected):
    assert CutCallback(LearnedRanks(), share).step(steps) == expected
