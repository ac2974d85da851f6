"""Are differences taken in full precision, with the same dropout, and nothing else?"""

import pytest
import torch
from peft import LoraConfig
from torch import nn

from autolora_trainer import AutoLoraTrainer
from autolora_trainer.training.passes import RandomState, full_precision, is_full_precision
from tests.helpers.models import tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import arguments, searcher


def test_differences_are_taken_in_full_precision(tmp_path):
    trainer = searcher(tmp_path, dropout=0.0, bf16=True)
    trainer.train()
    batch = {"input_ids": torch.randint(3, 60, (4, 10)), "labels": torch.zeros(4, dtype=torch.long)}
    rounded, exact = trainer.model(**batch).loss, None
    with full_precision(trainer.model):
        exact = trainer.model(**batch).loss
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)(**batch).loss
    assert torch.equal(exact, plain) and not torch.equal(rounded, exact)


@pytest.mark.parametrize("method, passes_in_fp32", [("first_order", 0), ("finite_difference", 2 * 3)])
def test_only_differences_leave_the_training_s_precision(tmp_path, method, passes_in_fp32):
    trainer = searcher(tmp_path, dropout=0.0, bf16=True, max_steps=3, hypergradient=method)
    seen = []  # in the base model, within the forward that accelerate has wrapped
    trainer.model.get_base_model().register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer.train()
    assert seen.count(False) == passes_in_fp32 and seen.count(True) >= 3


def test_random_state_replays_dropout():
    state = RandomState(torch.device("cpu"))
    first = torch.rand(4)
    state.restore()
    assert torch.equal(first, torch.rand(4))


def test_full_precision_turns_tf32_off_and_on_again():
    model = nn.Linear(2, 2)
    assert is_full_precision(model)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert not is_full_precision(model)
        with full_precision(model):
            assert is_full_precision(model)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_head_in_half_precision_is_trained_alone(tmp_path, dtype):
    """AdamW's 1e-8 is zero in fp16, and 0 / 0 where a gradient is; the mean loss of bf16 is half a percent off."""
    model, config = tiny_roberta().to(dtype), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    trainer = AutoLoraTrainer(model, arguments(tmp_path, max_steps=4), train_dataset=rows(), peft_config=config)
    trainer.train()
    heads = [parameter for parameter in trainer.fresh_heads.values() if parameter.dtype == dtype]
    assert heads and torch.isfinite(torch.tensor([point.loss for point in trainer.learned_ranks.curve.points])).all()
