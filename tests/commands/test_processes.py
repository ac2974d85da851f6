"""`autolora find` and `compress` in two processes, whatever trainers gather; the ranks of one where none trains."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from autolora_trainer.commands import cli
from tests.commands.test_compress import KINDS
from tests.helpers.models import byte_llama, byte_tokenizer, lora, padded
from tests.helpers.processes import in_processes
from tests.helpers.rows import write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    byte_llama().save_pretrained(folder / "base")
    padded(byte_tokenizer(llama=True)).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    lora(base, 4, ["q_proj", "down_proj"], task_type="CAUSAL_LM").save_pretrained(folder / "adapter")
    write_rows(folder / "rows.jsonl", KINDS["text"] * 4)
    return folder


def typed(place, command, output, batch):
    rows, more = str(place / "rows.jsonl"), ["--batch_size", str(batch), "--output_dir", str(place / output)]
    if command == "find":
        search = ["--search_steps", "6", "--learning_rate", "1e-2", "--format", "adapter", "--size", "lora:2"]
        return ["find", str(place / "base"), rows, *search, *more]
    return ["compress", str(place / "adapter"), "--eval_file", rows, "--tolerance", "0.2", *more]


def in_two(place, command):
    """What two processes say."""
    (said, _), (other, _) = in_processes(place, cli.main, typed(place, command, f"{command}2", 2))
    assert other == ""
    folder = place / f"{command}2" / ("adapter" if command == "find" else "")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "base"), folder)
    return said


def modules(folder):
    return json.loads((folder / "ranks.json").read_text())["modules"]


def test_two_processes_compress_as_one_does(place, capsys):
    cli.main(typed(place, "compress", "compress1", 4))
    alone = capsys.readouterr().out.replace("compress1", "compress2")
    assert in_two(place, "compress") == alone  # once, and the same to the digit
    one, two = (modules(place / f"compress{n}") for n in (1, 2))
    assert {name: own["rank"] for name, own in one.items()} == {name: own["rank"] for name, own in two.items()}
    for name, own in one.items():
        assert own["contributions"] == pytest.approx(two[name]["contributions"], abs=1e-4)


def test_two_processes_find_ranks(place):
    """Not those of one: Adam's first steps are of gradients near 0."""
    said = in_two(place, "find")
    assert said.count("total rank") == 1 and sum(own["rank"] for own in modules(place / "find2").values()) > 0
