"""What selection steps leave in the logs."""

import copy
from functools import partial

import torch


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


def show_in_notebook(trainer) -> None:
    """Let a notebook's table of losses find them: transformers' looks for `loss` in the logs (5.23)."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "NotebookProgressCallback":
            callback.on_log = partial(_on_log, callback.on_log)
            callback.on_evaluate = partial(_on_evaluate, callback.on_evaluate)


def _plain(logs: dict) -> dict:
    return {"loss" if key == "search_train_loss" else key: value for key, value in logs.items()}


def _on_log(shown, args, state, control, logs=None, **kwargs):
    ended = "search_runtime" in (logs or {})  # the mean over all of it is no row of the table
    return shown(args, state, control, logs=logs if ended else _plain(logs or {}), **kwargs)


def _on_evaluate(shown, args, state, control, **kwargs):
    state = copy.copy(state)
    state.log_history = [_plain(logs) for logs in state.log_history]
    return shown(args, state, control, **kwargs)


class SelectionMeans:
    """Means over the selection steps since the last log, kept on the device until then.

    Attributes:
        sums: held-out loss, norm of the hypergradient, implicit over direct term, unusable steps, usable steps; (5,).
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(5, device=device)
        self._latest = None

    def latest(self) -> dict[str, float]:
        """The held-out loss of the last usable step, for a bar."""
        return {} if self._latest is None else {"held-out loss": self._latest.item()}

    @torch.no_grad()
    def add(self, val_loss, gradient, direct) -> None:
        """A usable step; the gradients are by β, (M, k)."""
        ratio = (gradient - direct).norm() / direct.norm().clamp_min(1e-30)
        one, self._latest = torch.ones_like(ratio), val_loss
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
