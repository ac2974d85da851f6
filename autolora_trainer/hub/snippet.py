"""The lines of Python on a model card that load what the folder holds."""

import os
import re


def snippet(folder, auto_class, base_model, shown_base, repo_id, library) -> str:
    is_adapter = library != "transformers"
    labels = _number_of_labels(folder) if "Classification" in auto_class else None
    more = f", num_labels={labels}" if labels else ""
    has_tokenizer = os.path.exists(os.path.join(folder, "tokenizer_config.json"))
    lines = [f"from transformers import {auto_class}, AutoTokenizer", ""]
    if is_adapter:
        lines.insert(
            0,
            (
                "from peft import PeftModel"
                if library == "peft"
                else "from autolora_trainer.methods.adapter import load_bottleneck_adapter"
            ),
        )
    target = "adapter" if is_adapter else "name"
    if library == "autolora_trainer":
        lines.append(f'{target} = "."  # this folder, or a download of its repository')
    else:
        lines.append(
            f'{target} = "{repo_id or "."}"' + ("" if repo_id else "  # this folder, or its repository on the Hub")
        )
    if not is_adapter:
        return "\n".join(
            [*lines, f"model = {auto_class}.from_pretrained(name)", "tokenizer = AutoTokenizer.from_pretrained(name)"]
        )
    if base_model:
        lines.append(f'base = "{base_model}"')
    else:
        hint = f", {_plain_word(shown_base)}" if shown_base and _plain_word(shown_base) else ""
        lines.append(f'base = "BASE_MODEL"  # the folder of the base model{hint}')
    lines += [
        f"model = {auto_class}.from_pretrained(base{more})",
        f"model = {'PeftModel.from_pretrained' if library == 'peft' else 'load_bottleneck_adapter'}(model, adapter)",
        f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if has_tokenizer else 'base'})",
    ]
    return "\n".join(lines)


def _plain_word(text: str) -> str:
    return re.sub(r"[^\w.\- ]", "", text)


def _number_of_labels(folder) -> int | None:
    """The rows of the classifier that was saved with the adapter, without which the base model builds another head."""
    from safetensors import SafetensorError, safe_open

    for name in ("adapter_model.safetensors", "bottleneck_adapter.safetensors"):
        try:
            with safe_open(os.path.join(folder, name), framework="pt") as file:
                for key in file.keys():
                    if key.endswith(("classifier.out_proj.weight", "classifier.weight", "score.weight")):
                        return file.get_slice(key).get_shape()[0]
        except (OSError, SafetensorError):
            pass
    return None
