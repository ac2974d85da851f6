"""The update B A of a LoRA layer in the basis of its singular vectors, and adapters cut to smaller ranks in it.

ΔW_l = B_l A_l of rank k  ->  its best approximation of rank r_l  (truncated SVD; Eckart and Young 1936)
"""

from contextlib import contextmanager

import torch
from peft import PeftModel
from torch.nn.functional import pad

from autolora_trainer.lora.heads import trained_beside_lora
from autolora_trainer.lora.parts import LoraPart, lora_parts
from autolora_trainer.lora.sharded import exchange, put_back


def thin_svd(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SVD of the update B A from its factors (m, k) and (k, n), by two thin QR factorizations: U (m, p), σ (p,)
    falling, V^T (p, n), p = min(k, m, n); of the updates of E experts, one each, all with E in front."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT)
    p = s.shape[-1]
    return q_b @ u[..., :p], s, vh[..., :p, :] @ q_a.mT


def strengths(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """σ (p,) of the update B A, falling; of experts, where component j is one in each: the root of their Σ σ_j²."""
    s = thin_svd(b, a)[1]
    return s if s.dim() == 1 else s.norm(dim=0)


INITIAL_NORM = 3**-0.5  # of a row of a fresh lora_A: n entries of variance 1 / (3 n)


def best_factors(
    b: torch.Tensor, a: torch.Tensor, rank: int, row_norm: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of B A of rank r, as factors of equal norms, or with rows of A of norm `row_norm`.

    Returns:
        A of shape (r, n) and B of shape (m, r); beyond min(k, m, n) with zeros; of experts, with E in front.
    """
    u, s, vh = thin_svd(b, a)
    s = s[..., :rank]
    norms = s.sqrt() if row_norm is None else torch.full_like(s, row_norm)
    new_b = u[..., :rank] * (s.sqrt() if row_norm is None else s / row_norm)[..., None, :]
    new_a, rest = norms[..., None] * vh[..., :rank, :], rank - s.shape[-1]
    return pad(new_a, (0, 0, 0, rest)), pad(new_b, (0, rest))


@torch.no_grad()
def cut_to_ranks(model: PeftModel, ranks: dict[str, int]) -> None:
    """Replace every update of a LoRA adapter by its best approximation of the given rank, in place."""
    for name, part in lora_parts(model).items():
        rank = ranks.get(name, 0)
        a, b = best_factors(part.lora_B.float(), part.lora_A.float(), rank)
        rest = part.rank - rank
        part.set_lora_A(pad(a, (0, 0, 0, rest)))
        part.set_lora_B(pad(b, (0, rest)))


@torch.no_grad()
def copy_cut(wide: PeftModel, small: PeftModel) -> None:
    """Give an adapter of the learned ranks what is left in a cut one, and its other trained parameters (heads)."""
    sources = lora_parts(wide)
    for name, part in lora_parts(small).items():
        source = sources[name]
        part.set_lora_A(source.lora_A[..., : part.rank, :])
        part.set_lora_B(source.lora_B[..., : part.rank] * source.scaling / part.scaling)
    trained, own = trained_beside_lora(wide), trained_beside_lora(small)
    for name in trained.keys() & own.keys():
        own[name].copy_(trained[name])


@contextmanager
@torch.no_grad()
def in_svd_basis(parts: dict[str, LoraPart]):
    """Inside, the components of every part are the singular directions of its update, by falling singular value, in
    float32: A_j = σ_j^(1/2) v_j^T, B_j = σ_j^(1/2) u_j; of experts, each one's own. The model computes the same;
    afterwards it has its bits again.
    """
    weights = dict.fromkeys(weight for part in parts.values() for weight in part.weights)
    factors = {}
    for name, part in parts.items():
        a, b = best_factors(part.lora_B.cpu().double(), part.lora_A.cpu().double(), part.rank)
        strength = a.norm(dim=-1) * b.norm(dim=-2)  # (r,), or (E, r)
        real = strength > 1e-12 * strength.max()  # not rounding alone
        factors[name] = (a * real[..., None], b * real[..., None, :])
    raw = {weight: exchange(weight, weight.data.float().clone()) for weight in weights}
    try:
        for name, part in parts.items():
            a, b = factors[name]
            part.set_lora_A(a)
            part.set_lora_B(b)
        yield
    finally:
        for weight, bits in raw.items():
            put_back(weight, bits)
