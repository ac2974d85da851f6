"""Passages that model cards share: text made safe for Markdown, the grid of ranks, the lines that load an adapter."""

import html
import os
import re
import shlex
from contextlib import suppress
from importlib import resources

from safetensors import SafetensorError, safe_open

from autolora_trainer.files import read_json
from autolora_trainer.hub.public import on_one_line
from autolora_trainer.ranks.grid import rank_grid
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.ranks.serving import lora_rank_for_servers
from autolora_trainer.report.tables import format_table

# PEFT's task types: the Hub's pipeline tag, and the class that loads the base model
TASK_TYPES = {
    "SEQ_CLS": ("text-classification", "AutoModelForSequenceClassification"),
    "TOKEN_CLS": ("token-classification", "AutoModelForTokenClassification"),
    "CAUSAL_LM": ("text-generation", "AutoModelForCausalLM"),
    "SEQ_2_SEQ_LM": ("text2text-generation", "AutoModelForSeq2SeqLM"),
}
MARKDOWN_COLUMNS = 24


def template(name: str) -> str:
    """A template of this folder, for `ModelCard.from_template`."""
    # Jinja as `from_template` uses it leaves the line of a {% tag %} empty; the tags here take their line with them
    text = resources.files("autolora_trainer").joinpath(f"hub/templates/{name}").read_text(encoding="utf-8")
    return re.sub(r"^(\{%.*%\})\n", r"\1", text, flags=re.MULTILINE)


def escape(text) -> str:
    """Text that Markdown, with its HTML and its tables, shows as it is."""
    return re.sub(r"([\\`*_{}\[\]()#|~$!])", r"\\\1", html.escape(on_one_line(text), quote=False))


def code(text) -> str:
    """A module name as inline code; what could end the code or a table's cell is left out."""
    return f"`{re.sub('[`|]', '', on_one_line(text))}`"


def link(text: str, place: str | None) -> str:
    return f"[{escape(text)}](https://huggingface.co/{place})" if place else escape(text)


def json_in(folder: str, name: str) -> dict:
    """The object in a JSON file; {} where there is none."""
    try:
        config = read_json(os.path.join(folder, name))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def task_type_of(folder) -> str:
    """PEFT's name of the task, from the adapter's file or the class of a whole model."""
    for name in ("adapter_config.json", "bottleneck_adapter.json"):
        task_type = json_in(folder, name).get("task_type")
        if task_type in TASK_TYPES:
            return task_type
    kinds = {"TokenClassification": "TOKEN_CLS", "LMHeadModel": "CAUSAL_LM", "CausalLM": "CAUSAL_LM"}
    architecture = str((json_in(folder, "config.json").get("architectures") or [""])[0])
    return next((kind for ending, kind in kinds.items() if architecture.endswith(ending)), "SEQ_CLS")


def rank_sentence(ranks: LearnedRanks) -> str:
    dropped = sum(rank == 0 for rank in ranks.ranks.values())
    parts = [f"Total rank {ranks.total_rank} in {len(ranks.modules)} modules"]
    if ranks.rank_rule:
        parts.append(f"chosen by the rule {code(ranks.rank_rule)} from {ranks.initial_rank} components each")
    if dropped:
        parts.append(f"{dropped} of them at rank 0 and so left out of the adapter")
    return ", ".join(parts) + ". Blocks across, projections down."


def rank_tables(ranks: LearnedRanks) -> list[str]:
    rows, columns, grid = rank_grid(ranks.ranks)
    tables = []
    for start in range(0, len(columns), MARKDOWN_COLUMNS):
        part = slice(start, start + MARKDOWN_COLUMNS)
        body = [
            [code(label), *("" if rank is None else str(rank) for rank in row[part])]
            for label, row in zip(rows, grid)
            if set(row[part]) != {None}
        ]
        tables.append(format_table(["block", *map(escape, columns[part])], body, markdown=True))
    return tables


def max_lora_rank_of(ranks, task_type) -> int | None:
    if ranks is not None and task_type == "CAUSAL_LM":
        with suppress(ValueError):  # a rank that vLLM cannot serve
            return lora_rank_for_servers(ranks.ranks)
    return None


def fence_of(text: str) -> str:
    """A fence of backquotes that nothing in a text ends."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def split_command(command: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(command)
    return command.split()


def snippet_of(folder, auto_class, base_model, shown_base, repo_id, library) -> str:
    """The lines of Python that load what the folder holds."""
    place = f'"{repo_id}"' if repo_id else '"."  # this folder, or its repository on the Hub'
    lines = [f"from transformers import {auto_class}, AutoTokenizer", ""]
    if library == "transformers":
        lines += [f"name = {place}", f"model = {auto_class}.from_pretrained(name)"]
        return "\n".join([*lines, "tokenizer = AutoTokenizer.from_pretrained(name)"])
    source, load = "peft import PeftModel", "PeftModel.from_pretrained"
    if library == "autolora_trainer":
        source, load = "autolora_trainer.methods.adapter import load_bottleneck_adapter", "load_bottleneck_adapter"
        place = '"."  # this folder, or a download of its repository'
    hint = re.sub(r"[^\w.\- ]", "", shown_base or "")
    base = f'"{base_model}"' if base_model else '"BASE_MODEL"  # the folder of the base model'
    if hint and not base_model:
        base += f", {hint}"
    labels = _number_of_labels(folder) if "Classification" in auto_class else None
    has_tokenizer = os.path.exists(os.path.join(folder, "tokenizer_config.json"))
    lines = [f"from {source}", *lines, f"adapter = {place}", f"base = {base}"]
    lines.append(f"model = {auto_class}.from_pretrained(base{f', num_labels={labels}' if labels else ''})")
    lines.append(f"model = {load}(model, adapter)")
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if has_tokenizer else 'base'})")
    if "SequenceClassification" in auto_class:
        if not has_tokenizer:
            lines.append("tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token")
        lines.append("config = model.config.get_text_config()  # a text ends before the padding of its batch")
        lines.append("config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id")
    return "\n".join(lines)


def _number_of_labels(folder) -> int | None:
    """The rows of the classifier that was saved with the adapter, without which the base model builds another head."""
    for name in ("adapter_model.safetensors", "bottleneck_adapter.safetensors"):
        with suppress(OSError, SafetensorError), safe_open(os.path.join(folder, name), framework="pt") as file:
            for key in file.keys():
                if key.endswith(("classifier.out_proj.weight", "classifier.weight", "score.weight")):
                    return file.get_slice(key).get_shape()[0]
    return None
