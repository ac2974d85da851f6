"""`autolora find` on rows of every kind, and what it hands to the tool that trains."""

import json

import pandas
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from autolora_trainer.commands import cli
from autolora_trainer.commands.data import read_rows, task_of
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


@pytest.mark.parametrize("text", ["2020-01-01", "NA", "007", "True", '["a", "b"]', " a\0b ", "x\u2028y", "1.50"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_texts_are_taken_as_they_are(tmp_path, ending, text):
    """Where every row looks like a date, a number or nothing, too."""
    frame, path = pandas.DataFrame({"prompt": [text] * 2, "completion": ["a", "b"]}), tmp_path / f"rows.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    elif ending.startswith("json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        frame.to_csv(path, index=False, sep="," if ending == "csv" else "\t")
    assert read_rows(str(path)).to_list() == frame.to_dict("records")


def test_messages_keep_what_each_has_and_rows_may_differ_in_what_nobody_needs(tmp_path):
    rows = [
        {"id": 1, "messages": [{"role": "user", "content": "a"}]},
        {"id": "b7", "messages": [{"role": "user", "content": [{"text": "b"}], "name": "z"}], "note": None},
    ]
    assert read_rows(write_rows(tmp_path / "a.jsonl", rows))["messages"][:] == [row["messages"] for row in rows]


def test_classes_of_a_csv_file(tmp_path, caplog):
    """All its cells are texts: labels are numbers all the same, and a column of numbers is not what is classified."""
    path = tmp_path / "a.csv"
    path.write_text("id,text,label\n17,the film,1\n18,good,0\n")
    task, made = task_of(read_rows(str(path)), str(path), padded(byte_tokenizer()), 16)
    alone = padded(byte_tokenizer())(["the film", "good"])["input_ids"]
    assert (task.labels, made["labels"][:], made["input_ids"][:]) == (2, [1, 0], alone)
    assert "text is classified; id holds numbers alone" in caplog.text
    path.write_text("text,label\n007,1\n5,0\n")
    assert len(task_of(read_rows(str(path)), str(path), padded(byte_tokenizer()), 16)[1]["input_ids"][0]) == 3


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
        "report.html",
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
        ([{"text": "a"}, {"txt": "b"}], (), "row 2: there is no text. Give one, or leave the row out."),
        ([{"text": "a", "label": 1}, {"text": None, "label": 0}], (), "row 2: text is None, and text is needed"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": -1}], (), "from 0, got -1 in row 2. Number the"),
        (KINDS["text"], ("--size", "huge"), "size must be a number of adapter parameters or lora:R, got 'huge'"),
        (KINDS["text"], ("--format", "toml"), "invalid choice: 'toml'"),
        (KINDS["text"], ("--initial_rank", "1"), "initial_rank must be at least 2"),
        (KINDS["text"], ("--pad",), "--pad belongs to --format adapter and llama-factory, got --format trl"),
        (KINDS["text"], ("--lora_target_modules", "nothing"), "[Tt]arget modules .*nothing.* not found"),
    ],
)
def test_what_is_refused(base, tmp_path, rows, typed, sentence):
    with pytest.raises(UsageError, match=sentence) as raised:
        run(base, tmp_path, rows, *typed)
    assert "\n" not in str(raised.value) and not (tmp_path / "found" / "ranks.json").exists()
