"""A progress bar that says which phase runs, at what loss, and how many ranks there are.

search:  45%|████▌     | 36/80 [00:04<00:05,  8.4it/s, loss=0.6931, total rank=52]
"""

from collections.abc import Callable

from transformers import ProgressCallback, Trainer


class PhaseProgress(ProgressCallback):
    """Trainer's bar with the phase before it, and the last logged loss and the total rank behind it.

    Args:
        phase: e.g. `search`.
        total_rank: gives Σ_l r_l as it is now; None: what the logs say, or nothing.
    """

    def __init__(self, phase: str, total_rank: Callable[[], int | None] = lambda: None):
        super().__init__()
        self._phase, self._total_rank = phase, total_rank
        self._loss = self._logged_rank = None

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self._phase, refresh=False)
            self._show()

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            self._show()
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._loss = logs.get("search_train_loss", logs.get("loss", self._loss))
        self._logged_rank = logs.get("search_total_rank", self._logged_rank)
        super().on_log(args, state, control, logs=logs, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        if self.prediction_bar is not None and not self.prediction_bar.desc:
            self.prediction_bar.set_description("evaluation")

    def _show(self) -> None:
        loss = {} if self._loss is None else {"loss": f"{self._loss:.4g}"}
        total = self._total_rank() or self._logged_rank
        rank = {} if total is None else {"total rank": total}
        self.training_bar.set_postfix({**loss, **rank}, refresh=False)  # the next update draws it


def show_phase(trainer: Trainer, phase: str, total_rank: Callable[[], int | None] = lambda: None) -> None:
    """Put a `PhaseProgress` where a Trainer has transformers' own bar. A notebook's bar stays, and so does none."""
    callbacks = trainer.callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is ProgressCallback:
            callbacks[place] = PhaseProgress(phase, total_rank)
