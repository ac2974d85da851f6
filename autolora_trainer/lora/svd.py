"""The update B A from its factors, in the basis of its singular vectors."""

import torch


def thin_svd(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SVD of the update B A from its factors (m, k) and (k, n), by two thin QR factorizations: U (m, p), σ (p,)
    falling, V^T (p, n), p = min(k, m, n)."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    return q_b @ u[:, : len(s)], s, vh[: len(s)] @ q_a.T


INITIAL_NORM = 3**-0.5  # of a row of a fresh lora_A: n entries of variance 1 / (3 n)


def best_factors(
    b: torch.Tensor, a: torch.Tensor, rank: int, row_norm: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of B A of rank r (truncated SVD; Eckart and Young 1936), as factors of equal norms, or
    with rows of A of norm `row_norm`.

    Returns:
        A of shape (r, n) and B of shape (m, r); beyond min(k, m, n) with zeros.
    """
    u, s, vh = thin_svd(b, a)
    s = s[:rank]
    norms = s.sqrt() if row_norm is None else torch.full_like(s, row_norm)
    new_a, new_b = norms[:, None] * vh[:rank], u[:, :rank] * (s.sqrt() if row_norm is None else s / row_norm)
    pad = torch.nn.functional.pad
    return pad(new_a, (0, 0, 0, rank - len(s))), pad(new_b, (0, rank - len(s)))
