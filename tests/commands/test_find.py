"""`autolora find` on rows of every kind, and what it hands to the tool that trains."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError
from autolora_trainer.lora.parts import lora_layers
from tests.commands.test_compress import KINDS
from tests.helpers.models import byte_llama, byte_tokenizer, padded, tiny_checkpoint
from tests.helpers.rows import sentences, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    byte_llama().save_pretrained(folder)
    tokenizer = padded(byte_tokenizer(llama=True))
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def run(base, tmp_path, rows, *typed):
    path = write_rows(tmp_path / "rows.jsonl", rows * 3)
    cli.main(["find", str(base), path, "--output_dir", str(tmp_path / "found"), "--search_steps", "8", "--batch_size",
              "2", "--learning_rate", "1e-2", *typed])  # fmt: skip


@pytest.mark.parametrize("rows", KINDS.values(), ids=KINDS)
def test_rows_of_every_kind_give_a_peft_config(base, tmp_path, capsys, rows):
    run(base, tmp_path, rows)
    out = capsys.readouterr().out
    assert "of the gain" in out and "a server needs --max-lora-rank 8" in out
    names = {}
    exec(out[out.index("from peft import") : out.index("\nranks.json")], names)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), names["peft_config"])
    ranks = json.loads((tmp_path / "found" / "ranks.json").read_text())["modules"]
    kept = {name: module["rank"] for name, module in ranks.items() if module["rank"]}
    assert {name: layer.r["default"] for name, layer in lora_layers(model).items()} == kept
    assert {path.name for path in (tmp_path / "found").iterdir()} >= {
        "curve.json",
        "rank_curve.png",
        "rank_heatmap.svg",
    }


def test_the_adapter_of_what_was_learned_can_be_trained_on(base, tmp_path, capsys):
    rows = write_rows(tmp_path / "dev.jsonl", KINDS["text"])
    run(base, tmp_path, KINDS["text"], "--format", "llama-factory", "--pad", "--size", "lora:1", "--eval_file", rows)
    out = capsys.readouterr().out
    assert f"adapter_name_or_path: {tmp_path}/found/adapter" in out and "of the gain" not in out
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "found" / "adapter",
                                      is_trainable=True)  # fmt: skip
    assert len({layer.r["default"] for layer in lora_layers(model).values()}) == 1
    assert any(layer.lora_B["default"].weight.abs().max() > 0 for layer in lora_layers(model).values())


def test_a_classifier(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "encoder", num_labels=3)
    rows = [{**row, "label": i % 3} for i, row in enumerate(sentences(30))]
    run(tmp_path / "encoder", tmp_path, rows, "--format", "peft", "--size", "same", "--lora_r", "2")
    out = capsys.readouterr().out
    settings = json.loads(out[out.index("\n{") : out.index("\nranks.json")])
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder")
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", **settings))
    size = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    everywhere = get_peft_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder"),
                                LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"))  # fmt: skip
    assert 0.9 < size / sum(p.numel() for n, p in everywhere.named_parameters() if "lora_" in n) <= 1


@pytest.mark.parametrize(
    "rows, typed, sentence",
    [
        ([{"words": "a"}], (), "has the columns words. Needed: messages"),
        (KINDS["text"], ("--size", "huge"), "size must be a number of adapter parameters or lora:R, got 'huge'"),
        (KINDS["text"], ("--format", "toml"), "invalid choice: 'toml'"),
        (KINDS["text"], ("--initial_rank", "1"), "initial_rank must be at least 2"),
        (KINDS["text"], ("--lora_target_modules", "nothing"), "[Tt]arget modules .*nothing.* not found"),
    ],
)
def test_what_is_refused(base, tmp_path, rows, typed, sentence):
    with pytest.raises(UsageError, match=sentence) as raised:
        run(base, tmp_path, rows, *typed)
    assert "\n" not in str(raised.value) and not (tmp_path / "found" / "ranks.json").exists()
