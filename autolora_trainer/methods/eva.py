"""EVA (Paischer et al. 2024), as PEFT computes it: ranks and the first `lora_A` from activations of the base model.

    X_l = U diag(σ) V^T;   the components of all modules compete with σ_j² / Σ σ²,   lora_A = V^T[:r_l]

X_l are the inputs of module l on training rows, factored batch by batch until the directions stand still (a cosine of
0.99). The components of uniform LoRA of the asked size are handed out anew: a module gets at most ρ = 2 times its
uniform rank (PEFT's default), and may get none. The scale is that of every pattern here, and what is saved is an
ordinary LoRA.

EVA counts components, not parameters: where modules have unequal shapes, the size can differ from the one asked for,
and a warning says so. It works on whole modules, so a fused `c_attn` has one rank.
"""

import math
import os
import re

import torch
from peft import EvaConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import get_eva_state_dict
from torch.utils.data import DataLoader, Subset

from autolora_trainer.files import read_json, write_json
from autolora_trainer.lora.parts import lora_layers
from autolora_trainer.methods.base import Built, Job, Plan, given_pattern
from autolora_trainer.methods.patterns import SizedMethod, pattern_size
from autolora_trainer.ranks.budget import uniform_ranks
from autolora_trainer.ranks.learned import LearnedRanks
from autolora_trainer.training.cost import CostMeter
from autolora_trainer.training.processes import wait_for_everyone

RHO = 2.0
ROWS = 4096  # at most, drawn by the seed: the directions stand still after tens of batches
MOST_PASSES = 1000
CALIBRATION = "calibration.json"  # what the calibration cost; written after ranks.json


def layer_costs(layers: dict[str, LoraLayer]) -> dict[str, int]:
    """{module: parameters of one component of the whole module}: PEFT reads them off `nn.Linear` and `Conv1D`."""
    return {name: layer.in_features + layer.out_features for name, layer in layers.items()}


def eva_components(
    model, dataset, collate, lora_config, start: dict[str, int], *, batch_size: int, seed: int = 0, progress=False
) -> tuple[dict[str, torch.Tensor], dict]:
    """The components that EVA gives to every module.

    Args:
        model: the pre-trained model, without an adapter, on the device to work on.
        dataset, collate: training rows, and rows -> batch.
        lora_config: (**changes) -> LoraConfig.
        start: {module: rank} to hand out anew, each at least 1.
        seed: of the rows drawn.
    Returns:
        {module: V^T, (r, n)}, r possibly 0; and {"forward_passes", "examples"}.
    Raises:
        RuntimeError: if the directions do not stand still.
    """
    config = lora_config(
        r=max(start.values()),
        target_modules=list(start),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in start.items()},
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=RHO),
    )
    causal = config.task_type == "CAUSAL_LM"
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()[:ROWS]
    seen = {"forward_passes": 0, "examples": 0}

    def batch_of(rows):
        batch = dict(collate(rows))
        if not causal:  # PEFT masks by labels as by tokens, and those of a classifier are no tokens
            batch.pop("labels", None)
        return batch

    def forward(model, batch):
        seen["forward_passes"] += 1
        seen["examples"] += len(batch["input_ids"])
        if seen["forward_passes"] > MOST_PASSES:
            raise RuntimeError(
                f"EVA's directions have not stood still after {MOST_PASSES} batches. Lower --size, or give "
                "batches of more tokens."
            )
        return model(**batch)

    hooks = [model.get_submodule(name).register_forward_pre_hook(_contiguous) for name in start]
    try:
        components = get_eva_state_dict(
            model,
            DataLoader(Subset(dataset, order), batch_size=batch_size, collate_fn=batch_of),
            config,
            forward_fn=forward,
            prepare_layer_inputs_fn=_tokens,
            gather_distributed_inputs=False,  # every process sees the same batches
            show_progress_bar=progress,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return {name: components[name].float().cpu() for name in start}, seen


def _contiguous(layer, args):
    """PEFT (0.21) takes no other input: BERT's pooler is given the first token of every row, a view."""
    return (args[0].contiguous(), *args[1:])


def _tokens(layer_input, positions, layer_name) -> torch.Tensor:
    """The inputs of a layer at the tokens that count, (tokens, n): of a hook's (batch, length, n), or (batch, n) after
    a pooling, at positions (tokens, 2), batch and place."""
    hidden = layer_input[0] if isinstance(layer_input, (tuple, list)) else layer_input
    return hidden[positions[:, 0], positions[:, 1]] if hidden.dim() == 3 else hidden.flatten(0, -2)


class Eva(SizedMethod):
    name = "eva"
    outputs = frozenset({CALIBRATION})

    def prepare(self, job: Job) -> Plan:
        job.source.refuse_experts()
        job.source.refuse_nonlinear()
        layers = lora_layers(job.source.rank_one_adapter)
        whole, size = layer_costs(layers), pattern_size(job)
        least = sum(whole.values())
        if size < least:
            raise ValueError(
                f"--method eva hands out uniform ranks anew, and a size of {size:,} adapter parameters has none: rank "
                f"1 in every whole module has {least:,}. Raise --size, e.g. "
                f"lora:{math.ceil(least / sum(job.source.costs.values()))}."
            )
        start = uniform_ranks(whole, size)
        for name, rank in start.items():
            if round(RHO * rank) > layers[name].in_features:
                raise ValueError(
                    f"--method eva looks for {round(RHO * rank)} directions in the inputs of {name!r}, twice its "
                    f"uniform rank, and they have {layers[name].in_features}. Lower --size."
                )
        return lambda: self._learn(job, whole, start)

    def rehearsals(self, job: Job, plan: Plan) -> dict:
        return {}  # it would calibrate twice, and has written nothing when it is through

    def _learn(self, job: Job, whole: dict[str, int], start: dict[str, int]) -> Built:
        kept = job.folder.file(CALIBRATION)
        if job.folder.resume.train_checkpoint and os.path.exists(kept):
            ranks, components = LearnedRanks.load(job.folder.ranks_path), {}  # the checkpoint has the weights
            figures = read_json(kept)
        else:
            ranks, components, figures = calibrate(job, whole, start)
        model = job.build(ranks)
        with torch.no_grad():
            for name, layer in lora_layers(model).items():
                if name in components:
                    layer.lora_A["default"].weight.copy_(components[name])
        return Built(model, ranks, {"calibration": figures})


def calibrate(job: Job, whole: dict[str, int], start: dict[str, int]) -> tuple[LearnedRanks, dict, dict]:
    """Ranks, components, and the cost of finding them; `ranks.json` and the cost are on disk after it."""
    cost, training = CostMeter(), job.request.training
    base = job.source.base_model().to(training.device)
    components, seen = eva_components(
        base,
        job.rows.datasets["train"],
        job.rows.collator,
        job.source.lora_config,
        start,
        batch_size=training.per_device_train_batch_size,
        seed=training.seed,
        progress=not training.disable_tqdm,
    )
    ranks = given_pattern(job, Eva.name, {name: len(rows) for name, rows in components.items()}, base)
    size, asked = sum(whole[name] * rank for name, rank in ranks.ranks.items()), pattern_size(job)
    if size > asked:
        has = f"it has {size:,} adapter parameters, {asked:,} were asked for"
        job.warn(f"EVA counts components, not parameters: {has}")
    # A pass is a forward and a backward one, and there is no backward one here
    figures = {**cost.stop(), **seen}
    job.folder.clear()
    if job.request.is_main_process:
        ranks.save(job.folder.ranks_path)
        write_json(job.folder.file(CALIBRATION), figures)
    wait_for_everyone()
    return ranks, components, figures
