"""Eq. 2-3: a selection variable for every rank-1 component of every LoRA update.

    Δ_l = Σ_j α_l^j Δ_l^j   (Eq. 2)        α_l = softmax(β_l)   (Eq. 3)

How they are applied, saved and copied stands in `lora/gated.py`.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention
from torch import nn

from autolora_trainer.lora.gated import Folding, folded, gate_layer, is_gated, ungate_layer
from autolora_trainer.lora.parts import (
    LoraPart,
    base_model_of,
    init_that_changes_base,
    lora_layers,
    lora_parts,
    paths_of,
)
from autolora_trainer.names import check_names

MIXED = "add_weighted_adapter"  # of PEFT's LoraModel, which reads the factors themselves


@dataclass(frozen=True)
class Constraint:
    """One row of §5.5: how logits become selection variables, where they start, and their threshold."""

    normalize: Callable[[torch.Tensor], torch.Tensor]
    initial_logit: float
    threshold: Callable[[torch.Tensor], torch.Tensor]  # selection (M, k) -> (M, 1)


CONSTRAINTS = {
    "softmax": Constraint(
        lambda logits: logits.softmax(-1), 0.0, lambda a: torch.full_like(a[:, :1], 1 / a.shape[-1])
    ),
    "sigmoid": Constraint(torch.sigmoid, 0.0, lambda a: torch.full_like(a[:, :1], 0.5)),
    # §5.5 "no constraints": α itself is free. It starts at one, which is plain LoRA; the paper does not say.
    "none": Constraint(lambda logits: logits.clone(), 1.0, lambda a: a.mean(dim=-1, keepdim=True)),
}


def selection(selection_logits: torch.Tensor, constraint: str = "softmax") -> torch.Tensor:
    r"""Selection variables from selection logits:  α_l^j = exp(β_l^j) / Σ_i exp(β_l^i)  (Eq. 3).

    Args:
        selection_logits: β, shape (..., k), float32.
        constraint: `softmax`, or the ablations of §5.5, `sigmoid` and `none`.
    Raises:
        KeyError: If `constraint` is unknown.
    Example:
        >>> selection(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """
    return CONSTRAINTS[constraint].normalize(selection_logits)


class SelectionGates:
    """The selection variables of a model, and the gates in its layers that apply them.

    Attributes:
        parts: {name: `LoraPart`} of the M gated modules and parts of fused projections.
        names: their names, in the order of the rows below.
        logits: β, shape (M, k), float32; the only trainable tensor. It is not a parameter of the model, so clipping,
            `zero_grad`, the weights' optimizer, DDP and saving never see it.
        selection: α, shape (M, k), float32, a plain leaf. The gates read this tensor; `refresh` fills it from
            `logits`. It asks for a gradient only while a hypergradient is computed, so a weight step costs what LoRA
            costs.
        scale: what the gates multiply α with: 1 as in Eq. 2, or 1/α of the uniform start (k for softmax), so that a
            search begins as plain LoRA and its weights learn as they will in the retrain.
    """

    def __init__(
        self,
        parts: dict[str, LoraPart],
        adapter_name: str,
        constraint: str,
        gate_scaling: str,
        tuner=None,
        device=None,
    ):
        self.parts, self.names, self.adapter_name, self.constraint = parts, list(parts), adapter_name, constraint
        first = parts[self.names[0]]
        for name, part in parts.items():
            if part.rank != first.rank:
                raise ValueError(
                    f"The search needs the same rank k in every LoRA layer, got {first.rank} in {first.name!r} and "
                    f"{part.rank} in {name!r}. Drop rank_pattern from the LoraConfig."
                )
            if not math.isclose(part.scaling, first.scaling):
                raise ValueError(
                    f"The search needs the same scale in every LoRA layer, got {first.scaling:g} in {first.name!r} "
                    f"and {part.scaling:g} in {name!r}. Drop alpha_pattern from the LoraConfig."
                )
        self.initial_rank, start = first.rank, CONSTRAINTS[constraint].initial_logit
        self.logits = nn.Parameter(torch.full((len(parts), first.rank), start, device=device or first.device))
        self.selection = selection(self.logits.detach(), constraint)
        self.scale = 1 / self.selection[0, 0].item() if gate_scaling == "plain" else 1.0
        rows: dict[LoraLayer, list[int]] = {}
        for row, part in enumerate(parts.values()):
            rows.setdefault(part.layer, []).append(row)
        self.baked, self._modules, self._tuner = False, [], tuner if hasattr(tuner, MIXED) else None
        if self._tuner is not None:
            setattr(tuner, MIXED, Folding(tuner, MIXED, self.folded))
        self.watch: Callable[[slice, torch.Tensor], None] | None = None  # told of every pass through a gate
        for layer, own in rows.items():
            self._modules.append(gate_layer(layer, adapter_name, self._gate(slice(own[0], own[-1] + 1))))

    @property
    def layers(self) -> dict[str, LoraLayer]:
        """{name: the LoRA layer that holds it}."""
        return {name: part.layer for name, part in self.parts.items()}

    def _gate(self, rows: slice):
        """The factors of a layer; parts follow each other as their components."""

        def factors():
            gate = self.scale * self.selection[rows].reshape(-1)  # (p k,)
            if self.watch is not None:
                self.watch(rows, gate)
            return gate

        return factors

    @torch.no_grad()
    def refresh(self) -> None:
        """Fill `selection` from `logits` (Eq. 3), in place, so that a compiled model sees the new values."""
        self.selection.copy_(selection(self.logits, self.constraint))

    def pull_back(self, selection_gradient: torch.Tensor) -> torch.Tensor:
        """Chain rule through Eq. 3: the gradient by β, shape (M, k), from the gradient by α, shape (M, k)."""
        with torch.enable_grad():
            logits = self.logits.detach().requires_grad_()
            return torch.autograd.grad(selection(logits, self.constraint), logits, selection_gradient)[0]

    def threshold(self) -> torch.Tensor:
        """λ for every module, shape (M, 1): 1/k, 0.5 or the layer's mean, by constraint (§4.4, §5.5)."""
        return CONSTRAINTS[self.constraint].threshold(self.selection)

    @torch.no_grad()
    def bake(self) -> None:
        """Fold the gates into `lora_B` (column j times `scale` α_j) and remove them: the model computes the same."""
        for module in self._modules:
            module.weight.copy_(module.product())
        self.baked = True
        self.remove()

    def folded(self):
        """Inside, `lora_B` holds the gates as after `bake`, and the model computes the same; afterwards it has its
        bits again. Nothing to do where the gates are gone, or folded already."""
        return folded(self._modules)

    @contextmanager
    def apart(self):
        """Inside, files hold weights and gates apart, as the checkpoints of a search do: its own state is beside."""
        for module in self._modules:
            module.is_apart = True
        try:
            yield
        finally:
            for module in self._modules:
                module.is_apart = False

    def remove(self) -> None:
        """Take the gates away. The model is then what it was before `attach_gates`."""
        for layer in dict.fromkeys(self.layers.values()) if self._modules else ():
            ungate_layer(layer, self.adapter_name)
        self._modules = []
        if self._tuner is not None:
            vars(self._tuner).pop(MIXED, None)


def attach_gates(
    model: nn.Module,
    constraint: str = "softmax",
    adapter_name: str = "default",
    gate_scaling: str = "paper",
    device: torch.device | None = None,
) -> SelectionGates:
    """Give every rank-1 component of every LoRA layer of `model` a selection variable (Eq. 2).

    Args:
        model: a `PeftModel` with a LoRA adapter of one rank k in all its layers (`torch.nn.Linear`, `Conv1D`, or a
            quantized linear layer) and parameters (experts).
        constraint: see `selection`.
        gate_scaling: `paper`: a component is multiplied by α (Eq. 2), which starts an update k times smaller than
            LoRA's; `plain`: by α over its uniform start, so that it starts as plain LoRA.
        device: of the selection variables. Default: that of the first layer.
    Raises:
        ValueError: If there is no LoRA layer, ranks differ, or a layer has no `lora_A` forward to hook (embeddings,
            convolutions, `nn.MultiheadAttention`, DoRA and other variants).
    """
    parts, base, configs = lora_parts(model, adapter_name), base_model_of(model), getattr(model, "peft_config", {})
    if configs and adapter_name not in configs:
        raise ValueError(
            f"attach_gates found no adapter {adapter_name!r}, only {', '.join(map(repr, configs))}. Leave "
            "adapter_name out of get_peft_model for a search: the adapter is then called 'default'."
        )
    if not parts:
        linear = next((name for name, module in base.named_modules() if isinstance(module, nn.Linear)), None)
        targets = sorted(getattr(configs.get(adapter_name), "target_modules", None) or [])
        raise ValueError(
            f"attach_gates found no LoRA layer in {type(base).__name__}. Wrap the model with get_peft_model first, or "
            f"check target_modules={targets} against its module names, e.g. {linear!r}."
        )
    check_names(lora_layers(model, adapter_name))
    paths = paths_of(model)
    if (scheme := init_that_changes_base(model, adapter_name)) is not None:
        raise ValueError(
            f"The search needs the base model as it is, and init_lora_weights={scheme!r} alters it. Leave it out "
            "here; the retrain may have it, without start_retrain."
        )
    for name, part in parts.items():
        layer = part.layer
        if is_gated(layer, adapter_name):
            raise ValueError(
                f"{name!r} has the gates of an earlier search. Call gates.remove() or gates.bake() of that search "
                "first, or load the model anew."
            )
        owner = base.get_submodule(
            paths[layer].rpartition(".")[0]
        )  # nn.MultiheadAttention reads its out_proj's weight
        unused = isinstance(layer, MultiheadAttention) or isinstance(owner, nn.MultiheadAttention)
        if unused or not isinstance(layer.lora_A[adapter_name], nn.Linear):
            kind = type(owner if isinstance(owner, nn.MultiheadAttention) else layer.get_base_layer()).__name__
            raise ValueError(
                f"The search gates linear layers, got {kind} at {name!r}. Leave it out: exclude_modules=[{name!r}]."
            )
        if adapter_name in getattr(layer, "lora_variant", {}):
            variant = type(layer.lora_variant[adapter_name]).__name__
            raise ValueError(f"The search gates plain LoRA, got {variant} at {name!r}. Use it in the retrain instead.")
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in getattr(module, "lora_embedding_A", {}):
            raise ValueError(
                f"The search gates linear layers, got an embedding at {name!r}. Leave it out: "
                f"exclude_modules=[{name!r}]."
            )
    return SelectionGates(parts, adapter_name, constraint, gate_scaling, getattr(model, "base_model", None), device)
