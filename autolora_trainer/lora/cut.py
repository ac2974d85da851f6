"""A wide adapter cut to smaller ranks: in place, and into a smaller adapter.

ΔW_l = B_l A_l of rank k  ->  its best approximation of rank r_l  (truncated SVD)
"""

import torch
from peft import PeftModel

from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.svd import best_factors


@torch.no_grad()
def cut_to_ranks(model: PeftModel, ranks: dict[str, int]) -> None:
    """Replace every update of a LoRA adapter by its best approximation of the given rank, in place."""
    for name, part in lora_parts(model).items():
        a, b = best_factors(part.lora_B.float(), part.lora_A.float(), ranks.get(name, 0))
        rest = part.rank - len(a)
        part.lora_A.copy_(torch.nn.functional.pad(a, (0, 0, 0, rest)))
        part.set_lora_B(torch.nn.functional.pad(b, (0, rest)))


@torch.no_grad()
def copy_cut(wide: PeftModel, small: PeftModel) -> None:
    """Give an adapter of the learned ranks what is left in a cut one, and its other trained parameters (heads)."""
    sources = lora_parts(wide)
    for name, part in lora_parts(small).items():
        source = sources[name]
        part.lora_A.copy_(source.lora_A[: part.rank])
        part.set_lora_B(source.lora_B[:, : part.rank] * source.scaling / part.scaling)
    trained = {n: p for n, p in wide.named_parameters() if p.requires_grad and "lora_" not in n}
    for name, parameter in small.named_parameters():
        if name in trained:
            parameter.copy_(trained[name])
