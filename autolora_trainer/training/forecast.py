"""What a call will take: said before its first pass, and in minutes after its first few. Both go to the log."""

import logging
import time

from transformers import TrainerCallback

from autolora_trainer.training.cost import peak_memory_mb

logger = logging.getLogger("autolora_trainer")
WARM_UP, MEASURED = 1.0, 3.0  # passes that are slower than the rest, and those that are timed


class Forecast:
    """Says what `name` takes.

    Args:
        passes: forward-backward passes of a batch, as far as is known beforehand.
        rows: of a batch.
        model: whose parameters lie in memory beside what is trained.
        speaks: whether this process does.
        trains: whether parameters that ask for a gradient are trained, and not measured alone.
    """

    def __init__(self, name: str, passes: float, rows: int, model, speaks: bool = True, trains: bool = True):
        self.name, self.passes, self.speaks = name, passes, speaks
        self._done = self._timed_from = 0.0
        self._start: float | None = None
        parameters = list(model.parameters())
        held = sum(p.numel() * p.element_size() for p in parameters) / 1e6
        trained = sum(p.numel() for p in parameters if p.requires_grad) if trains else 0
        beside = f"; {trained:,} parameters are trained, {16 * trained / 1e6:,.0f} MB with Adam's moments"
        self._say(f"about {passes:,.0f} passes of {rows} rows; the model takes {held:,.0f} MB{beside * bool(trained)}")

    def passed(self, passes: float = 1.0) -> None:
        """To be called after some passes; says how long all of them take once enough are timed."""
        self._done += passes
        if self._start is None and self._done >= WARM_UP:
            self._start, self._timed_from = time.perf_counter(), self._done
        elif self._start is not None and (timed := self._done - self._timed_from) >= MEASURED and self.speaks:
            minutes = (time.perf_counter() - self._start) / timed * self.passes / 60
            self._say(f"about {_duration(minutes)}; peak memory so far {peak_memory_mb():,.0f} MB")
            self.speaks = False

    def _say(self, text: str) -> None:
        if self.speaks:
            logger.info(f"{self.name}: {text}")


def _duration(minutes: float) -> str:
    """
    Example:
        >>> _duration(0.4), _duration(1.2), _duration(12.3), _duration(150)
        ('24 seconds', '1.2 minutes', '12 minutes', '2.5 hours')
    """
    if minutes < 0.95:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.2g} minutes" if minutes < 99 else f"{minutes / 60:.1f} hours"


class StepForecast(TrainerCallback):
    """A `Forecast` over the steps of a training, each of so many passes."""

    def __init__(self, make_forecast, passes_per_step: float):
        self._make_forecast, self._passes_per_step = make_forecast, passes_per_step

    def on_train_begin(self, args, state, control, **kwargs):
        self._forecast = self._make_forecast(state)

    def on_step_end(self, args, state, control, **kwargs):
        self._forecast.passed(self._passes_per_step)
