"""One small file per method.

A method is a function `build(run) -> Built`: from a `pipeline.Run` to the model that the final training trains. What
follows (training, evaluation, files) is the same for all of them.
"""

import os

from peft import PeftModel
from torch import nn

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
    if os.path.exists(os.path.join(run.output_dir, "adapter_config.json")):
        return PeftModel.from_pretrained(run.base_model(), run.output_dir)
    if adapter.is_saved_in(run.output_dir):
        return adapter.load_bottleneck_adapter(run.base_model(), run.output_dir)
    if full.is_saved_in(run.output_dir):
        return full.load(run)
    raise ValueError(f"{run.output_dir} holds no adapter to evaluate. Add --do_train, or give its --output_dir.")
