"""Bases of every library that quantizes: searched, known again, compressed on, and given back as they came.

What a machine has not got is skipped; docs/compatibility.md says what was run.
"""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel

from autolora_trainer import RankSearch, build_adapter, compress
from autolora_trainer.ranks.adapter import PACKED, QUANTIZED, fingerprint
from tests.helpers.models import tiny_llama
from tests.helpers.quantized import LIBRARIES, WIDE, is_installed, quantized
from tests.helpers.rows import rows
from tests.helpers.trainings import short_training

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], lora_alpha=16)
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(not is_installed(kind), reason=f"needs {library}"))
    for kind, library in LIBRARIES.items()
]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([rows(1)[0]["input_ids"]])).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_base_is_searched_known_again_and_compressed_on(tmp_path, kind):
    torch.manual_seed(0)
    tiny_llama(**WIDE, initializer_range=0.1).save_pretrained(tmp_path / "base")
    data = Dataset.from_list([{**row, "labels": row["input_ids"]} for row in rows(24)])
    base, fresh = (quantized(tmp_path / "base", kind) for _ in range(2))
    before = logits(base)
    args = short_training(tmp_path, per_device_train_batch_size=4, lr_scheduler_type="constant")
    search = RankSearch(base, data, LORA, args=args, initial_rank=4, search_steps=6, size="lora:2").run()
    assert torch.equal(logits(base), before)
    assert all(any(module.contributions) for module in search.ranks.modules.values())
    mark = search.ranks.base_model_fingerprint
    assert mark.startswith(PACKED if kind in ("GPTQ", "AWQ") else QUANTIZED)
    assert mark == fingerprint(fresh, search.ranks.modules)

    model = build_adapter(base, search.ranks, LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    whole = compress(model, rank=8)  # of which there are as many as before
    assert torch.allclose(logits(whole.load(fresh)), logits(model), rtol=1e-3, atol=1e-4)
    small = compress(model, data, args=args, tolerance=0.5, output_dir=tmp_path / "small")
    assert 0 < small.file.parameters < small.given["parameters"]
    assert small.ranks.base_model_fingerprint == fingerprint(fresh, small.ranks.modules)
    loaded = PeftModel.from_pretrained(quantized(tmp_path / "base", kind), tmp_path / "small")
    assert torch.allclose(logits(loaded), logits(small.load(quantized(tmp_path / "base", kind))))
