"""The post-hoc SVD cut: train `initial_rank` components everywhere, then keep what a given size has room for.

    ΔW_l = scale B_l A_l = U diag(σ) V^T  ->  its best approximation of rank r_l  (Eckart and Young 1936)

r_l counts the σ of module l among the largest of all modules that the size has room for (with `--min_rank 1` the
largest of every module come first). Where modules have equal shapes, no adapter of that size is nearer to the trained
one. Nothing is trained after the cut. It costs one training of uniform LoRA of rank k and no search: the cheapest
rival of learned ranks.
"""

import torch
from peft import PeftModel

from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.svd import cut_to_ranks, strengths
from autolora_trainer.methods.base import Built, Job, given_pattern
from autolora_trainer.methods.patterns import (
    Pattern,
    check_first_component,
    cut_adapter,
    equal_scores,
    least_rank,
    pattern_size,
)
from autolora_trainer.ranks.budget import fill_budget
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.training.processes import refuse_sharding


@torch.no_grad()
def ranks_by_singular_values(model: PeftModel, parameters: int | str, min_rank: int = 1) -> dict[str, int]:
    """{module: rank} of the cut of a trained adapter, of k components in every module, to so many parameters at most,
    or `lora:R`."""
    parts = lora_parts(model)
    values = [strengths(part.lora_B.float() * part.scaling, part.lora_A.float()).cpu() for part in parts.values()]
    most = [len(own) for own in values]  # min(k, m, n)
    padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    ranks = fill_budget(padded, [part.cost for part in parts.values()], parameters, min_rank, most)
    return dict(zip(parts, ranks))


class Svd(Pattern):
    def __init__(self):
        super().__init__("svd", _share_out)

    def check_request(self, request) -> None:
        refuse_sharding(request.training, "A truncated SVD takes whole LoRA weights")

    def _learn(self, job: Job, ranks: dict[str, int]) -> Built:
        settings = job.request.settings
        built = Built(add_lora(job.source.base_model(), job.source.lora_config(r=settings.initial_rank)))

        def finish(wide: PeftModel) -> PeftModel:
            wide.cpu()
            kept = ranks_by_singular_values(wide, pattern_size(job), least_rank(job))
            built.ranks = given_pattern(job, self.name, kept, wide)
            job.say(format_rank_table(kept))
            cut_to_ranks(wide, kept)
            return cut_adapter(job, wide, built.ranks)

        built.finish = finish
        return built


def _share_out(job: Job, size: int) -> dict[str, int]:
    """Whether the size is possible; the singular values share it out later."""
    check_first_component(job, size, least_rank(job))
    return equal_scores(job, size, least_rank(job))
