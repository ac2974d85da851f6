"""The base model of a search, which its retrain is to have too: the same weights, and nothing drawn anew."""

import logging

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import nn

from autolora_trainer.compat import drawn_parameters
from autolora_trainer.errors import is_first_process
from autolora_trainer.lora.fresh import fresh_line, untrained_fresh, with_modules
from autolora_trainer.lora.frozen import base_tensors, buffers, differing, frozen_tensors
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.heads import trained_beside_lora
from autolora_trainer.lora.parts import base_model_of
from autolora_trainer.lora.targets import target_lines

logger = logging.getLogger("autolora_trainer")


def adapted(model: nn.Module, config: LoraConfig | None, rank: int) -> nn.Module:
    """`add_lora`, where there is a config, which trains what the checkpoint lacks too; one line for that, and for what
    no adapter reaches."""
    if config is None:
        lines = [fresh_line([], _frozen_fresh(model), trained=False)]
    else:
        modules, single = untrained_fresh(model, config)
        lines = [fresh_line(modules, [], trained=True), fresh_line([], single, trained=False)]
        lines += target_lines(model, config)
        model = add_lora(model, with_modules(config, modules), rank=rank)
    lines.append(_unsaved_line(model))
    for line in filter(None, lines if is_first_process() else ()):
        logger.warning(line)
    return model


def _frozen_fresh(model: nn.Module) -> list[str]:
    drawn = drawn_parameters(base_model_of(model))
    return [name for name, tensor, _ in base_tensors(model) if tensor in drawn and not tensor.requires_grad]


def _unsaved_line(model: nn.Module) -> str | None:
    """About what is trained, and lies in no file of PEFT's."""
    saved = get_peft_model_state_dict(model, save_embedding_layers=False) if isinstance(model, PeftModel) else {}
    places = {tensor.data_ptr() for tensor in saved.values()}
    unsaved = [name for name, p in trained_beside_lora(model).items() if p.data_ptr() not in places]
    if not unsaved:
        return None
    return (
        f"{len(unsaved)} tensors are trained that no adapter's file holds (first: {unsaved[0]!r}). Name their modules "
        "in modules_to_save, or freeze them."
    )


class SearchBase:
    """What a search on `model` stands on.

    Args:
        layers: {name: LoRA layer} of the search; a weight that one is merged into is no longer the base's.
    """

    def __init__(self, model: nn.Module, layers: dict):
        self.model, self.layers, self.buffers = model, layers, buffers(model)

    def moved_buffers(self) -> dict[str, torch.Tensor]:
        """{name: buffer} that the search has moved without a gradient."""
        now = {name: tensor for name, tensor, is_buffer in base_tensors(self.model) if is_buffer}
        return {name: now[name] for name in differing(now, self.buffers)}

    def say_moved(self) -> None:
        if moved := self.moved_buffers():
            logger.warning(
                f"{len(moved)} buffers have moved in training (first: {next(iter(moved))!r}), and no adapter holds "
                "them: who loads one has the base model's. Freeze such layers: module.eval() in a callback, or name "
                "them in modules_to_save."
            )

    def check(self, model: nn.Module) -> None:
        """Raise `ValueError` if an adapter's base model is another one than that of the search."""
        own = {**frozen_tensors(self.model), **self.buffers}
        own = {name: t for name, t in own.items() if not self._is_merged(name)}
        other = {name: tensor for name, tensor, _ in base_tensors(model)}
        wrong = [*differing(own, other), *(name for name in own if name not in other)]
        if not wrong:
            return
        drawn = drawn_parameters(base_model_of(model))
        if all(other.get(name) in drawn for name in wrong):
            raise ValueError(
                f"The retrain's base model is not the search's: its checkpoint lacks {', '.join(wrong[:4])}, drawn "
                "anew at every load. Search again with these in modules_to_save (peft_config=...), or load the model "
                "once and give a copy.deepcopy of it to the search."
            )
        raise ValueError(
            f"The retrain's base model is not the search's: {len(wrong)} of {len(own)} tensors differ, the first is "
            f"{wrong[0]!r}. Load the same checkpoint, with the same added tokens, or leave start_retrain out."
        )

    def _is_merged(self, name: str) -> bool:
        layer = self.layers.get(name) or self.layers.get(name.rpartition(".")[0])
        return layer is not None and layer.merged

    @torch.no_grad()
    def hand_over_buffers(self, model: nn.Module) -> None:
        """Give a retrain the buffers that the search has moved."""
        other = {name: tensor for name, tensor, _ in base_tensors(model)}
        for name, tensor in self.moved_buffers().items():
            other[name].copy_(tensor)
