"""A retrain that begins wide: all k components first, the learned ranks from some step on.

    ΔW_l = B_l A_l of rank k  ->  its best approximation of rank r_l  (truncated SVD)

A component that is cut has A_j = 0 and B_j = 0, so both of its gradients are exactly zero and it stays cut: the model
is one of the learned ranks from that step on, without a change to a module or to the optimizer's parameters, and a
checkpoint of any step resumes as ever. `build_adapter` and `copy_cut` then make the small adapter that is saved.
"""

from transformers import TrainerCallback

from autolora_trainer.lora.cut import cut_to_ranks
from autolora_trainer.ranks.learned import LearnedRanks


class CutCallback(TrainerCallback):
    """Cuts a wide adapter to its learned ranks after a share of the training.

    Args:
        ranks: the learned ranks.
        share: of the steps of the training, above 0 and below 1, that are trained at rank k.
    """

    def __init__(self, ranks: LearnedRanks, share: float):
        self.ranks, self.share = ranks.ranks, share

    def step(self, max_steps: int) -> int:
        """The step after which the cut is made; at least one follows it, if there is more than one."""
        return min(max(1, round(self.share * max_steps)), max(1, max_steps - 1))

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step == self.step(state.max_steps):
            cut_to_ranks(model, self.ranks)
            states = getattr(optimizer, "optimizer", optimizer).state  # under accelerate's wrapper
            for name, parameter in model.named_parameters():
                if "lora_" in name:  # the moments belong to the old components
                    states.pop(parameter, None)
