"""`autolora export`: the ranks in the words of another tool."""

import json
import os

import yaml

from autolora_trainer.commands.show import neighbour
from autolora_trainer.files import write_json
from autolora_trainer.ranks.learned import LearnedRanks

FORMATS = ("peft", "axolotl", "method_comparison")


def export(ranks: LearnedRanks, form: str, **lora) -> str:
    """The ranks in the words of another tool.

    Args:
        form: `peft`: the JSON of a `LoraConfig`, for `LoraConfig(**json.load(file))`; `axolotl`: lines for its YAML
            (`lora_rank_pattern`, `lora_alpha_pattern`).
        lora: `lora_alpha`, `use_rslora`, `scaling`, as of `LearnedRanks.to_lora_config`. By default the scale of every
            update is 16 / mean rank.
    Raises:
        ValueError: for ranks of parts of fused projections, which a pattern of whole modules cannot say.
    """
    config = _pattern(ranks, form, lora)
    config.target_modules = sorted(config.target_modules)
    names = ["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"]
    if config.use_rslora:
        names.append("use_rslora")
    if form == "peft":
        return json.dumps({name: getattr(config, name) for name in names}, indent=2)
    words = {"lora_alpha": "lora_alpha", "use_rslora": "peft_use_rslora"}  # others with lora_ before them
    settings = {words.get(name, f"lora_{name}"): getattr(config, name) for name in names}
    return yaml.safe_dump({"adapter": "lora", **settings}, sort_keys=False).rstrip()


def export_experiment(ranks: LearnedRanks, output: str, **lora) -> str:
    """An experiment folder of PEFT's `method_comparison/MetaMathQA`: `adapter_config.json` with the learned pattern,
    and `training_params.json` with what differs from the benchmark's own defaults, which is the model.

    Args:
        ranks: of a search on a causal language model.
        output: the folder; the benchmark reads `experiments/lora/NAME`.
    Raises:
        ValueError: as `export`, and if the folder holds something already.
    """
    config = _pattern(ranks, "method_comparison", lora)
    config.task_type = "CAUSAL_LM"
    if os.path.isdir(output) and os.listdir(output):
        raise ValueError(f"--output {output} is not empty. Give a new folder.")
    config.save_pretrained(output)
    parameters = {"model_id": ranks.base_model} if ranks.base_model else {}
    write_json(os.path.join(output, "training_params.json"), parameters, indent=2)
    return f"adapter_config.json and training_params.json in {output}"


def _pattern(ranks: LearnedRanks, form: str, lora: dict):
    """The `LoraConfig` of ranks of whole modules."""
    parts = [name for name, rank in ranks.ranks.items() if "#" in name and rank]
    if parts:
        raise ValueError(
            f"{parts[0]!r} is a part of a fused module, and {form} takes whole modules: their sum would train more "
            "than was searched. Use the adapter itself, or --ranks of this package's scripts."
        )
    return ranks.to_lora_config(**lora)


def scale_of(source: str) -> dict:
    """What decides the scale of the updates, as far as a run says beside its ranks."""
    settings = (neighbour(source, "run.json") or {}).get("settings")
    known = {"lora_alpha": int, "use_rslora": bool, "scaling": str}
    settings = settings if isinstance(settings, dict) else {}
    return {name: settings[name] for name, kind in known.items() if isinstance(settings.get(name), kind)}
