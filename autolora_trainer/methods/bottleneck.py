"""Bottleneck adapters (Houlsby et al. 2019), by forward hooks: no library that has them runs with transformers 5.

    h  ->  h + W_up gelu(W_down h + b_down) + b_up,      W_down (s, d), W_up (d, s)

after the attention and after the feed-forward part of every block, on the output of the projection back to width d,
before dropout, skip connection and layer norm. The base model is frozen, the head that a task adds is trained, and so
are, as in the paper, the scales and shifts of all layer norms (`--adapter_layer_norm false` freezes them too).

Where we differ: W_up starts at zero and W_down at N(0, 0.01²) cut at two deviations, the paper has both so; its start
is near the identity, ours is exactly there. And the paper has dropout before the adapter, which is the same in
evaluation.

Saved are `bottleneck_adapter.safetensors` and `bottleneck_adapter.json`, which `load_bottleneck_adapter` reads.
"""

import os
import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from autolora_trainer.files import parse_json, read_bounded, replacing, write_json
from autolora_trainer.lora.fused import out_features
from autolora_trainer.lora.heads import head_parameters
from autolora_trainer.ranks.adapter import public_model_name
from autolora_trainer.ranks.adapter_file import read_header

CONFIG, WEIGHTS = "bottleneck_adapter.json", "bottleneck_adapter.safetensors"
FORMAT_VERSION = 1
# Houlsby et al. §3.3: 64 everywhere costs 0.4 points of GLUE against the best of {8, 64, 256} for each task. 24 has
# the 0.9M parameters of Tables 1 and 3 in RoBERTa-base.
DEFAULT_SIZE, USUAL_SIZE = 64, 1024
DEVIATION = 1e-2  # their §3.6: any up to this one works
# Ends of the names of the projections back to the width of the model, of the attention and of the feed-forward part.
ATTENTION_OUTPUTS = (
    ".attention.output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa
    ".attention.out_lin",  # DistilBERT
    ".attn.c_proj",  # GPT-2
    ".self_attn.o_proj",  # Llama, Mistral, Qwen, Gemma, Phi-3
    ".self_attn.out_proj",  # OPT
    ".attention.dense",  # GPT-NeoX
    ".attn.Wo",  # ModernBERT
)
FEED_FORWARD_OUTPUTS = tuple(
    ".output.dense .ffn.lin2 .mlp.c_proj .mlp.down_proj .fc2 .mlp.dense_4h_to_h .mlp.Wo".split()
)


class Bottleneck(nn.Module):
    """(…, d) -> (…, d), the identity at first; `width` is d, `size` s."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.trunc_normal_(self.down.weight, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.up(nn.functional.gelu(self.down(hidden)))


def _through_bottleneck(module, inputs, output):
    """The forward hook. It finds the adapter in the module, so a copy of the model has its own."""
    return module.bottleneck(output)


def find_outputs(model: nn.Module) -> list[str]:
    """Names of the modules that an adapter follows: of every block the output of attention and of feed-forward.

    Raises:
        ValueError: in a model whose blocks do not have both.
    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> find_outputs(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2)))
        ['h.0.attn.c_proj', 'h.0.mlp.c_proj']
    """
    # the number excludes what is in no block: poolers and heads
    weights = [n for n, module in model.named_modules() if hasattr(module, "weight") and re.search(r"(^|\.)\d+\.", n)]
    attention = [name for name in weights if name.endswith(ATTENTION_OUTPUTS)]
    feed_forward = [name for name in weights if name.endswith(FEED_FORWARD_OUTPUTS) and name not in attention]
    if not attention or len(attention) != len(feed_forward):
        raise ValueError(
            f"--method adapter found {len(attention)} attention outputs and {len(feed_forward)} feed-forward outputs "
            f"in {type(model).__name__}, and a block has one of each. It knows names that end in "
            "attention.output.dense, attn.c_proj, self_attn.o_proj and the like. Give another model or --method lora."
        )
    return [name for name in weights if name in {*attention, *feed_forward}]


def add_bottlenecks(
    model: nn.Module,
    size: int = DEFAULT_SIZE,
    layer_norm: bool = True,
    names: list[str] | None = None,
    task_type: str | None = None,
) -> nn.Module:
    """Put an adapter after every attention and feed-forward part of the model, in place, and leave only what belongs
    to the method trainable.

    Args:
        size: s, the width of the bottleneck.
        layer_norm: train the layer norms too.
        names: modules to follow; default: `find_outputs`.
        task_type: PEFT's name of the task, for readers of the file.
    Raises:
        ValueError: if the model has bottlenecks already, or is none whose blocks are known.
    """
    refuse_second(model)
    names = find_outputs(model) if names is None else list(names)
    modules = dict(model.named_modules())
    for name in names:
        module = modules[name]
        module.bottleneck = Bottleneck(out_features(module), size).to(module.weight.device, module.weight.dtype)
        module.register_forward_hook(_through_bottleneck)
    model.bottleneck_config = {
        "base_model": public_model_name(model),
        "task_type": task_type,
        "size": size,
        "layer_norm": layer_norm,
        "modules": names,
        "fresh_modules": list(getattr(model, "fresh_modules", ())),
    }
    model.requires_grad_(False)
    for parameter in own_parameters(model).values():
        parameter.requires_grad_(True)
    return model


def refuse_second(model: nn.Module) -> None:
    """Raise `ValueError` for a model that has bottlenecks: two hooks would find one and the same module."""
    if hasattr(model, "bottleneck_config"):
        raise ValueError(
            f"{type(model).__name__} has a bottleneck adapter already, and room for one. Load its base model anew "
            "with from_pretrained, and put the adapter into that."
        )


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of what the method trains: adapters, layer norms if they are, and the head."""
    config, parameters = model.bottleneck_config, dict(model.named_parameters())
    holders = [f"{name}.bottleneck.{part}" for name in config["modules"] for part in ("down", "up")]
    if config["layer_norm"]:
        holders += [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]
    own = {f"{name}.{kind}" for name in holders for kind in ("weight", "bias")} | set(head_parameters(model))
    return {name: parameter for name, parameter in parameters.items() if name in own}


def save_bottleneck_adapter(model: nn.Module, folder: str) -> None:
    """Write what the method has trained, and what is needed to put it back."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in own_parameters(model).items()}
    with replacing(os.path.join(folder, WEIGHTS)) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    document = {"format_version": FORMAT_VERSION, **model.bottleneck_config}
    write_json(os.path.join(folder, CONFIG), document, indent=1)


def is_saved_in(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, CONFIG))


def load_bottleneck_adapter(model: nn.Module, folder: str) -> nn.Module:
    """Put a saved adapter, with its layer norms and head, into its base model; it can be trained on.

    Args:
        model: the base model, as `from_pretrained` gives it, for the same task; it is changed in place.
        folder: an output directory of `--method adapter`.
    Raises:
        ValueError: if the folder holds no such adapter, or one of another model, or the model has an adapter.
    """
    refuse_second(model)
    config = _read_config(folder)
    modules = dict(model.named_modules())
    linear = {name for name, module in modules.items() if hasattr(module, "nf") or hasattr(module, "out_features")}
    missing = [name for name in config["modules"] if name not in linear]
    missing += [name for name in config["fresh_modules"] if name not in modules]
    if missing:
        raise ValueError(
            f"The adapter in {folder} names {missing[0]!r}, which {type(model).__name__} lacks. Give the model it "
            f"was trained on ({config.get('base_model')})."
        )
    if config["size"] > USUAL_SIZE:  # or a few bytes of a stranger's would take the memory of a model
        widths = {shape for _, shape in read_header(os.path.join(folder, WEIGHTS)).values()}
        if (config["size"],) not in widths:
            raise ValueError(f"{folder} has size {config['size']} in {CONFIG}, and not in {WEIGHTS}. Train it again.")
    model.fresh_modules = config["fresh_modules"]
    add_bottlenecks(model, config["size"], config["layer_norm"], config["modules"], config.get("task_type"))
    load_weights(model, folder)
    return model


@torch.no_grad()
def load_weights(model: nn.Module, folder: str) -> None:
    """The saved tensors into a model that has bottlenecks already, or `ValueError` if they are not of this model."""
    path = os.path.join(folder, WEIGHTS)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    parameters = own_parameters(model)
    for name in [*parameters, *tensors]:
        given, needed = tensors.get(name), parameters.get(name)
        if given is None or needed is None or given.shape != needed.shape:
            raise ValueError(
                f"{path} has {'no' if given is None else tuple(given.shape)} {name!r}, and {type(model).__name__} "
                f"{'has none' if needed is None else f'needs {tuple(needed.shape)}'}. Was it trained on another model "
                "or task?"
            )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _read_config(folder: str) -> dict:
    """bottleneck_adapter.json, checked: it may come from elsewhere."""
    path = os.path.join(folder, CONFIG)
    try:
        config = parse_json(read_bounded(path))
    except OSError as error:
        raise ValueError(f"{folder} holds no bottleneck adapter: {error.strerror} ({CONFIG}).") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    valid = (
        isinstance(config, dict)
        and config.get("format_version") == FORMAT_VERSION
        and type(config.get("size")) is int
        and 1 <= config["size"] <= 65536
        and type(config.get("layer_norm")) is bool
        and isinstance(config.get("modules"), list)
        and 0 < len(config["modules"]) == len(set(map(str, config["modules"])))
        and isinstance(config.setdefault("fresh_modules", []), list)
        and all(isinstance(name, str) for name in [*config["modules"], *config["fresh_modules"]])
    )
    if not valid:
        raise ValueError(f"{path} is no valid description of a bottleneck adapter (format {FORMAT_VERSION}).")
    return config
