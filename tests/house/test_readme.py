"""README's program runs as it is printed, and programs show users the names that are meant for them."""

import glob
import os
import re

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import SFTConfig

import autolora_trainer
from tests.helpers.commands import ROOT
from tests.helpers.models import byte_llama, byte_tokenizer, padded
from tests.helpers.trainings import short_training


def readme() -> str:
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def test_five_lines_in_a_trl_script(tmp_path, monkeypatch):
    program = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)[0]
    assert len(program.strip().splitlines()) <= 6
    torch.manual_seed(0)
    byte_llama().save_pretrained(tmp_path)
    padded(byte_tokenizer(llama=True)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    dataset = Dataset.from_list(
        [{"text": f"{name} is a pub by the {place}."} for name in "ABCDEFGH" for place in "xyz"]
    )
    monkeypatch.chdir(tmp_path)
    args = short_training(tmp_path, SFTConfig, max_steps=2, bf16=False)  # TRL's defaults want a GPU
    names = {"model": model, "dataset": dataset, "args": args}
    short = program.replace("peft_config=config)", "peft_config=config, args=args)")
    exec(compile(short, "README.md", "exec"), names)
    assert type(names["config"]) is LoraConfig and names["config"].rank_pattern


def test_program_of_the_search_runs(tmp_path, monkeypatch, capsys):
    program = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    short = program.replace("max_steps=100", "max_steps=9").replace("num_train_epochs=3", "max_steps=2")
    assert short.count("max_steps") == 2
    exec(compile(short, "README.md", "exec"), {"__name__": "readme"})
    assert "total rank" in capsys.readouterr().out
    assert os.path.exists(tmp_path / "adapter" / "adapter_config.json")


def test_every_file_it_names_exists():
    for name in re.findall(r"\]\(([^)#:]+)\)", readme()):
        assert os.path.exists(os.path.join(ROOT, name)), name


def test_programs_take_public_names_from_the_package_itself():
    public = set(autolora_trainer.__all__)
    paths = [os.path.join(ROOT, "README.md")]
    paths += glob.glob(os.path.join(ROOT, "docs", "**", "*.md"), recursive=True)
    paths += glob.glob(os.path.join(ROOT, "examples", "*.py"))
    found = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for names in re.findall(r"^from autolora_trainer\.[\w.]+ import (.+)$", file.read(), re.MULTILINE):
                found += [f"{os.path.basename(path)}: {name}" for name in public & set(names.split(", "))]
    assert found == [] and {"ModuleRank", "AutoLoraMixin", "build_adapter"} <= public
