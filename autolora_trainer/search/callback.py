"""`RankSelectionCallback`: watches α, stops the search when its order has settled, and ends in `LearnedRanks`."""

import csv
import logging
import math
import os
from contextlib import contextmanager

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from autolora_trainer.files import no_link, replacing
from autolora_trainer.lora.sharded import reshard_after_forward
from autolora_trainer.ranks.adapter import fingerprint, public_model_name
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank
from autolora_trainer.report.heatmap import rank_heatmap_pixels
from autolora_trainer.report.history import HISTORY_FILE, selection_history_pixels
from autolora_trainer.report.trackers import Tracking
from autolora_trainer.search.checks import check_length
from autolora_trainer.search.measure import SAME, shared_ranks
from autolora_trainer.search.reach import say_left_out
from autolora_trainer.search.rules import Found
from autolora_trainer.training.callbacks import cut_short

logger = logging.getLogger("autolora_trainer")
HISTORY_RECORDS, HISTOGRAMS = 200, 20  # at most, however long the search


class RankSelectionCallback(TrainerCallback):
    """Turns what the search has learned into ranks: by contributions, or by the selection variables alone (§4.4).

    `AutoLoraTrainer` adds one by itself; give your own to set the base model's public name.

    Args:
        base_model: what `ranks.json` and the model card call the base model. Default: its Hub id, or the name of its
            folder.
    Attributes:
        learned_ranks: `LearnedRanks` once the search has ended; None if it was cut short before a selection variable
            moved, and can be resumed.
        found: the `Found` behind them.
        settled: the search has stopped because its order had settled.
    Raises:
        ValueError: before a search that is too short for a selection variable to move.
        RuntimeError: at the end of one in which none ever moved.
    """

    def __init__(self, base_model: str | None = None):
        self.base_model = base_model
        self.learned_ranks: LearnedRanks | None = None
        self.found: Found | None = None
        self.search = None  # set by the trainer, which owns the selection variables
        self._last_look: dict[str, int] = {}  # ranks of the best quarter at the look before
        self.settled = False
        self._origin: tuple[str, str | None] | None = None  # name and fingerprint of the base model

    def checkpoint(self) -> dict:
        return {"last_look": self._last_look, "settled": self.settled}

    def restore(self, state: dict) -> None:
        self._last_look, self.settled = state["last_look"], state["settled"]

    def on_train_begin(self, args, state, control, **kwargs):
        reshard_after_forward(self.search.model)
        if state.global_step == 0:  # not a resume; perhaps a second training, which may settle anew
            self._last_look, self.settled, self.learned_ranks, self.found = {}, False, None, None
            if not any([part.lora_B.any() for part in self.search.gates.parts.values()]):
                check_length(args, state.max_steps)
            self.search.try_measuring()
        names = self.search.gates.names  # now, and not after hours
        self._origin = (public_model_name(self.search.model), fingerprint(self.search.model, names))
        self._interval = max(args.hypergradient_interval, math.ceil(state.max_steps / HISTORY_RECORDS))
        if state.is_world_process_zero:
            self._open_history(args, state.global_step)
        if state.global_step == 0:
            self._record(state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._interval == 0:
            self._record(state)
        every = args.search_look_steps
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            look = self.search.look()
            same = shared_ranks(look.ranks, self._last_look)
            self._last_look = look.ranks
            if same >= SAME and look.has_learned:
                control.should_training_stop = self.settled = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        gates = self.search.gates
        if state.global_step > 0 and gates.logits.unique().numel() == 1:
            self._end_without_ranks(args, state)
            return
        if state.global_step % self._interval:
            self._record(state)
        self.search.check_finite()
        with self._kept_if_it_fails(args, state, control):
            self.found = self.search.find()
        threshold = args.threshold
        if threshold is None and args.constraint != "none":
            threshold = gates.threshold()[0].item()
        if state.is_world_process_zero:
            say_left_out(self.search.unmeasured(self.found))
            self.search.base.say_moved()
        curve = self.found.curve
        if curve is not None and not curve.decided and state.is_world_process_zero:
            logger.warning(
                f"undecided: {curve.gain:.3g} nats of held-out gain after {state.global_step} steps are no more than "
                f"chance (standard error {curve.points[0].error:.2g}), so ranks are uniform. Search longer "
                "(search_steps; of the scripts search_max_steps), or at a higher rate."
            )
        found, alphas = self.found, dict(zip(gates.names, map(tuple, gates.selection.tolist())))
        self.learned_ranks = LearnedRanks(
            modules={
                name: ModuleRank(rank, alphas[name], found.contributions.get(name, ()), gates.parts[name].experts)
                for name, rank in found.ranks.items()
            },
            base_model=self.base_model or self._origin[0],
            base_model_fingerprint=self._origin[1],
            initial_rank=gates.initial_rank,
            constraint=args.constraint,
            rank_rule=args.rank_rule,
            threshold=threshold if args.rank_rule == "threshold" else None,
            curve=found.curve,
        )

    @contextmanager
    def _kept_if_it_fails(self, args, state, control):
        """Inside, an exception leaves a checkpoint of the whole search, if there are to be any and one of the last
        step is not there: resumed, the search measures again."""
        try:
            yield
        except Exception:
            place = self._checkpoint_of(args, state)
            if args.save_strategy == SaveStrategy.NO or args.world_size > 1:
                raise
            if not os.path.isdir(place):
                self.search._save_checkpoint(self.search.model, trial=None)
                self.search.callback_handler.on_save(args, state, control)
            logger.warning(f"the search is done, and measuring it has failed; {place} goes on from here")
            raise

    @staticmethod
    def _checkpoint_of(args, state) -> str:
        return os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def _end_without_ranks(self, args, state) -> None:
        """Raise `RuntimeError`, unless something has stopped the search and it may be resumed."""
        if state.global_step == state.max_steps or self.settled:
            raise RuntimeError(
                f"The search ended after {state.global_step} steps and no selection variable ever moved, so it has "
                "learned no ranks. Raise search_epochs or selection_learning_rate, or lower hypergradient_interval."
            )
        stopped = (
            f"The search was stopped after step {state.global_step} of {state.max_steps}, before a selection variable "
            "moved, so it has learned no ranks"
        )
        if cut_short(self.search):  # by a signal, and whoever set the callback says so
            return
        if not os.path.isdir(self._checkpoint_of(args, state)):
            raise RuntimeError(f"{stopped}. Let it run longer, or lower hypergradient_interval.")
        if state.is_world_process_zero:
            logger.warning(f"{stopped}; its checkpoint goes on: train(resume_from_checkpoint=True).")

    def _open_history(self, args, step):
        """A new file, or after a resume the rows that an uninterrupted search would have written by `step`."""
        self._path = os.path.join(args.output_dir, HISTORY_FILE)
        os.makedirs(args.output_dir, exist_ok=True)
        rows = []
        if step and os.path.exists(self._path):
            with open(self._path, newline="", encoding="utf-8") as file:
                old = [row for row in list(csv.reader(file))[1:] if row and row[0].isdigit()]
            rows = [row for row in old if int(row[0]) <= step and int(row[0]) % self._interval == 0]
        header = [f"alpha_{j + 1}" for j in range(self.search.gates.initial_rank)]
        with replacing(self._path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([["step", "module", *header], *rows])

    def _record(self, state):
        if not state.is_world_process_zero:
            return
        alphas = zip(self.search.gates.names, self.search.gates.selection.tolist())
        rows = [[state.global_step, name, *(f"{a:.9g}" for a in alpha)] for name, alpha in alphas]
        with open(self._path, "a", newline="", encoding="utf-8", opener=no_link) as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


class SearchTracking(Tracking):
    """A histogram of α during a search; at its end the grid of ranks and the way of α."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._interval = max(1, math.ceil(state.max_steps / HISTOGRAMS))

    def on_step_end(self, args, state, control, **kwargs):
        step, selection = state.global_step, self._trainer.gates.selection
        if step % self._interval == 0:
            self.send("histogram", "train/search_selection", lambda: selection.float().cpu().numpy(), step)

    def on_train_end(self, args, state, control, **kwargs):
        step, ranks = state.global_step, self._trainer.learned_ranks
        history = os.path.join(args.output_dir, HISTORY_FILE)
        self.send("image", "train/search_ranks", lambda: rank_heatmap_pixels(ranks), step)
        self.send("image", "train/search_selection_history", lambda: selection_history_pixels(history), step)
