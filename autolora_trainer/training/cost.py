"""What a phase costs: seconds, forward-backward passes, examples and peak memory, measured while it runs."""

import math
import time
from collections.abc import Iterable

import torch
from transformers import TrainerCallback


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w") as file:  # Linux: the resident set's high-water mark starts anew
            file.write("5")
    except OSError:
        pass


def peak_memory_mb() -> float:
    """Peak of the GPU's allocated memory where one was used (`--use_cpu` leaves it alone), else of the process's
    resident set, in MiB."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return peak / 2**20
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class CostMeter(TrainerCallback):
    """Measures one phase; put it among the callbacks of its Trainer.

    A pass is one forward and backward of the model on one batch (per process); `examples` counts the rows of all
    passes of all processes. Time runs from the meter's construction to `stop()`.

    Args:
        earlier: figures of the part of the phase that ran before an interruption.
    """

    def __init__(self, earlier: dict | None = None):
        self._earlier = earlier or {"wall_seconds": 0.0, "passes": 0, "examples": 0, "peak_memory_mb": 0.0}
        self._start, self._end = time.perf_counter(), None
        self._passes, self._examples = self._earlier["passes"], self._earlier["examples"]
        self._handle, self._processes = None, 1
        _reset_peak_memory()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        @torch.compiler.disable
        def count(module, arguments, keywords):
            if module.training and torch.is_grad_enabled():
                self._passes += 1
                tensors = [v for v in (*arguments, *keywords.values()) if isinstance(v, torch.Tensor) and v.dim() > 0]
                self._examples += args.world_size * tensors[0].shape[0] if tensors else 0

        self._processes = args.world_size
        if self._handle is not None:  # auto_find_batch_size begins again
            self._handle.remove()
        self._handle = model.register_forward_pre_hook(count, with_kwargs=True)

    def on_train_end(self, args, state, control, **kwargs):
        self._handle.remove()

    def add(self, passes: float, rows: int) -> None:
        """Count passes that were taken in evaluation mode, of batches of so many rows."""
        self._passes += math.ceil(passes)
        self._examples += round(passes * rows * self._processes)

    def stop(self) -> dict:
        self._end = time.perf_counter()
        return self.figures()

    def figures(self) -> dict:
        end = self._end or time.perf_counter()
        return {
            "wall_seconds": round(self._earlier["wall_seconds"] + end - self._start, 3),
            "passes": self._passes,
            "examples": self._examples,
            "peak_memory_mb": round(max(self._earlier["peak_memory_mb"], peak_memory_mb()), 1),
        }


def sum_costs(costs: Iterable[dict]) -> dict:
    """The sum of several costs; of memory the peak."""
    costs = list(costs)
    total = {key: sum(cost[key] for cost in costs) for key in ("wall_seconds", "passes", "examples")}
    total["wall_seconds"] = round(total["wall_seconds"], 3)
    return {**total, "peak_memory_mb": max(cost["peak_memory_mb"] for cost in costs)}


def total_cost(phases: dict[str, dict], command: str) -> dict:
    """`cost.json`: the phases, their total, and the command."""
    return {**phases, "total": sum_costs(phases.values()), "command": command}
