"""One bar for a training and for what is measured around it: the phase before it, what matters behind it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer


class PhaseProgress(ProgressCallback):
    """Trainer's bar with the phase before it, and what matters behind it.

    Args:
        notes: gives {name: value} as they are now; the last logged loss where they have none.
    """

    def __init__(self, phase: str, notes: Callable[[], dict] = dict):
        super().__init__()
        self._phase, self._notes = phase, notes
        self._logged: dict = {}

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
        if (loss := logs.get("search_train_loss", logs.get("loss"))) is not None:
            self._logged["loss"] = loss
        if "search_total_rank" in logs:
            self._logged["total rank"] = logs["search_total_rank"]
        if args.logging_strategy != "no":  # else the bar is all that is asked for
            super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        _clear(self.training_bar)
        super().on_train_end(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, **kwargs):
        _clear(self.prediction_bar)
        super().on_evaluate(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
        if self.prediction_bar is not None and not self.prediction_bar.desc:
            self.prediction_bar.set_description("evaluation")

    def _show(self) -> None:
        notes = {**self._logged, **self._notes()}
        figures = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in notes.items()}
        self.training_bar.set_postfix(figures, refresh=False)  # the next update draws it


def _clear(bar) -> None:
    """Let a bar that is about to be closed show its end, and leave its line to the next."""
    if bar is not None:
        bar.refresh()
        bar.leave = False


def show_phase(trainer: Trainer, phase: str, notes: Callable[[], dict] = dict) -> None:
    """Put a `PhaseProgress` where a Trainer has transformers' own bar. A notebook's bar stays, and so does none."""
    callbacks = trainer.callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is ProgressCallback:
            callbacks[place] = PhaseProgress(phase, notes)


@contextmanager
def phase(trainer: Trainer, name: str, total: int) -> Iterator[Callable[..., None]]:
    """A phase of `total` parts that a Trainer goes through beside its steps, in the bar of its training where there is
    one; no bar where it shows none, or a notebook's.

    Yields:
        tick(**notes), to be called after each part.
    """
    shown = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, PhaseProgress))
    bar, own = getattr(next(shown, None), "training_bar", None), False
    if bar is None:
        own = any(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks)
        bar = tqdm(total=total, desc=name, leave=False) if own and trainer.is_world_process_zero() else None
    else:
        bar.refresh()  # where the phase before has come to
        bar.set_description(name, refresh=False)
        bar.reset(total)

    def tick(**notes):
        if bar is not None:
            bar.set_postfix({n: f"{v:.4g}" for n, v in notes.items()}, refresh=False)
            bar.update()

    try:
        yield tick
    finally:
        if own and bar is not None:
            bar.close()


def ticking(parts: Iterable, tick: Callable[[], None] | None) -> Iterator:
    """Parts, one after another, with a tick after each."""
    for part in parts:
        yield part
        if tick is not None:
            tick()
