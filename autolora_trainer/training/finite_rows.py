"""Evaluation and prediction of which no score is made where a row gives no number."""

import math

import torch
from transformers.trainer_pt_utils import find_batch_size

from autolora_trainer.errors import NonFiniteError


class FiniteRowsMixin:
    """Over a Trainer: rows are looked at as they are evaluated or predicted, and a loss or an output that is NaN or
    infinite ends it before anything is scored: an argmax of NaN is a label, and an accuracy of such labels a number.

    Raises:
        NonFiniteError: from `evaluate`, `predict` and a `train` that evaluates; in every process.
    """

    _looked_at: list | None = None  # (whether the loss is finite, of every row whether its output is) of each batch

    def evaluation_loop(self, *args, **kwargs):
        given, self._looked_at = self.compute_metrics, []

        def scored(*values, **more):
            self._check_rows()
            return given(*values, **more)

        self.compute_metrics = given and scored
        try:
            output = super().evaluation_loop(*args, **kwargs)
            self._check_rows()
        finally:
            self.compute_metrics, self._looked_at = given, None
        return output

    def prediction_step(self, model, inputs, *args, **kwargs):
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if self._looked_at is not None:
            rows = _finite_rows(logits, find_batch_size(inputs), inputs.get("attention_mask"))
            self._looked_at.append((torch.isfinite(loss).all() if torch.is_tensor(loss) else None, rows))
        return loss, logits, labels

    def _check_rows(self) -> None:
        """Raise `NonFiniteError` for the first row so far, in the order in which rows are evaluated."""
        size, processes, own = self.args.eval_batch_size, self.args.world_size, self.args.process_index
        first = (math.inf, 0)  # where, and how many rows it may be one of
        for place, (loss, rows) in enumerate(self._looked_at):
            start = (place * processes + own) * size
            bad = [] if rows is None else (~rows).nonzero().flatten().tolist()
            if bad or (loss is not None and not loss):
                first = (start + bad[0], 1) if bad else (start, size)
                break
        if processes > 1:
            found = [None] * processes
            torch.distributed.all_gather_object(found, first)
            first = min(found)
        if math.isfinite(first[0]):
            raise NonFiniteError(self._no_number(*first))

    def _no_number(self, start: int, count: int) -> str:
        state = self.state
        when = f"after step {state.global_step} of {state.max_steps}: " if state.max_steps else ""
        what = f"row {start + 1} gives" if count == 1 else f"one of the rows {start + 1} to {start + count} gives"
        return (
            f"evaluation {when}{what} NaN or infinity. No score was made of it, and earlier checkpoints are as they "
            "were. Lower --learning_rate, or look at that row."
        )


def _finite_rows(logits, count: int | None, mask) -> torch.Tensor | None:
    """Of every row whether its output is finite at every token that counts; None where there are no outputs by row.
    A model may rule out a class by -inf, so that one finite value beside it will do."""
    logits = logits[0] if isinstance(logits, (tuple, list)) and logits else logits
    if not torch.is_tensor(logits) or not logits.dim() or len(logits) != count or not logits.is_floating_point():
        return None
    finite = torch.isfinite(logits.amax(-1) if logits.dim() > 1 and logits.shape[-1] else logits)
    if torch.is_tensor(mask) and mask.shape == finite.shape:
        finite |= mask.to(finite.device) == 0
    return finite.reshape(count, -1).all(1)
