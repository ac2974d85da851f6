"""One small file per method.

A method is a function `build(run) -> Built`: from a `pipeline.Run` to the model that the final training trains. What
follows (training, evaluation, files) is the same for all of them.
"""

import os

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from autolora_trainer.errors import sentence
from autolora_trainer.methods import (
    adalora,
    adapter,
    autolora,
    eva,
    full,
    grid,
    linear,
    lora,
    peft,
    random,
    svd,
    uniform,
)
from autolora_trainer.trainer_utils import RetrainTrainer

METHODS = {
    "autolora": autolora.build,
    "lora": lora.build,
    "full": full.build,
    "adapter": adapter.build,
    "adalora": adalora.build,
    "eva": eva.build,
    "grid": grid.build,
    "uniform": uniform.build,
    "random": random.build,
    "linear": linear.build,
    "svd": svd.build,
    "peft": peft.build,
    **dict.fromkeys(peft.SHORT, peft.build),
}
# What a method refuses before anything is written: `check(run)` raises ValueError.
CHECKS = {
    "autolora": autolora.check,
    "adapter": adapter.check,
    "adalora": adalora.check,
    "eva": eva.check,
    "grid": grid.check,
    "uniform": uniform.check,
    "random": random.check,
    "linear": linear.check,
    "svd": svd.check,
    "peft": peft.check,
    **dict.fromkeys(peft.SHORT, peft.check),
}
WITHOUT_LORA = ("full", "adapter", "peft", *peft.SHORT)  # no LoRA of ours: no ranks, no budget of ranks
SIZED_BY_RANKS = ("autolora", "eva", "uniform", "random", "linear", "svd")  # what `--ranks FILE` is for
# Arguments of some methods alone: {name: methods}.
OWN_ARGUMENTS = {
    "adapter_size": ("adapter",),
    "adapter_layer_norm": ("adapter",),
    "peft_type": ("peft",),
    "peft_kwargs": ("peft", *peft.SHORT),
    "sampler": ("grid",),
    "grid_trials": ("grid",),
}


def trainer_class(model: nn.Module) -> type[RetrainTrainer]:
    """The standard Trainer, or the one that the model's method needs to be saved and resumed."""
    if adalora.is_adalora(model):
        return adalora.AdaLoraTrainer
    if adapter.is_bottleneck(model):
        return adapter.BottleneckTrainer
    return peft.PeftTypeTrainer if peft.is_other_type(model) else RetrainTrainer


def load_trained(run) -> nn.Module:
    """What an earlier run left in output_dir, whatever its method: an adapter under its base model, or a whole model.

    Raises:
        ValueError: if there is nothing of the kind, or it does not fit.
    """
    folder, base = run.output_dir, None
    if os.path.exists(os.path.join(folder, "adapter_config.json")):
        base = run.base_model()

        def load():
            if not os.path.exists(os.path.join(folder, SAFETENSORS_WEIGHTS_NAME)):  # PEFT would ask the Hub for it
                raise ValueError(f"{SAFETENSORS_WEIGHTS_NAME} is missing")
            return PeftModel.from_pretrained(base, folder)

    elif adapter.is_saved_in(folder):
        base = run.base_model()

        def load():
            return adapter.load_bottleneck_adapter(base, folder)

    elif full.is_saved_in(folder):
        return full.load(run)
    else:
        raise ValueError(f"{folder} holds no adapter to evaluate. Add --do_train, or give its --output_dir.")
    try:
        return load()
    except Exception as error:  # PEFT and safetensors raise nearly every kind
        raise ValueError(
            f"The adapter in {folder} does not load on {type(base).__name__}: {type(error).__name__}, "
            f"{sentence(error)} Train it again with --do_train --overwrite, or give another --output_dir."
        ) from error
