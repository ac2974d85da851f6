"""What a checkpoint of a search holds beside Trainer's own files: selection variables, their optimizer, evidence."""

import os

import torch
from safetensors.torch import load_file, save_file

from autolora_trainer.files import read_json, write_json

SELECTION_TENSORS = "selection.safetensors"
SELECTION_STATE = "selection.json"
OPTIMIZER = "optimizer."  # prefix of its tensors


class SearchStateMixin:
    """Over a Trainer with gates: an exact resume of the search.

    Trainer's pair of private hooks is the only one that runs before a checkpoint is rotated or pushed, honours
    save_only_model, and loads after accelerate has prepared the optimizer.
    """

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_search(self, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_search(self, checkpoint)


def save_search(trainer, folder: str) -> None:
    """Write the two files into a checkpoint."""
    optimizer = trainer.selection_optimizer.state.get(trainer.gates.logits, {})
    tensors = {
        "logits": trainer.gates.logits.detach(),
        "sums": trainer.means.sums,
        **trainer.evidence_tensors(),
        **{OPTIMIZER + name: value for name, value in optimizer.items()},
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, os.path.join(folder, SELECTION_TENSORS))
    state = {
        "names": trainer.gates.names,
        "val_position": trainer._val_batches.position,
        "selection_steps": trainer.evidence.steps,
        "selection_passes": trainer.selection_passes,
        "probe_count": trainer.probe.count,
        "callback": trainer.rank_selection.checkpoint(),
    }
    write_json(os.path.join(folder, SELECTION_STATE), state)


def load_search(trainer, folder: str) -> None:
    """Bring a search to where a checkpoint left it.

    Raises:
        ValueError: if the checkpoint is of a search over other modules.
    """
    state = read_json(os.path.join(folder, SELECTION_STATE))
    if state["names"] != trainer.gates.names:
        raise ValueError(
            f"The checkpoint searched {len(state['names'])} modules, the model has {len(trainer.gates.names)} "
            "others. Resume with the lora_target_modules and the model of the first run."
        )
    tensors = load_file(os.path.join(folder, SELECTION_TENSORS), device=str(trainer.gates.logits.device))
    with torch.no_grad():
        trainer.gates.logits.copy_(tensors["logits"])
    trainer.gates.refresh()
    optimizer = {name.removeprefix(OPTIMIZER): value for name, value in tensors.items() if name.startswith(OPTIMIZER)}
    if optimizer:
        if not trainer.selection_optimizer.defaults["capturable"]:
            optimizer["step"] = optimizer["step"].cpu()  # where AdamW keeps it
        trainer.selection_optimizer.state[trainer.gates.logits] = optimizer
    trainer.means.sums = tensors["sums"]
    trainer.evidence.sensitivity_sum, trainer.evidence.sums = tensors["sensitivity_sum"], tensors["evidence_sums"]
    trainer.evidence.steps, trainer.selection_passes = state["selection_steps"], state["selection_passes"]
    trainer.probe.energy_sum, trainer.probe.count = tensors["energy_sum"], state["probe_count"]
    trainer._val_batches.position = state["val_position"]
    trainer.rank_selection.restore(state["callback"])
