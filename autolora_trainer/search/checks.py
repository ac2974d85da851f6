"""What the search cannot do, said before its first step."""

from peft import LoraConfig, PeftModel

from autolora_trainer.search.arguments import AutoLoraTrainingArguments


def check_construction(model, args, train_dataset, peft_config, trainer_arguments: dict) -> None:
    """Raise `ValueError` for what `AutoLoraTrainer` was given and cannot search with."""
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
    if peft_config is not None and not isinstance(peft_config, LoraConfig):
        raise ValueError(f"peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}.")
    for name, what in (("rank_pattern", "rank k"), ("alpha_pattern", "scale")):
        if getattr(peft_config, name, None):
            raise ValueError(
                f"The search needs the same {what} in every LoRA layer, got a {name} in peft_config. Drop {name} "
                "from the LoraConfig."
            )
    if peft_config is None and not isinstance(model, PeftModel):
        raise ValueError(
            f"The search needs a LoRA adapter, got a plain {type(model).__name__}. Pass "
            "peft_config=LoraConfig(...) or wrap the model with get_peft_model."
        )


def check_prepared(trainer, given, val_dataset) -> None:
    """Raise `ValueError` where a Trainer has made columns of its training rows that D_val lacks."""
    columns = [set(getattr(rows, "column_names", None) or ()) for rows in (trainer.train_dataset, given, val_dataset)]
    missing = sorted(columns[0] - columns[1] - columns[2])
    if missing:
        raise ValueError(
            f"val_dataset lacks {', '.join(missing)}, which {type(trainer).__name__} has made of train_dataset. Give "
            "rows that are prepared likewise, or leave val_dataset out: the search then splits train_dataset."
        )


def check_environment(trainer) -> None:
    """Raise `ValueError` for processes and shards that a search cannot have."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        kind = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP"
        raise ValueError(
            f"The search moves whole LoRA weights and {kind} shards them. Search with plain data parallelism (the "
            "LoRA weights are small) and use it for the retrain."
        )
    check_devices(trainer.args)


def check_devices(arguments) -> None:
    """Raise `ValueError` for one process with several GPUs: Trainer would copy the model onto each at every pass."""
    if arguments.n_gpu > 1:
        raise ValueError(
            f"The search runs one process per GPU, got one process for {arguments.n_gpu} GPUs. Start it with "
            "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES."
        )
