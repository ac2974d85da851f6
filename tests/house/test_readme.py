"""README is short, its numbers come from rows, its programs run as they are printed, and programs show users the names
that are meant for them."""

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
from tests.helpers.readme import program, readme, run_the_search
from tests.helpers.trainings import short_training


def test_five_lines_in_a_trl_script(tmp_path, monkeypatch):
    text = program(0)
    assert len(text.strip().splitlines()) <= 6
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
    exec(compile(text, "README.md", "exec"), names)
    assert type(names["config"]) is LoraConfig and names["config"].rank_pattern


def test_program_of_the_search_runs(tmp_path, monkeypatch, capsys):
    assert len(program(1).strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    run_the_search(search_steps=9, retrain_steps=2, rows=64)
    assert "total rank" in capsys.readouterr().out
    assert os.path.exists(tmp_path / "adapter" / "adapter_config.json")


def test_it_is_short_and_every_number_is_a_row_s():
    text = readme()
    prose = re.sub(r"<!-- report\.py.*?<!-- end -->|```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    assert len(text.encode()) <= 8192 and rendered_lines(text) <= 150
    known = r"E2E|rank-1|Python 3\.11|Apache-2\.0|rank 8|GPT-2|D_\w+"
    assert re.findall(r"\d", re.sub(known, "", prose)) == []
    assert not re.search(r"§|\bEq\.", text)
    lines = re.sub(
        r"<!-- report\.py.*?<!-- end -->|```.*?```|^\|[^\n]*", "", text, flags=re.DOTALL | re.MULTILINE
    ).splitlines()
    assert [line for line in lines if len(re.sub(r"\]\([^)]*\)", "]", line)) > 140] == []


def rendered_lines(text: str) -> int:
    """As a page of 100 columns has them: paragraphs are filled, a row of a table is a line, a picture is 16."""
    count, paragraph = 0, 0
    for line in [*text.splitlines(), ""]:
        plain = re.sub(r"\]\([^)]*\)|<!--.*?-->", "]", line).strip()
        if plain and not plain.startswith(("|", "#", "```", "- ", "<picture")):
            paragraph += len(plain)
            continue
        count += -(-paragraph // 100) + bool(plain) + 15 * plain.startswith("<picture")
        paragraph = 0
    return count


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
