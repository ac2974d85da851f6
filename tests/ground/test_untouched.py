"""Is a model given back as it came?"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from autolora_trainer.compat import CHECKPOINTING
from autolora_trainer.untouched import untouched
from tests.helpers.models import tiny_llama
from tests.helpers.state import everything, same


def trained(model, tmp_path):
    """LoRA, a Trainer with checkpointed activations and bf16, other weights, hooks and attributes."""
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, modules_to_save=["lm_head"]))
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 8
    args = TrainingArguments(str(tmp_path), max_steps=2, bf16=True, use_cpu=True, report_to="none", seed=5,
                             save_strategy="no", **{CHECKPOINTING: True})  # fmt: skip
    Trainer(adapted, args, train_dataset=rows).train()
    model.config.use_cache = False
    model.config.added = 1
    model.generation_config.pad_token_id = 7
    model.register_forward_hook(lambda *args: None)
    model.to(torch.bfloat16)
    model.model.layers[0].strange = torch.nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        if parameter.grad is not None:
            parameter.grad.add_(1)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_model_comes_back_as_it_was(tmp_path, error):
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    before = everything(model)
    try:
        with untouched(model):
            trained(model, tmp_path)
            assert not same(before, everything(model))
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert same(before, everything(model))
    assert not hasattr(model.config, "added") and not hasattr(model.model.layers[0], "strange")


def test_weights_that_share_memory_still_do():
    model = tiny_llama(tie_word_embeddings=True)
    with untouched(model):
        model.to(torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.lm_head.weight.dtype == torch.float32
