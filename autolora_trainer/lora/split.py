"""`SplitLinear`: a `lora_B` whose zeros outside of the parts of a fused projection are part of the module."""

import torch
from torch import nn
from torch.nn.functional import linear

from autolora_trainer.lora.sharded import changing


class SplitLinear(nn.Linear):
    """Every column of the weight lives in its own rows; elsewhere it is zero, in every pass, and so is its gradient:
    AdamW moves a weight of value zero and gradient zero nowhere, and decays it to zero.

    The mask lies in the module, so that a copy has it, and one that is pickled; files hold the zeros alone.

    Attributes:
        mask: (m, r) of booleans, a buffer that is not saved.
    """

    @staticmethod
    def divide(module: nn.Linear, mask: torch.Tensor) -> None:
        """Make one of a `torch.nn.Linear`, in place, so that whoever holds its weight goes on holding it."""
        module.__class__ = SplitLinear
        module.register_buffer("mask", mask.bool(), persistent=False)
        with torch.no_grad():
            module.weight.mul_(module.mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight * self.mask, self.bias)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        with changing(self.weight) as weight:
            weight.mul_(self.mask)
