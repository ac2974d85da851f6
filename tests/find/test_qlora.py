"""QLoRA as the documentation of peft and of TRL has it: the ranks are those without checkpointing."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import TrainingArguments
from trl import SFTConfig

from autolora_trainer import RankSearch
from autolora_trainer.search.reach import SWITCHED
from tests.helpers.models import byte_llama, byte_tokenizer, padded
from tests.helpers.quantized import WIDE, is_installed, quantized
from tests.helpers.trainings import short_training

pytestmark = [
    pytest.mark.skipif(not is_installed("bitsandbytes 4 bits"), reason="needs bitsandbytes"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=16)
TEXTS = [{"text": f"{name} is a pub by the {place}."} for name in "ABCDEFGH" for place in "xyz"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("qlora")
    byte_llama(**WIDE, initializer_range=0.1).save_pretrained(place)
    padded(byte_tokenizer(llama=True)).save_pretrained(place)
    return place


def found(folder, model, place, kind, **changes):
    rows = Dataset.from_list(TEXTS)
    if kind is TrainingArguments:
        tokens = padded(byte_tokenizer(llama=True))([row["text"] for row in TEXTS])["input_ids"]
        rows = Dataset.from_list([{"input_ids": ids[:12], "labels": ids[:12]} for ids in tokens])
    args = short_training(place, kind, per_device_train_batch_size=4, bf16=False, **changes)
    search = RankSearch(model, rows, LORA, args=args, initial_rank=4, search_steps=6, size="lora:1")
    search.run()
    values = [torch.tensor(module.contributions) for module in search.ranks.modules.values()]
    return search.config.rank_pattern, torch.cat(values)


RECIPES = {  # (base, class of arguments, what they ask for, lines)
    "peft, 4 bits": ("bitsandbytes 4 bits", TrainingArguments, {}, 1),
    "peft, 8 bits": ("bitsandbytes 8 bits", TrainingArguments, {}, 1),
    "TRL": ("bitsandbytes 4 bits", SFTConfig, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}, 1),
    "TRL's defaults": (
        "bitsandbytes 4 bits",
        SFTConfig,
        {},
        0,
    ),  # whose checkpoints are the other kind, and replace the model's
}
KNOWN = {}  # {(base, class of arguments): what is found without checkpointing}


@pytest.mark.parametrize("recipe", RECIPES)
def test_ranks_are_those_without_checkpointing(folder, tmp_path, caplog, recipe):
    base, kind, asked, lines = RECIPES[recipe]
    if (base, kind) not in KNOWN:
        plain = prepare_model_for_kbit_training(quantized(folder, base), use_gradient_checkpointing=False)
        own = {"gradient_checkpointing": False} if kind is SFTConfig else {}
        KNOWN[base, kind] = found(folder, plain, tmp_path, kind, **own)
    ranks, values = KNOWN[base, kind]
    model = prepare_model_for_kbit_training(quantized(folder, base))
    layer = model.model.layers[0]
    before = layer._gradient_checkpointing_func
    assert before.keywords.get("use_reentrant") is not False and model.is_gradient_checkpointing
    again, same = found(folder, model, tmp_path, kind, **asked)
    assert again == ranks and len(set(ranks.values())) > 1
    torch.testing.assert_close(same, values, rtol=1e-4, atol=1e-7)
    assert layer._gradient_checkpointing_func is before and layer.gradient_checkpointing
    assert [record.getMessage() for record in caplog.records].count(SWITCHED) == lines
