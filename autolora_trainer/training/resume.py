"""A resume that trains what was left, on the same rows."""

import os

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_pt_utils import LengthGroupedSampler


class ResumeMixin:
    """Over a Trainer: a resumed run trains what was left of it, no step more and the same rows (seen with transformers
    5.23 in both cases).

    Trainer looks at `max_steps` only after a step, so a run resumed from its last checkpoint would take one too many.
    And `group_by_length` draws an epoch's order from the global generator when the epoch begins; a resume draws it
    again, in whatever state the generator then is, so a checkpoint also holds the one in which the epoch began. Of
    several processes each has drawn its own numbers for dropout by then, and would draw another order; they get a
    generator that they share.
    """

    _order: torch.Generator | None = None
    _epoch_began: torch.Tensor | None = None

    def training_is_over(self) -> bool:
        return self.state.global_step >= self.state.max_steps

    def _run_epoch(self, *args, **kwargs):
        if self.training_is_over():
            self.control.should_training_stop = True
            return
        epoch, checkpoint = kwargs["epoch"], kwargs["resume_from_checkpoint"]
        if checkpoint is not None and epoch == kwargs["epochs_trained"]:
            began = self._epoch_file(checkpoint)
            if not kwargs["steps_trained_in_current_epoch"]:
                self._load_rng_state(checkpoint)
            elif os.path.exists(began):
                torch.set_rng_state(load_file(began)["state"])
        self._epoch_began = torch.get_rng_state()
        if self._order is not None:
            self._order.manual_seed(self.args.seed + int(epoch))
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler) and self.args.world_size > 1:
            sampler.generator = self._order = torch.Generator()
        return sampler

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        save_file({"state": self._epoch_began}, self._epoch_file(output_dir))

    def _epoch_file(self, checkpoint: str) -> str:
        process = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return os.path.join(checkpoint, f"epoch_rng_state{process}.safetensors")
