"""`autolora find` and `compress` in two processes, whatever trainers gather; the ranks of one where none trains."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.commands.test_compress import KINDS
from tests.helpers.commands import ROOT, launch_command
from tests.helpers.models import byte_llama, byte_tokenizer, lora, padded
from tests.helpers.rows import write_rows

CLI = os.path.join(ROOT, "autolora_trainer", "commands", "cli.py")


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


@pytest.mark.parametrize("command", ["find", "compress"])
def test_two_processes(place, command):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    said = {}
    for count, start in ((1, [sys.executable]), (2, launch_command("torchrun", 2))):
        argv = [*start, CLI, *typed(place, command, f"{command}{count}", 4 // count)]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        said[count] = done.stdout.replace(f"{command}{count}", "")
    found = [json.loads((place / f"{command}{n}" / "ranks.json").read_text())["modules"] for n in (1, 2)]
    if command == "compress":
        assert {n: m["rank"] for n, m in found[0].items()} == {n: m["rank"] for n, m in found[1].items()}
        for name, module in found[0].items():
            assert module["contributions"] == pytest.approx(found[1][name]["contributions"], abs=1e-4)
        assert said[1] == said[2]  # once, and the same to the digit
    else:  # Adam's first steps, of gradients near 0, are not those of one process
        assert len(said[2].splitlines()) == len(said[1].splitlines()) and said[2].count("total rank") == 1
    folder = place / f"{command}2" / ("adapter" if command == "find" else "")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "base"), folder)
