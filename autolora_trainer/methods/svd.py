"""The post-hoc SVD cut: train `initial_rank` components everywhere, then keep what a given size has room for.

    ΔW_l = scale B_l A_l = U diag(σ) V^T  ->  its best approximation of rank r_l  (Eckart and Young 1936)

r_l counts the σ of module l among the largest of all modules that the size has room for (with `--min_rank 1` the
largest of every module come first). Where modules have equal shapes, no adapter of that size is nearer to the trained
one. Nothing is trained after the cut. It costs one training of uniform LoRA of rank k and no search: the cheapest
rival of learned ranks.
"""

import torch
from peft import PeftModel

from autolora_trainer.hub.card import CITED_PATTERN, Card
from autolora_trainer.lora.fused import add_lora
from autolora_trainer.lora.parts import lora_parts
from autolora_trainer.lora.svd import copy_cut, cut_to_ranks, thin_svd
from autolora_trainer.methods.base import Built, Job, Plan, given_pattern
from autolora_trainer.methods.patterns import SizedMethod, check_first_component, check_size, pattern_size
from autolora_trainer.ranks.budget import fill_budget
from autolora_trainer.ranks.grid import format_rank_table
from autolora_trainer.training.processes import refuse_sharding


@torch.no_grad()
def ranks_by_singular_values(model: PeftModel, parameters: int | str, min_rank: int = 1) -> dict[str, int]:
    """{module: rank} of the cut.

    Args:
        model: a trained adapter of k components in every module.
        parameters: adapter parameters to keep, at most, or `lora:R`.
        min_rank: 0 or 1, as in `fill_budget`.
    """
    parts = lora_parts(model)
    values = [thin_svd(part.lora_B.float() * part.scaling, part.lora_A.float())[1].cpu() for part in parts.values()]
    most = [len(own) for own in values]  # min(k, m, n)
    padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    ranks = fill_budget(padded, [part.cost for part in parts.values()], parameters, min_rank, most)
    return dict(zip(parts, ranks))


class Svd(SizedMethod):
    name = "svd"

    def check_request(self, request) -> None:
        refuse_sharding(request.training, "A truncated SVD takes whole LoRA weights")

    def prepare(self, job: Job) -> Plan:
        settings = job.request.settings
        k, min_rank = settings.initial_rank, settings.min_rank
        most = [min(k, *shape) for shape in job.source.shapes.values()]

        def share_out(costs, size):
            check_first_component(job, size)
            return dict(
                zip(costs, fill_budget(torch.zeros(len(costs), k), list(costs.values()), size, min_rank, most))
            )

        check_size(job, share_out)
        return lambda: self._learn(job)

    def _learn(self, job: Job) -> Built:
        settings = job.request.settings
        built = Built(add_lora(job.source.base_model(), job.source.lora_config(r=settings.initial_rank)))

        def finish(wide: PeftModel) -> PeftModel:
            wide.cpu()
            ranks = ranks_by_singular_values(wide, pattern_size(job), settings.min_rank)
            built.ranks = given_pattern(job, self.name, ranks, wide)
            job.say(format_rank_table(ranks))
            cut_to_ranks(wide, ranks)
            small = job.build(built.ranks)
            copy_cut(wide, small)
            return small

        built.finish = finish
        return built

    def card(self, folder: str) -> Card:
        return Card(self.name, CITED_PATTERN, ("lora",), cites=True)
