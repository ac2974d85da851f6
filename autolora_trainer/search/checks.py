"""What the search cannot do, said before its first step."""

import math
from collections.abc import Mapping

import torch

from autolora_trainer.heldout.split import check_rows, check_set
from autolora_trainer.lora.parts import factors_of
from autolora_trainer.search.arguments import AutoLoraTrainingArguments
from autolora_trainer.search.suitability import check_model


def check_construction(model, args, train_dataset, held_out: dict, peft_config, trainer_arguments: dict) -> None:
    """Raise `ValueError` for what `AutoLoraTrainer` was given and cannot search with; `held_out`: {argument: rows}."""
    if not isinstance(args, AutoLoraTrainingArguments):
        raise ValueError(
            f"args must be AutoLoraTrainingArguments, got {type(args).__name__}. They take every argument of "
            "TrainingArguments."
        )
    given = "none" if trainer_arguments.get("model_init") is None else "model_init"
    if model is None or given == "model_init":
        raise ValueError(f"The search needs the model itself, got {given}. Pass model=..., e.g. model_init().")
    if train_dataset is None:
        raise ValueError("The search needs train_dataset, got none. D_tr and D_val both come from it.")
    check_set(train_dataset, "train_dataset")
    for name, rows in held_out.items():
        check_rows(rows, name)
    check_model(model, peft_config, args.label_smoothing_factor)


def check_prepared(trainer, given, val_dataset) -> None:
    """Raise `ValueError` where a Trainer has made columns of its training rows that D_val lacks."""
    columns = [set(getattr(rows, "column_names", None) or ()) for rows in (trainer.train_dataset, given, val_dataset)]
    missing = sorted(columns[0] - columns[1] - columns[2])
    if missing:
        raise ValueError(
            f"val_dataset lacks {', '.join(missing)}, which {type(trainer).__name__} has made of train_dataset. Give "
            "rows that are prepared likewise, or leave val_dataset out: the search then splits train_dataset."
        )


def check_optimizer(trainer) -> None:
    """Raise `ValueError` for an optimizer of the user's own that does not train the adapter: it was made of the model
    before there was one."""
    if trainer.optimizer is None:
        return
    held = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
    missing = [p for p in factors_of(trainer.model) if p.requires_grad and p not in held]
    if missing:
        raise ValueError(
            f"The optimizer in optimizers=... lacks {len(missing)} LoRA weights, so they would not be trained. Make "
            "it of the PeftModel's parameters, or give optimizer_cls_and_kwargs."
        )


def check_length(arguments: AutoLoraTrainingArguments, steps: int) -> None:
    """Raise `ValueError` for a search of so many steps, from a lora_B of zero, in which no selection variable can
    move: until a weight step has moved lora_B the gradient by α is zero, and a warm-up's first step has rate 0."""
    interval, moved = arguments.hypergradient_interval, 1 + (arguments.get_warmup_steps(steps) > 0)
    first = interval * math.ceil(moved / interval)  # weight steps before the first selection step that counts
    if steps <= first and arguments.hypergradient == "first_order":
        raise ValueError(
            f"A search of {steps} steps takes no selection step once lora_B is no longer zero, and before that α has "
            f"no gradient; the first would be in step {first + 1}. Search longer, or lower hypergradient_interval."
        )


def check_batch(trainer, inputs) -> None:
    """Raise `ValueError` for batches that have no loss on held-out rows, in the first step."""
    if not isinstance(inputs, Mapping):
        kind, given = type(trainer).__name__, type(inputs).__name__
        raise ValueError(
            f"The search takes batches as dicts, whose loss held-out rows have too, and {kind} gives its steps a "
            f"{given}: it makes its rows while it trains. Search with SFTTrainer on like texts, and give "
            "learned_ranks.to_lora_config() to this trainer as peft_config."
        )
    labels = inputs.get("labels")
    if trainer.args.label_smoothing_factor and torch.is_tensor(labels) and labels.is_floating_point():
        raise ValueError(
            f"label_smoothing_factor {trainer.args.label_smoothing_factor} smooths classes, and these labels are "
            "numbers. Set it to 0."
        )


def check_environment(trainer) -> None:
    """Raise `ValueError` for processes and shards that a search cannot have."""
    kind = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP" if trainer.is_fsdp_enabled else None
    plugin = trainer.accelerator.state.fsdp_plugin if kind == "FSDP" else None
    check_sharding(kind, plugin, trainer.args.hypergradient)
    check_devices(trainer.args)


def check_sharding(kind: str | None, plugin, hypergradient: str) -> None:
    """Raise `ValueError` for weights in shards that a search cannot have.

    Args:
        kind: `DeepSpeed`, `FSDP` or None.
        plugin: accelerate's `FullyShardedDataParallelPlugin`, under FSDP.
    """
    if kind == "DeepSpeed":
        raise ValueError(
            "The search does not run under DeepSpeed, whose backward takes the weight step at once. Search under "
            "FSDP2 (examples/accelerate/fsdp2.yaml) or plain data parallelism, then retrain with --ranks."
        )
    if kind is None:
        return
    if plugin.fsdp_version != 2:
        raise ValueError("The search runs under FSDP2, got FSDP version 1. Set fsdp_version: 2.")
    if hypergradient != "first_order":
        raise ValueError(
            f"Under FSDP the search has hypergradient first_order alone, got {hypergradient}: the other two move "
            "whole weights. Leave it out, or search with plain data parallelism (examples/accelerate/ddp.yaml)."
        )
    if plugin.activation_checkpointing:
        raise ValueError(
            "fsdp_activation_checkpointing renames the modules that the search names. Set it to false, and add "
            "--gradient_checkpointing."
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"From {plugin.state_dict_type} no adapter is saved. Set fsdp_state_dict_type: FULL_STATE_DICT."
        )


def check_devices(arguments) -> None:
    """Raise `ValueError` for one process with several GPUs: Trainer would copy the model onto each at every pass."""
    if arguments.n_gpu > 1:
        raise ValueError(
            f"The search runs one process per GPU, got one process for {arguments.n_gpu} GPUs. Start it with "
            "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES."
        )
