"""The post-hoc SVD cut: train `initial_rank` components everywhere, then keep what a given size has room for.

    ΔW_l = scale B_l A_l = U diag(σ) V^T  ->  its best approximation of rank r_l  (Eckart and Young 1936)

r_l counts the σ of module l among the largest of all modules that the size has room for (with `--min_rank 1` the
largest of every module come first). Where modules have equal shapes, no adapter of that size is nearer to the trained
one. Nothing is trained after the cut. It costs one training of uniform LoRA of rank k and no search: the cheapest
rival of learned ranks.
"""

import torch
from peft import PeftModel

from autolora_trainer import report
from autolora_trainer.cut import cut_to_ranks
from autolora_trainer.fused import adapt, lora_parts
from autolora_trainer.methods.common import (
    Built,
    check_first_component,
    check_pattern,
    component_costs,
    pattern,
    pattern_size,
    shrink,
    skeleton_adapter,
)
from autolora_trainer.rules import fill_budget, thin_svd


@torch.no_grad()
def ranks_by_singular_values(model: PeftModel, parameters: int | str, min_rank: int = 1) -> dict[str, int]:
    """{module: rank} of the cut.

    Args:
        model: a trained adapter of k components in every module.
        parameters: adapter parameters to keep, at most, or `lora:R`.
        min_rank: 0 or 1, as in `rules.select_ranks`.
    """
    parts = lora_parts(model)
    values = [thin_svd(part.lora_B.float() * part.scaling, part.lora_A.float())[1].cpu() for part in parts.values()]
    most = [len(own) for own in values]  # min(k, m, n)
    padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    ranks = fill_budget(padded, list(component_costs(model).values()), parameters, min_rank, most)
    return dict(zip(parts, ranks))


def check(run) -> None:
    """Raise `ValueError` for a size that k components in every module cannot fill, before they are trained."""
    if not run.training.do_train:
        return
    k, min_rank = run.method.initial_rank, run.method.min_rank
    most = [min(k, *part.shape) for part in lora_parts(skeleton_adapter(run)).values()]

    def share_out(costs, size):
        check_first_component(run, size, list(costs.values()))
        return dict(zip(costs, fill_budget(torch.zeros(len(costs), k), list(costs.values()), size, min_rank, most)))

    check_pattern(run, share_out)


def build(run) -> Built:
    built = Built(adapt(run.base_model(), run.lora_config(r=run.method.initial_rank)))

    def finish(wide: PeftModel) -> PeftModel:
        wide.cpu()
        ranks = ranks_by_singular_values(wide, pattern_size(run, component_costs(wide)), run.method.min_rank)
        built.ranks = pattern(run, "svd", ranks, wide)
        run.say(report.format_rank_table(built.ranks))
        cut_to_ranks(wide, ranks)
        return shrink(run, wide, built.ranks)

    built.finish = finish
    return built
