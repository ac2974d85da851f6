"""What selection steps leave: sums that rank rules read, means that are logged, and what is more than chance."""

import math
import statistics

import torch

from autolora_trainer.search.hypergradient import accurate

EVIDENCE = 2.0  # t statistic beyond which something on the held-out rows is taken for more than chance


class Evidence:
    """Sums over the selection steps of a search, which rank rules read; M modules, k components each.

    Attributes:
        steps: selection steps taken, usable or not.
        sensitivity_sum: Σ |∂L_val/∂β| over the usable ones, (M, k).
        sums: of the usable steps t: count, Σ gain, Σ gain², Σ t, Σ t², Σ loss, Σ loss², Σ loss t; (8,).
    """

    def __init__(self, selection: torch.Tensor):
        self.steps = 0
        self.sensitivity_sum = torch.zeros_like(selection)
        self.sums = torch.zeros(8, dtype=accurate(selection.device), device=selection.device)

    @torch.no_grad()
    def add(self, selection, by_selection, by_logits, val_loss) -> None:
        """One usable selection step, the last counted in `steps`: α before it, ∂L_val/∂α and ∂L_val/∂β, (M, k), and
        L_val."""
        t = self.steps - 1
        gain = -(selection * by_selection).sum().to(self.sums)
        loss = val_loss.to(self.sums)
        one = torch.ones_like(loss)
        self.sums += torch.stack([one, gain, gain**2, one * t, one * t**2, loss, loss**2, loss * t])
        self.sensitivity_sum += by_logits.abs()

    def gain_and_trend(self) -> tuple[float, float]:
        """See `AutoLoraMixin.held_out_evidence`."""
        n, gain, gain2, t, t2, loss, loss2, loss_t = self.sums.tolist()
        if n < 4:
            return 0.0, 0.0
        mean, variance = gain / n, max(gain2 / n - (gain / n) ** 2, 0.0) / (n - 1)
        spread = max((t2 / n - (t / n) ** 2) * (loss2 / n - (loss / n) ** 2), 0.0)
        r = (loss_t / n - t * loss / n**2) / math.sqrt(spread) if spread else 0.0
        return (mean / math.sqrt(variance) if variance else 0.0), -slope_statistic(r, n)


def slope_statistic(correlation: float, count: float) -> float:
    """The t statistic of the slope of a straight line through `count` points, from their correlation."""
    return correlation * math.sqrt((count - 2) / max(1 - correlation * correlation, 1e-12))


def settled(recent: list[list[int]]) -> bool:
    """Whether the last of `recent` ranks differs from each of the others by at most a twentieth of the total rank:

        max_i Σ_l |r_l(now) - r_l(i)|  <=  0.05 Σ_l r_l(now)

    Ranks are integers shared out of running means: a single one flickers long after the pattern stands.
    """
    *earlier, now = recent
    moved = max(sum(abs(a - b) for a, b in zip(now, ranks)) for ranks in earlier)
    return moved <= 0.05 * sum(now)


def falling(losses: list[float]) -> bool:
    """Whether losses fall over their steps by more than their scatter explains: the t statistic of the slope of a
    straight line is below -`EVIDENCE`. A search that is still learning may yet change its mind.

    Example:
        >>> falling([1.0, 0.9, 0.8, 0.7, 0.65]), falling([1.0, 1.1, 0.9, 1.05, 0.95])
        (True, False)
    """
    if len(losses) < 3 or len(set(losses)) == 1 or not all(map(math.isfinite, losses)):
        return False
    return slope_statistic(statistics.correlation(range(len(losses)), losses), len(losses)) < -EVIDENCE


def with_phase(logs: dict) -> dict:
    """Trainer's logs with the phase in the keys; those of evaluations keep their names.

    Example:
        >>> with_phase({"loss": 0.7, "learning_rate": 1e-4, "epoch": 1.0})
        {'search_train_loss': 0.7, 'search_learning_rate': 0.0001, 'epoch': 1.0}
    """
    named = {}
    for key, value in logs.items():
        if not key.startswith(("eval_", "epoch")):
            key = "search_train_loss" if key in ("loss", "train_loss") else f"search_{key.removeprefix('train_')}"
        named[key] = value
    return named


class SelectionMeans:
    """Means over the selection steps since the last log, kept on the device until then.

    Attributes:
        sums: held-out loss, norm of the hypergradient, implicit over direct term, unusable steps, usable steps; (5,).
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(5, device=device)

    @torch.no_grad()
    def add(self, val_loss, gradient, direct) -> None:
        """A usable step; the gradients are by β, (M, k)."""
        ratio = (gradient - direct).norm() / direct.norm().clamp_min(1e-30)
        one = torch.ones_like(ratio)
        self.sums += torch.stack([val_loss.to(ratio), gradient.norm(), ratio, 0 * one, one])

    def take(self) -> dict[str, float]:
        """The means, as logs; then all sums begin anew."""
        val_loss, norm, ratio, unusable, steps = self.sums.tolist()
        self.sums = torch.zeros_like(self.sums)
        sums = {"search_val_loss": val_loss, "search_hypergradient_norm": norm, "search_implicit_ratio": ratio}
        logs = {name: value / steps for name, value in sums.items() if steps}
        if unusable:
            logs["search_skipped_selection_steps"] = int(unusable)
        return logs


def selection_entropy(selection: torch.Tensor) -> float:
    """Mean over modules of the entropy of the shares |α_j| / Σ |α|, in nats; `selection` is (M, k)."""
    share = selection.abs() / selection.abs().sum(dim=-1, keepdim=True)
    return -(share * share.clamp_min(1e-30).log()).sum(dim=-1).mean().item()
