"""Which modules a held-out gradient comes to: one that never came is no zero.

Reentrant checkpoints would hide it; those that transformers runs are switched to the other kind. What else hides one
is seen in the first selection step, before a weight has moved. A module that learns from D_tr, and runs on held-out
rows where no gradient is kept (a reentrant checkpoint in its own code, in evaluation mode a part without gradient),
would end with a rank of nothing: its search is refused. One that is not reached for another reason (its output is not
used, no row has come to it yet) is named, and left out where no gradient has come by the end.
"""

import logging
from collections.abc import Callable, Collection
from contextlib import contextmanager

import torch
from transformers import TrainingArguments

from autolora_trainer.compat import CHECKPOINTING, checkpoints_without_reentrance
from autolora_trainer.errors import UsageError, is_first_process
from autolora_trainer.heldout.contributions import contributions
from autolora_trainer.names import named
from autolora_trainer.search.selection import SelectionGates

logger = logging.getLogger("autolora_trainer")
OLD_NAME = "gradient_checkpointing_kwargs"  # which TRL reads
REENTRANT = "use_reentrant=True"  # in torch's words for a gradient that reentrant checkpoints cannot give
SWITCHED = (
    "reentrant activation checkpoints hide held-out gradients: the search runs them with use_reentrant=False, and "
    "leaves them as they were"
)
CURE = (
    "Reentrant checkpoints hide it, and so does a part that runs without gradient: checkpoint with "
    "use_reentrant=False, or leave these modules out (exclude_modules)."
)


@contextmanager
def without_reentrance(model: torch.nn.Module, args: TrainingArguments):
    """Around a search: activation checkpoints that transformers runs for `model`, or that `args` ask it for, are not
    reentrant inside, and afterwards as they were. One line says so. Those of a model's own code stay."""
    asked = {name: getattr(args, name) for name in (f"{CHECKPOINTING}_kwargs", OLD_NAME)}
    with checkpoints_without_reentrance(model) as switched:
        if getattr(args, CHECKPOINTING):  # Trainer sets those of the model anew, as asked
            switched = (asked[f"{CHECKPOINTING}_kwargs"] or {}).get("use_reentrant")
        for name, kwargs in asked.items():
            setattr(args, name, {**kwargs, "use_reentrant": False} if kwargs else kwargs)
        if switched and is_first_process():
            logger.warning(SWITCHED)
        try:
            yield
        finally:
            for name, kwargs in asked.items():
                setattr(args, name, kwargs)


class Reach:
    """Over the gates of a search: where held-out gradients come.

    Attributes:
        unreached: names that none has come to so far; None before the first selection step.
    """

    def __init__(self, gates: SelectionGates):
        self.gates = gates
        self.unreached: list[str] | None = None
        self._hidden: set[str] = set()  # of the running selection step
        self._reached: set[str] = set()

    @property
    def left_out(self) -> list[str]:
        """Modules whose α has never had a gradient."""
        return self.unreached or []

    @contextmanager
    def watching(self):
        """Around the forward of a held-out pass of a selection step; its backward may follow later."""
        self.gates.watch = None if self.unreached == [] else self._see
        try:
            yield
        finally:
            self.gates.watch = None

    def _see(self, rows: slice, gate: torch.Tensor) -> None:
        own = self.gates.names[rows]
        if gate.requires_grad:
            gate.register_hook(lambda gradient: self._reached.update(own))
        else:  # inside of a reentrant checkpoint, which runs without gradient first, or under no_grad
            self._hidden.update(own)

    def judge(self, add_up: Callable[[list[torch.Tensor]], None]) -> None:
        """After the passes of a selection step, while the weights hold the gradient of the weight step.

        Args:
            add_up: sums over processes, in place.
        Raises:
            UsageError: if a module learns whose held-out gradient is hidden, or none is reached at all.
        """
        if self.unreached == []:
            return
        is_first, asked = self.unreached is None, self.gates.names if self.unreached is None else self.unreached
        learns = {name for name in asked if self.gates.parts[name].gradient is not None}
        seen = torch.tensor([[name in own for own in (self._hidden, self._reached, learns)] for name in asked])
        seen = seen.double()  # (modules, 3)
        add_up([seen])
        found = list(zip(asked, (seen > 0).tolist()))
        self._hidden, self._reached = set(), set()
        refuse([name for name, (hidden, reached, learns) in found if hidden and learns and not reached])
        self.unreached = [name for name, (_, reached, _) in found if not reached]
        if len(self.unreached) == len(self.gates.names):
            raise UsageError(f"No held-out gradient reaches any of {len(self.unreached)} modules. {CURE}")
        if is_first and self.unreached:
            logger.warning(
                f"no held-out gradient reaches {named(self.unreached)} so far: not used, without gradient, or "
                "not run by these rows. What gets none by the end is left out (rank 0)."
            )

    @contextmanager
    def explained(self):
        """Around a selection step: torch's error about reentrant checkpoints, in our words."""
        try:
            yield
        except RuntimeError as error:
            if REENTRANT not in str(error):
                raise
            hidden = [name for name in self.gates.names if name in self._hidden]
            refuse(hidden or ["what lies before a reentrant checkpoint"], error)

    def try_measuring(self, model: torch.nn.Module, batches: list, loss: Callable, add_up: Callable) -> None:
        """The passes that measure run in evaluation mode, where a model may do otherwise: try one.

        Raises:
            UsageError: if it runs modules without gradient that selection steps reach, or reaches none.
        """
        hidden, parts = set(), self.gates.parts
        handles = [
            part.layer.register_forward_hook(
                lambda *_, name=name: None if torch.is_grad_enabled() else hidden.add(name)
            )
            for name, part in parts.items()
        ]
        try:
            found = contributions(model, batches, loss, points=1, reduce=add_up, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        flags = torch.tensor([name in hidden and name not in found for name in parts]).double()
        add_up([flags])
        refuse([name for name, flag in zip(parts, flags.tolist()) if flag and name not in self.left_out])


def refuse(hidden: list[str], error: Exception | None = None) -> None:
    """Raise `UsageError` for modules whose held-out gradient is hidden, where there are any."""
    if hidden:
        raise UsageError(f"No held-out gradient reaches {named(hidden)}, while the weights learn. {CURE}") from error


def say_left_out(names: Collection[str]) -> None:
    """At the end of a search, where there are any."""
    if names:
        logger.warning(f"left out (rank 0), as no held-out gradient ever reached it: {named(names)}")
