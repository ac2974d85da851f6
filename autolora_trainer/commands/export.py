"""`autolora export`: the ranks in the words of another tool, or an adapter for it to train on."""

import json
import os

import yaml

from autolora_trainer.commands.show import neighbour
from autolora_trainer.errors import is_first_process, sentence
from autolora_trainer.files import write_json
from autolora_trainer.ranks.adapter_config import CONFIG_FILE
from autolora_trainer.ranks.adapter_file import WEIGHTS_FILE, AdapterFile, read_header
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.ranks.pattern import lora_pattern

TEXTS, FOLDERS = ("peft", "trl", "unsloth", "axolotl"), ("adapter", "llama-factory", "method_comparison")
FORMATS, PADDED = (*TEXTS, *FOLDERS), ("adapter", "llama-factory")  # the latter hold a trainable adapter
FAST = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # of tens of thousands of names


def export(ranks: LearnedRanks, form: str, **lora) -> str:
    """The ranks in the words of another tool.

    Args:
        form: `peft`: the JSON of a `LoraConfig`, to be read by `json.load`; `trl`: a `peft_config` in Python;
            `unsloth`: its `get_peft_model`, which hands on what it does not know (2026.8); `axolotl`: lines of its
            YAML, whose schema takes whole numbers alone (0.18).
        lora: `lora_alpha`, `use_rslora`, `scaling`, as of `LearnedRanks.to_lora_config`. By default the scale of every
            update is 16 / mean rank.
    Raises:
        ValueError: for ranks of parts of fused projections, which a pattern of whole modules cannot say.
    """
    if form == "axolotl":
        return _axolotl(ranks, lora)
    settings = _pattern(ranks, form, lora)
    for name in ("target_modules", "target_parameters"):
        settings |= {name: sorted(settings[name])} if name in settings else {}
    if lora.get("use_rslora"):
        settings["use_rslora"] = True
    if form == "peft":
        return json.dumps(settings, indent=2)
    words = ",\n".join(f"    {name}={_literal(value)}" for name, value in settings.items())
    if form == "trl":
        return f'from peft import LoraConfig\n\npeft_config = LoraConfig(\n    task_type="CAUSAL_LM",\n{words},\n)'
    return f"model = FastLanguageModel.get_peft_model(\n    model,\n{words},\n)"


def _literal(value) -> str:
    """Python's words for a list, a dictionary or a number, a line an entry."""
    if not isinstance(value, (list, dict)):
        return repr(value)
    entries = value.items() if isinstance(value, dict) else ((None, entry) for entry in value)
    lines = [f"        {entry!r}," if key is None else f"        {key!r}: {entry!r}," for key, entry in entries]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([first, *lines, f"    {last}"])


def _axolotl(ranks: LearnedRanks, lora: dict) -> str:
    """Every module has the same scale, in whole numbers: `lora_alpha` is a multiple of its rank."""
    own = _pattern(ranks, "axolotl", {**lora, "scaling": "constant"})
    scale = own["lora_alpha"] / (own["r"] ** 0.5 if lora.get("use_rslora") else own["r"])
    whole = max(1, round(scale))
    settings = {
        "adapter": "lora", "lora_r": own["r"], "lora_alpha": whole * own["r"],
        "lora_target_modules": sorted(own["target_modules"]),
        **({"lora_target_parameters": sorted(stacked)} if (stacked := own.get("target_parameters")) else {}),
        "lora_rank_pattern": own["rank_pattern"],
        "lora_alpha_pattern": {key: whole * rank for key, rank in own["rank_pattern"].items()},
    }  # fmt: skip
    said = f"# every update has the scale {whole}"
    if abs(whole - scale) > 1e-6:
        said += f"; its scale was {scale:.4g}, and axolotl takes whole numbers: change the learning rate likewise"
    return f"{said}\n{yaml.dump(settings, Dumper=FAST, sort_keys=False)}".rstrip()


def export_experiment(ranks: LearnedRanks, output: str, **lora) -> str:
    """An experiment folder of PEFT's `method_comparison/MetaMathQA`: `adapter_config.json` with the learned pattern,
    and `training_params.json` with what differs from the benchmark's own defaults, which is the model.

    Args:
        ranks: of a search on a causal language model.
        output: the folder; the benchmark reads `experiments/lora/NAME`.
    Raises:
        ValueError: as `export`, and if the folder holds something already.
    """
    check_new(output)
    pattern = _pattern(ranks, "method_comparison", lora)
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", use_rslora=bool(lora.get("use_rslora")), **pattern)
    config.save_pretrained(output)
    parameters = {"model_id": ranks.base_model} if ranks.base_model else {}
    write_json(os.path.join(output, "training_params.json"), parameters, indent=2)
    return f"adapter_config.json and training_params.json in {output}"


def export_adapter(source: str, output: str, form: str = "adapter", pad: bool = False) -> str:
    """A trainable adapter in a new folder: of a run of ours with what its search had learned, before the retrain; of
    any other adapter as it is.

    Args:
        source: a folder with an adapter.
        form: `adapter`, or `llama-factory`, whose lines for the folder are said too.
        pad: one rank for all modules, filled up with zeros, and no patterns.
    Raises:
        ValueError: if there is no adapter, the folder holds something already, or it cannot be padded.
    """
    check_new(output)
    file = AdapterFile.from_pretrained(source)
    if not os.path.isdir(source):
        raise ValueError(f"--format {form} needs the weights, got the repository {source!r}. Download it first.")
    from peft import LoraConfig
    from safetensors.torch import load_file

    from autolora_trainer.runs.outputs import HANDOVER_FILE, SEARCH_FOLDER

    config = LoraConfig.from_pretrained(source)
    kept = os.path.join(source, SEARCH_FOLDER, HANDOVER_FILE)
    if os.path.exists(kept):
        read_header(kept)
        try:
            tensors, what = _as_the_search_ended(load_file(kept), config, source, file), "what the search had learned"
        except (LookupError, RuntimeError) as error:
            raise ValueError(f"{kept} does not belong to the adapter: {sentence(error)} Remove it.") from error
    else:
        tensors, what = load_file(os.path.join(source, WEIGHTS_FILE)), "the weights of the given one"
    return write_adapter(config, tensors, output, form, pad, f"a trainable adapter with {what}")


def write_adapter(config, tensors: dict, output: str, form: str, pad: bool, what: str) -> str:
    """Write a trainable adapter into a new folder; what there is to say of it."""
    from autolora_trainer.lora.pad import padded
    from autolora_trainer.ranks.adapter import save_adapter

    if pad:
        shapes = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
        file = AdapterFile(config.to_dict(), shapes)
        scales = {path: file.scales[name] for path, name in file.names.items()}
        experts = {path: file.experts[name] for path, name in file.names.items() if name in file.experts}
        config, tensors = padded(config, tensors, scales, experts)
        what += f", filled up to rank {config.r} with zeros"
    config.inference_mode = False
    save_adapter(config, tensors, output)
    said = f"{what}, in {output}"
    if form == "llama-factory":
        lines = {"adapter_name_or_path": output, "finetuning_type": "lora", "create_new_adapter": False}
        if config.base_model_name_or_path:
            lines = {"model_name_or_path": config.base_model_name_or_path, **lines}
        said += f"; for its YAML:\n{yaml.safe_dump(lines, sort_keys=False).rstrip()}"
    return said


def _as_the_search_ended(kept: dict, config, source: str, file: AdapterFile) -> dict:
    """The kept components of a search as the tensors of an adapter."""
    from autolora_trainer.search.handover import adapter_tensors

    ranks, rows = LearnedRanks.from_pretrained(source), {}
    if any("#" in name for name in ranks.ranks):
        from transformers import AutoConfig

        from autolora_trainer.lora.fused import part_rows

        base = AutoConfig.from_pretrained(config.base_model_name_or_path, trust_remote_code=False)
        widths = {name: shape[0] for name, (_, shape) in file.tensors.items() if ".lora_B" in name}
        for name in ranks.ranks:
            module, _, part = name.partition("#")
            width = next((own for key, own in widths.items() if f"{module}.lora_B" in key), None)
            if part and width:
                rows[name] = (part_rows(module, width, base)[part], width)
    return adapter_tensors(kept, config, rows, ranks.parameters)


def check_new(output: str) -> None:
    """Raise `ValueError` for a folder that holds something; of several processes the first looks."""
    if is_first_process() and os.path.isdir(output) and os.listdir(output):
        raise ValueError(f"{output} is not empty. Give a new folder.")


def _pattern(ranks: LearnedRanks, form: str, lora: dict) -> dict:
    """See `lora_pattern`; of ranks of whole modules."""
    parts = [name for name, rank in ranks.ranks.items() if "#" in name and rank]
    if parts:
        raise ValueError(
            f"{parts[0]!r} is a part of a fused module, and {form} takes whole modules: their sum would train more "
            "than was searched. Use --format adapter, or --ranks of this package's scripts."
        )
    return lora_pattern(ranks.ranks, parameters=ranks.parameters, **lora)


def scale_of(source: str) -> dict:
    """What decides the scale of the updates, as far as a run or an adapter says beside its ranks."""
    settings = (neighbour(source, "run.json") or {}).get("settings")
    settings = settings if isinstance(settings, dict) else {}
    kinds = {"lora_alpha": int, "use_rslora": bool, "scaling": str}
    found = {name: settings[name] for name, kind in kinds.items() if type(settings.get(name)) is kind}
    if not 0 < found.get("lora_alpha", 1) < 10**6:
        raise ValueError(f"run.json of {source} has a lora_alpha that is none. Remove it, and 16 is taken.")
    if not found and os.path.exists(os.path.join(source, CONFIG_FILE)):  # an adapter of others
        adapter = AdapterFile.from_pretrained(source)
        scales, ranks = set(adapter.scales.values()), adapter.ranks.values()
        if len(scales) == 1:  # `to_lora_config` divides by the mean rank
            found["lora_alpha"] = scales.pop() * sum(ranks) / len(ranks)
    return found


def check_pad(options) -> None:
    """Raise `ValueError` for `--pad` with a format that holds no adapter."""
    if options.pad and options.format not in PADDED:
        raise ValueError(f"--pad belongs to --format {' and '.join(PADDED)}, got --format {options.format}.")
