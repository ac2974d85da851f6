"""What the pages of the integrations print is what the commands print, of one small adapter."""

import glob
import json
import os
import re
import shlex

import pytest
from peft import LoraConfig, get_peft_model

from autolora_trainer.commands import cli
from tests.helpers.commands import ROOT
from tests.helpers.models import tiny_llama

PAGES = sorted(glob.glob(os.path.join(ROOT, "docs", "integrations", "*.md")))
RANKS = {
    "model.layers.0.self_attn.q_proj": 3,
    "model.layers.0.self_attn.v_proj": 1,
    "model.layers.1.self_attn.q_proj": 2,
}


def printed(page):
    """[(words, output)] of a page's commands whose output is shown."""
    with open(page, encoding="utf-8") as file:
        blocks = re.findall(r"^```console\n\$ autolora (.+)\n((?:.*\n)*?)```", file.read(), re.MULTILINE)
    return [(shlex.split(command), output) for command, output in blocks]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The folder of an adapter of unequal ranks, scale 8."""
    names = {f"^{re.escape(name)}": rank for name, rank in RANKS.items()}
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=24, target_modules=list(RANKS), rank_pattern=names,
        alpha_pattern={name: 8 * rank for name, rank in names.items()},
    )  # fmt: skip
    folder = str(tmp_path_factory.mktemp("integrations") / "my-adapter")
    get_peft_model(tiny_llama(), config).save_pretrained(folder)
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**settings, "base_model_name_or_path": "owner/base"}, file)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if printed(page)], ids=os.path.basename)
def test_commands_print_what_the_page_shows(page, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(adapter, "my-adapter")
    for words, output in printed(page):
        cli.main(words)
        assert capsys.readouterr().out == output


def test_every_tool_has_a_page_that_prints():
    shown = [words for page in PAGES for words, _ in printed(page)]
    formats = {words[words.index("--format") + 1] for words in shown if "--format" in words}
    assert formats == {"trl", "axolotl", "unsloth", "llama-factory", "adapter", "method_comparison"}
