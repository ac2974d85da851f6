"""What `--resume_from_checkpoint` means in an output folder: where a run goes on."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.runs.outputs import SEARCH_FOLDER
from autolora_trainer.training.checkpoints import MANIFEST, checkpoint_steps, fault, newest_checkpoint, read_manifest


@dataclass(frozen=True)
class Progress:
    """What an earlier run in a folder has finished of its method's own phase.

    Attributes:
        done: the phase has ended in ranks.
        trials: of a grid, finished.
        checkpoints: the folder of the phase's own checkpoints; None for a method without any.
    """

    done: bool = False
    trials: int = 0
    checkpoints: str | None = None


@dataclass
class Resume:
    """Where an interrupted run goes on: at a checkpoint of the search, or of the retrain, or between the two."""

    search_checkpoint: str | None = None
    search_done: bool = False
    train_checkpoint: str | None = None
    trials: int = 0  # of a grid, finished
    passed_over: list[str] = field(default_factory=list)  # a line for each newer checkpoint that is damaged
    origin: dict | None = field(init=False, default=None)  # `resumed_from` of all_results.json

    def __post_init__(self):
        checkpoint = self.train_checkpoint or self.search_checkpoint
        if checkpoint or self.search_done:  # read now: the training that goes on rotates its checkpoints
            step = read_manifest(checkpoint)["step"] if checkpoint else 0
            self.origin = {"phase": "search" if self.search_checkpoint else "retrain", "step": step}
        elif self.trials:
            self.origin = {"phase": "search", "step": self.trials}


def find_resume(place: str, asked: str, progress: Callable[[bool], Progress], check_settings: Callable) -> Resume:
    """A checkpoint to go on from, and the phase it belongs to.

    Args:
        place: the output folder.
        asked: a checkpoint's folder, or True for the newest whole one of either phase.
        progress: (whether there is a whole checkpoint of the final training) -> `Progress`.
        check_settings: raises `ValueError` if the earlier run had other settings.
    Raises:
        ValueError: if what was asked for is no checkpoint, or of another run, or if all that there are are damaged.
    """
    named = asked not in ("True", "true")
    parent = os.path.dirname(os.path.abspath(asked))  # the run's own folder may be called search, too
    of_search = os.path.basename(parent) == SEARCH_FOLDER and os.path.realpath(parent) != os.path.realpath(place)
    if named and (reason := fault(asked)):
        raise ValueError(
            f"--resume_from_checkpoint {asked} {reason}. Give a checkpoint-N folder, or no value for the newest."
        )
    if named and of_search and progress(False).checkpoints is None:
        raise ValueError(
            f"--resume_from_checkpoint {asked} belongs to a search, and this run does not search. Drop it, or give a "
            "checkpoint-N folder beside search/."
        )
    check_settings()
    if named and of_search:
        return Resume(search_checkpoint=asked)
    if named:
        return Resume(train_checkpoint=asked, search_done=os.path.exists(os.path.join(place, RANKS_FILE)))
    checkpoint, passed_over = newest_checkpoint(place)  # of the final training
    own = progress(checkpoint is not None)
    if own.done or own.checkpoints is None:
        return Resume(train_checkpoint=checkpoint, search_done=own.done, trials=own.trials, passed_over=passed_over)
    checkpoint, passed_over = newest_checkpoint(own.checkpoints)
    return Resume(search_checkpoint=checkpoint, trials=own.trials, passed_over=passed_over)


def check_any_whole(resume: Resume, place: str, own: str | None) -> None:
    """Raise `ValueError` where a run has checkpoints and none to go on from: it would begin again, and they would go.
    One alone without a manifest is what a kill leaves that came before the first was whole.

    Args:
        place: the output folder.
        own: the folder of the checkpoints of the method's own phase.
    """
    folders = [
        os.path.join(p, f"checkpoint-{step}") for p in filter(None, (place, own)) for step in checkpoint_steps(p)
    ]
    begun = len(folders) == 1 and not os.path.exists(os.path.join(folders[0], MANIFEST))
    if resume.origin is None and folders and not begun:
        raise ValueError(
            f"--resume_from_checkpoint: no checkpoint in {place} is whole; the newest {fault(folders[-1])}. Drop the "
            "argument to begin again, or give another --output_dir."
        )
