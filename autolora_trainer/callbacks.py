"""`RankSelectionCallback`: watches α, stops the search when the ranks have settled, and ends in `LearnedRanks`."""

import csv
import math
import os
import statistics

from transformers import TrainerCallback

from autolora_trainer.fused import base_model_of
from autolora_trainer.ranks import LearnedRanks, ModuleRank, fingerprint
from autolora_trainer.rules import EVIDENCE, slope_statistic

HISTORY_FILE = "selection_history.csv"
HISTORY_RECORDS = 200  # at most, however long the search


class RankSelectionCallback(TrainerCallback):
    """Turns the learned selection variables into ranks (§4.4).

    `AutoLoraTrainer` adds one by itself; give your own to set the base model's public name.

    Args:
        base_model: what `ranks.json` and the model card call the base model. Default: its Hub id, or the name of its
            folder.
    Attributes:
        learned_ranks: `LearnedRanks` once the search has ended; None if it was cut short before a selection variable
            moved.
    Raises:
        RuntimeError: at the end of a search in which no selection variable ever moved.
    """

    def __init__(self, base_model: str | None = None):
        self.base_model = base_model
        self.learned_ranks: LearnedRanks | None = None
        self._search = None  # the trainer: it owns the selection variables
        self._recent: list[list[int]] = []  # the ranks after the last `search_patience` + 1 selection steps
        self._recent_losses: list[float] = []  # and the held-out losses
        self.settled = False  # the search has stopped because of `search_patience`

    def bind(self, search) -> None:
        """Called by the trainer whose search this callback watches."""
        self._search = search

    @property
    def total_rank(self) -> int | None:
        """Σ_l r_l after the last selection step, where `search_patience` has it counted."""
        return sum(self._recent[-1]) if self._recent else None

    def checkpoint(self) -> dict:
        return {"recent": self._recent, "recent_losses": self._recent_losses, "settled": self.settled}

    def restore(self, state: dict) -> None:
        self._recent, self.settled = state["recent"], state["settled"]
        self._recent_losses = state["recent_losses"]

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:  # not a resume; perhaps a second training, which may settle anew
            self._recent, self._recent_losses, self.settled, self.learned_ranks = [], [], False, None
        self._interval = max(args.hypergradient_interval, math.ceil(state.max_steps / HISTORY_RECORDS))
        if state.is_world_process_zero:
            self._open_history(args, state.global_step)
        if state.global_step == 0:
            self._record(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._interval == 0:
            self._record(args, state)
        took_selection_step = (state.global_step - 1) % args.hypergradient_interval == 0
        if args.search_patience and took_selection_step and self._search.last_selection_step_counted:
            window = slice(-args.search_patience - 1, None)
            self._recent = [*self._recent, self._search.current_ranks()][window]
            self._recent_losses = [*self._recent_losses, self._search.last_val_loss.item()][window]
            full = len(self._recent) > args.search_patience
            if full and settled(self._recent) and not falling(self._recent_losses):
                control.should_training_stop = self.settled = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        gates = self._search.gates
        if state.global_step > 0 and gates.logits.unique().numel() == 1:
            if state.global_step < state.max_steps and not self.settled:
                return  # something else stopped it early, a signal perhaps: it may be resumed
            raise RuntimeError(
                f"The search ended after {state.global_step} steps and no selection variable ever moved, so it has "
                "learned no ranks. Raise search_epochs or selection_learning_rate, or lower hypergradient_interval."
            )
        if state.global_step % self._interval:
            self._record(args, state)
        self._search.check_finite()
        model = self._search.model
        ranks = self._search.current_ranks()
        threshold = args.threshold
        if threshold is None and args.constraint != "none":
            threshold = gates.threshold()[0].item()
        self.learned_ranks = LearnedRanks(
            modules={
                name: ModuleRank(rank, tuple(alpha))
                for name, rank, alpha in zip(gates.names, ranks, gates.selection.tolist())
            },
            base_model=self.base_model or public_model_name(model),
            base_model_fingerprint=fingerprint(model, gates.names),
            initial_rank=gates.initial_rank,
            constraint=args.constraint,
            rank_rule=args.rank_rule,
            threshold=threshold if args.rank_rule == "threshold" else None,
        )

    def _open_history(self, args, step):
        """A new file, or after a resume the rows up to the step of the checkpoint."""
        self._path = os.path.join(args.output_dir, HISTORY_FILE)
        os.makedirs(args.output_dir, exist_ok=True)
        rows = []
        if step and os.path.exists(self._path):
            with open(self._path, newline="", encoding="utf-8") as file:
                rows = [row for row in list(csv.reader(file))[1:] if self._belongs(row, step)]
        with open(self._path, "w", newline="", encoding="utf-8") as file:
            header = [f"alpha_{j + 1}" for j in range(self._search.gates.initial_rank)]
            csv.writer(file, lineterminator="\n").writerows([["step", "module", *header], *rows])

    def _belongs(self, row, last_step) -> bool:
        """Whether an uninterrupted search would have written this row by `last_step`."""
        return bool(row) and row[0].isdigit() and int(row[0]) <= last_step and int(row[0]) % self._interval == 0

    def _record(self, args, state):
        if not state.is_world_process_zero:
            return
        gates = self._search.gates
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            for name, alpha in zip(gates.names, gates.selection.tolist()):
                writer.writerow([state.global_step, name, *(f"{a:.9g}" for a in alpha)])


def settled(recent: list[list[int]], tolerance: float = 0.05) -> bool:
    """Whether the last of `recent` ranks differs from each of the others by at most a `tolerance` of the total rank:

        max_i Σ_l |r_l(now) - r_l(i)|  <=  tolerance Σ_l r_l(now)

    Ranks are integers shared out of running means: a single one flickers long after the pattern stands.
    """
    *earlier, now = recent
    moved = max(sum(abs(a - b) for a, b in zip(now, ranks)) for ranks in earlier)
    return moved <= tolerance * sum(now)


def falling(losses: list[float], evidence: float = EVIDENCE) -> bool:
    """Whether losses fall over their steps by more than their scatter explains: the t statistic of the slope of a
    straight line is below -`evidence`. A search that is still learning may yet change its mind.

    Example:
        >>> falling([1.0, 0.9, 0.8, 0.7, 0.65]), falling([1.0, 1.1, 0.9, 1.05, 0.95])
        (True, False)
    """
    if len(losses) < 3 or len(set(losses)) == 1 or not all(map(math.isfinite, losses)):
        return False
    return slope_statistic(statistics.correlation(range(len(losses)), losses), len(losses)) < -evidence


def public_model_name(model) -> str:
    """The base model's Hub id; for a local folder its name alone, so that no file carries a path of this machine."""
    base = base_model_of(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__
    if os.path.isdir(name) or os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
        return os.path.basename(os.path.normpath(name))
    return name
