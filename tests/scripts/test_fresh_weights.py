"""Are weights that a checkpoint lacks trained, and saved with the adapter?"""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM

import run_glue
from autolora_trainer.methods.adapter import load_bottleneck_adapter
from tests.helpers.commands import command
from tests.helpers.measures import evaluation_batch, loss


@pytest.fixture(scope="module")
def without_pooler(place):
    """A BERT as it comes from masked language modelling: `bert.pooler` is not in its checkpoint."""
    folder = place / "tiny-bert"
    AutoTokenizer.from_pretrained(place / "tiny-roberta").save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=64, pad_token_id=1, **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["autolora", "uniform", "adalora", "svd", "ia3", "prefix_tuning"])
def test_what_a_checkpoint_lacks_is_trained_and_saved_with_the_adapter(place, without_pooler, tmp_path, method):
    changes = {"size": "lora:2"} if method in ("uniform", "svd") else {}
    changes |= {"method": method, "model_name_or_path": without_pooler}
    results = run_glue.main(command(place, tmp_path / "o", **changes))
    assert results["head_params"] == 16 * 16 + 16 + 2 * 16 + 2  # pooler and classifier
    torch.manual_seed(123)  # whoever loads it draws other weights
    base = AutoModelForSequenceClassification.from_pretrained(without_pooler)
    model = PeftModel.from_pretrained(base, tmp_path / "o").eval()
    batch = evaluation_batch(place)
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    assert torch.nn.functional.cross_entropy(logits, batch["labels"]).item() == pytest.approx(
        results["eval_loss"], rel=1e-5
    )


def test_a_bottleneck_adapter_brings_what_its_checkpoint_lacks(place, without_pooler, tmp_path):
    argv = command(place, tmp_path / "o", method="adapter", model_name_or_path=without_pooler)
    results = run_glue.main(argv)
    torch.manual_seed(123)
    base = AutoModelForSequenceClassification.from_pretrained(without_pooler)
    assert loss(place, load_bottleneck_adapter(base, tmp_path / "o")) == pytest.approx(results["eval_loss"], rel=1e-5)
