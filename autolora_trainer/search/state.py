"""What a checkpoint of a search holds beside Trainer's own files: selection variables and their optimizer."""

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

    Raises:
        ValueError: if the checkpoint is of a search over other modules.
    """

    def _save_optimizer_and_scheduler(self, output_dir):
        with self.gates.apart():  # under FSDP that is where weights are saved to go on from
            super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        optimizer = self.selection_optimizer.state.get(self.gates.logits, {})
        tensors = {
            "logits": self.gates.logits.detach(),
            "sums": self.means.sums,
            **{OPTIMIZER + name: value for name, value in optimizer.items()},
        }
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        save_file(tensors, os.path.join(output_dir, SELECTION_TENSORS))
        state = {
            "names": self.gates.names,
            "val_position": self._val_batches.position,
            "selection_passes": self.selection_passes,
            "measured_passes": self.measured_passes,
            "unreached": self.reach.unreached,
            "callback": self.rank_selection.checkpoint(),
        }
        write_json(os.path.join(output_dir, SELECTION_STATE), state)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state, logits = read_json(os.path.join(checkpoint, SELECTION_STATE)), self.gates.logits
        if state["names"] != self.gates.names:
            raise ValueError(
                f"The checkpoint searched {len(state['names'])} modules, the model has {len(self.gates.names)} "
                "others. Resume with the lora_target_modules and the model of the first run."
            )
        tensors = load_file(os.path.join(checkpoint, SELECTION_TENSORS), device=str(logits.device))
        with torch.no_grad():
            logits.copy_(tensors["logits"])
        self.gates.refresh()
        moments = {n.removeprefix(OPTIMIZER): value for n, value in tensors.items() if n.startswith(OPTIMIZER)}
        if moments:
            if not self.selection_optimizer.defaults["capturable"]:
                moments["step"] = moments["step"].cpu()  # where AdamW keeps it
            self.selection_optimizer.state[logits] = moments
        self.means.sums = tensors["sums"]
        self.selection_passes, self.measured_passes = state["selection_passes"], state["measured_passes"]
        self._val_batches.position, self.reach.unreached = state["val_position"], state["unreached"]
        self.rank_selection.restore(state["callback"])
