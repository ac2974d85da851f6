"""`autolora compress` on files of rows: each kind of rows, by singular values too, and what is refused."""

import importlib.util
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, modeling_utils

from autolora_trainer.commands import cli
from autolora_trainer.errors import UsageError
from autolora_trainer.heldout import passes
from tests.helpers.models import byte_llama, byte_tokenizer, lora, padded, tiny_checkpoint, tiny_roberta
from tests.helpers.rows import sentences, write_rows

TEXTS = [f"{name} is a pub by the {place}." for name in ("Alba", "Bo", "Dori", "Et") for place in ("river", "sea")]
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
KINDS = {
    "text": [{"text": text} for text in TEXTS],
    "prompt": [{"prompt": text[:8], "completion": text[8:], "id": 1} for text in TEXTS],
    "chat": [{"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": text}]}
             for text in TEXTS],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a causal base model, a classifier, and an adapter of each, whose updates are not zero."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    byte_llama().save_pretrained(folder / "base")
    tokenizer = padded(byte_tokenizer(llama=True))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    lora(base, 4, ["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM").save_pretrained(folder / "adapter")
    tiny_checkpoint(folder / "encoder", num_labels=3)
    encoder = AutoModelForSequenceClassification.from_pretrained(folder / "encoder", num_labels=3)
    lora(encoder, 4).save_pretrained(folder / "classifier")
    return folder


def run(place, tmp_path, rows, adapter="adapter", *typed):
    path = write_rows(tmp_path / "dev.jsonl", rows)
    cli.main(["compress", str(place / adapter), "--eval_file", path, "--output_dir", str(tmp_path / "small"), *typed])


@pytest.mark.parametrize("rows", KINDS.values(), ids=KINDS)
def test_rows_of_every_kind(place, tmp_path, capsys, rows):
    run(place, tmp_path, rows, "adapter", "--tolerance", "0.5", "--batch_size", "2")
    out = capsys.readouterr().out
    assert "held-out loss" in out and "given" in out and "a server needs --max-lora-rank 8" in out
    small = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "base"), tmp_path / "small")
    ranks = json.loads((tmp_path / "small" / "ranks.json").read_text())
    assert ranks["curve"]["points"][-1]["components"] == 6 * 4 and ranks["rank_rule"] == "contributions"
    size = sum(tensor.numel() for tensor in load_file(tmp_path / "small" / "adapter_model.safetensors").values())
    assert 0 < size < sum(p.numel() for n, p in small.named_parameters() if "lora" in n) + 1


def test_a_classifier_with_three_classes(place, tmp_path, capsys):
    rows = [{**row, "label": i % 3} for i, row in enumerate(sentences(30))]
    run(place, tmp_path, rows, "classifier", "--size", "lora:1")
    assert "a server needs" in capsys.readouterr().out
    base = AutoModelForSequenceClassification.from_pretrained(place / "encoder", num_labels=3)
    assert PeftModel.from_pretrained(base, tmp_path / "small").peft_config["default"].r >= 1


def test_the_held_out_loss_is_that_of_completions_alone(place, tmp_path, capsys):
    """Prompts of noise: if they counted, the loss would be another."""
    run(
        place,
        tmp_path,
        [{"prompt": "??" * i, "completion": TEXTS[0]} for i in range(1, 9)],
        "adapter",
        "--size",
        "lora:4",
    )
    first = capsys.readouterr().out.splitlines()[2].split()[0]
    (tmp_path / "again").mkdir()
    run(place, tmp_path / "again", [{"prompt": "", "completion": TEXTS[0]}] * 8, "adapter", "--size", "lora:4")
    assert abs(float(first) - float(capsys.readouterr().out.splitlines()[2].split()[0])) < 0.5


def test_without_rows_and_with_healing(place, tmp_path, capsys):
    cli.main(["compress", str(place / "adapter"), "--rank", "2", "--output_dir", str(tmp_path / "two")])
    out = capsys.readouterr().out
    assert "held-out" not in out and "(50%)" in out and not (tmp_path / "two" / "curve.json").exists()
    train = write_rows(tmp_path / "train.jsonl", KINDS["text"])
    run(place, tmp_path, KINDS["text"], "adapter", "--heal_steps", "2", "--train_file", train, "--size", "lora:1")
    assert (tmp_path / "small" / "adapter_model.safetensors").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_a_base_in_4_bits_with_activation_checkpoints(place, tmp_path, capsys, monkeypatch):
    """Of `compress` and of `find`: the small adapter is in the dtype of the given one (TRL rounds what it would train
    on 4 bits), and checkpoints change nothing but the memory."""
    models, kept = [], []
    loaded, computed = AutoModelForCausalLM.from_pretrained, torch.utils.checkpoint.checkpoint

    def load(*given, **more):
        models.append(loaded(*given, **more))
        return models[-1]

    def checkpoint(*given, **more):
        kept.append(1)
        return computed(*given, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    for module in (passes, torch.utils.checkpoint, modeling_utils):
        monkeypatch.setattr(module, "checkpoint", checkpoint)
    path, found, counts = write_rows(tmp_path / "rows.jsonl", KINDS["text"] * 3), [], []
    for more in ([], ["--gradient_checkpointing"]):
        shared = ["--load_in_4bit", *more, "--batch_size", "2", "--size", "lora:1", "--output_dir"]
        small, folder = tmp_path / f"small{len(more)}", tmp_path / f"found{len(more)}"
        for verb in (["compress", str(place / "adapter"), "--eval_file", path, *shared, str(small)],
                     ["find", str(place / "base"), path, *shared, str(folder), "--search_steps", "6",
                      "--gradient_accumulation_steps", "2"]):  # fmt: skip
            kept.clear()
            cli.main(verb)
            counts.append(len(kept))
        ranks = [json.loads((own / "ranks.json").read_text())["modules"] for own in (small, folder)]
        found.append([{name: module["rank"] for name, module in own.items()} for own in ranks])
        written = load_file(small / "adapter_model.safetensors").values()
        assert {tensor.dtype for tensor in written} == {torch.float32}
    assert found[0] == found[1] and all(sum(ranks.values()) for ranks in found[0])
    assert counts[:2] == [0, 0] and min(counts[2:]) > 0 and all(model.is_loaded_in_4bit for model in models)


@pytest.mark.parametrize(
    "rows, typed, sentence",
    [
        ([{"words": "a"}], (), "has the columns words. Needed: messages, or prompt and completion, or text, or label"),
        ([{"label": "good", "text": "a"}], (), "label of .* must be a whole number from 0, got 'good'"),
        ([{"label": 1}], (), "one text or two are classified, got none"),
        ([], (), "has no rows|does not read as json"),
        ([{"text": "only one"}], (), "cannot be divided"),
        (KINDS["text"], ("--tolerance", "-1"), "tolerance must be 0 or more"),
        (KINDS["text"], ("--size", "lora:9"), "asks for"),
        (KINDS["text"], ("--heal_steps", "3"), "Give train_dataset"),
        (KINDS["text"], ("--rank", "2"), "not allowed with argument --eval_file"),
        (KINDS["text"], ("--base_model", "nothing/here"), "nothing/here gives no tokenizer"),
    ],
)
def test_what_is_refused_writes_nothing(place, tmp_path, rows, typed, sentence):
    with pytest.raises(UsageError, match=sentence) as raised:
        run(place, tmp_path, rows, "adapter", *typed)
    assert "\n" not in str(raised.value) and not (tmp_path / "small").exists()


def test_folders_and_adapters_that_will_not_do(place, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine").write_text("")
    with pytest.raises(UsageError, match="small is not empty. Give a new folder"):
        run(place, tmp_path, KINDS["text"])
    (tmp_path / "small" / "mine").unlink()
    with pytest.raises(UsageError, match="holds no adapter_config.json"):
        run(place, tmp_path, KINDS["text"], "base")
    get_peft_model(tiny_roberta(hidden_size=8), LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="does not load on .*Give the base_model that it was trained on"):
        cli.main(["compress", str(tmp_path / "other"), "--rank", "1", "--base_model", str(place / "encoder"),
                  "--output_dir", str(tmp_path / "x")])  # fmt: skip
    with pytest.raises(UsageError, match="--heal_steps and --train_file belong to --eval_file"):
        cli.main(["compress", str(place / "adapter"), "--rank", "1", "--heal_steps", "2",
                  "--output_dir", str(tmp_path / "x")])  # fmt: skip
