"""`RunFolder`: one output folder, from the first look to the last file.

Looking changes nothing, and only inside `claim` is anything written: first what an earlier run left is put aside and
run.json says whose the folder is, last comes all_results.json, which says that the run is finished, and what lay aside
goes. A run that fails before it has anything to go on from leaves the folder as it was.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from autolora_trainer.errors import UsageError
from autolora_trainer.files import (
    TEMPORARY,
    json_text,
    parse_json,
    read_json,
    refuse_links,
    write_atomically,
    write_json,
)
from autolora_trainer.ranks.learned import RANKS_FILE
from autolora_trainer.report.history import HISTORY_FILE
from autolora_trainer.runs.aside import ASIDE_FOLDER, Aside, check_movable, remove, remove_empty
from autolora_trainer.runs.lock import LOCK_FILE, LOCK_FILES, RunLock
from autolora_trainer.runs.outputs import (
    COST_FILE,
    HANDOVER_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SEARCH_FOLDER,
    TOKENIZER_FILES,
    TRIAL_FILE,
    is_output,
)
from autolora_trainer.runs.record import Seen, add_to_record, recorded_text, seen, write_record
from autolora_trainer.runs.resume import Resume
from autolora_trainer.training.checkpoints import MANIFEST, checkpoint_steps
from autolora_trainer.training.processes import of_the_first, wait_for_everyone

logger = logging.getLogger("autolora_trainer")


class RunFolder:
    """The output directory of one run.

    Args:
        path: the folder; it need not be there.
        own: names that methods add to the files of every run; see `runs.outputs.is_output`.
        is_main_process: only that one writes.
    Attributes:
        resume: where the run goes on; set it before `claim`.
    """

    def __init__(self, path: str, own: frozenset[str] = frozenset(), is_main_process: bool = True):
        self.path, self.own, self.is_main_process = path, own, is_main_process
        self.resume = Resume()
        self._note: dict | None = None
        self._aside: Aside | None = None  # since `clear`, until `publish`
        self._cleared = False
        self._check_again = lambda: None
        self._seen: Seen = {}  # what could be pushed, before this run wrote

    def file(self, *names: str) -> str:
        """The path of something in the folder."""
        return os.path.join(self.path, *names)

    @property
    def ranks_path(self) -> str:
        return self.file(RANKS_FILE)

    # ---- looking

    @property
    def has_note(self) -> bool:
        return os.path.exists(self.file(RUN_FILE))

    @property
    def is_ours(self) -> bool:
        """Whether a run of this package wrote into the folder: its run.json is one of ours, and whole."""
        try:
            note = read_json(self.file(RUN_FILE))
        except (OSError, ValueError):
            return False
        kinds = {"command": str, "version": str, "settings": dict}
        return isinstance(note, dict) and all(isinstance(note.get(name), kind) for name, kind in kinds.items())

    @property
    def is_finished(self) -> bool:
        return os.path.exists(self.file(RESULTS_FILE))

    def later_files(self) -> list[str]:
        """What makes room for the run: all that a run writes, or for a resume what came later than its checkpoint."""
        if not os.path.isdir(self.path):
            return []
        outputs = [name for name in os.listdir(self.path) if is_output(name, self.own)]
        if not self.resume.origin:
            return outputs
        later = [RESULTS_FILE, *(name for name in outputs if TEMPORARY.fullmatch(name))]
        if self.resume.search_checkpoint:
            later += [RANKS_FILE, *(os.path.join(SEARCH_FOLDER, name) for name in (COST_FILE, HANDOVER_FILE))]
            later += [name for name in outputs if name.startswith("checkpoint-")]
        # a checkpoint that was passed over: a new one would be written among its files
        phase = SEARCH_FOLDER if self.resume.search_checkpoint else ""
        steps = checkpoint_steps(self.file(phase))
        later += [os.path.join(phase, f"checkpoint-{step}") for step in steps if step > self.resume.origin["step"]]
        return [name for name in later if os.path.exists(self.file(name))]

    def check(self, inputs: dict[str, str | None], overwrite: bool, resuming: bool) -> None:
        """Raise `ValueError` for a folder that a training cannot have.

        Args:
            inputs: {argument: path} of what the run reads; it must not lie where the run writes.
            overwrite: a finished run may be replaced.
            resuming: a run is to go on.
        """
        self._check_again = partial(self.check, inputs, overwrite, resuming)
        if not (resuming and self.has_note):
            self._refuse_files_of_others()
        self._check_inputs_stay(inputs)
        self._refuse_what_cannot_move()
        if self.is_finished and not overwrite and not resuming:
            raise ValueError(
                f"{self.path} holds a finished run. Add --overwrite to replace it, or give another --output_dir."
            )

    def check_place(self) -> None:
        """Raise `ValueError` for a path that cannot be a folder that is written to."""
        if not self.path:
            raise ValueError("output_dir is empty. Give a folder, or leave --output_dir out.")
        parent = self.path
        while parent and not os.path.exists(parent):
            parent = os.path.dirname(parent)
        if parent and not os.path.isdir(parent):
            raise ValueError(f"output_dir {self.path} lies on a file ({parent}). Give another --output_dir.")
        if not os.access(parent or ".", os.W_OK):
            raise ValueError(f"output_dir {self.path} cannot be written. Give another --output_dir.")

    def check_clearing(self) -> None:
        """Raise `ValueError` for a run that is to go on where run.json is damaged, or another program's: the
        checkpoint in the same folder tells that the run is ours, but nothing is cleared on that word alone."""
        if not self.has_note or self.is_ours:
            return
        checkpoint = self.resume.train_checkpoint or self.resume.search_checkpoint or self.path
        if self.resume.origin is None or self._place_of(checkpoint).startswith(os.pardir):
            self._refuse_files_of_others()
        elif later := self.later_files():
            raise ValueError(
                f"{self.path} has a damaged {RUN_FILE}, and to go on the run would have to remove {later[0]}. Remove "
                "it yourself, or give another --output_dir."
            )

    def _refuse_files_of_others(self) -> None:
        if self.is_ours or not os.path.isdir(self.path):
            return
        present = set(os.listdir(self.path)).difference(LOCK_FILES)
        others = sorted(filter(self._is_written, present))
        if others:
            raise ValueError(
                f"{self.path} holds files that no run of this package wrote ({', '.join(others[:3])}), and the run "
                "would replace them. Give another --output_dir."
            )

    def _refuse_what_cannot_move(self) -> None:
        present = os.listdir(self.path) if os.path.isdir(self.path) else ()
        written = [name for name in present if self._is_written(name) or name == ASIDE_FOLDER]
        refuse_links(self.path, written)
        check_movable(map(self.file, written))

    def _is_written(self, name: str) -> bool:
        """Whether a run writes a file or folder of this name."""
        return is_output(name, self.own) or name in (RUN_FILE, *LOCK_FILES, *TOKENIZER_FILES)

    def _check_inputs_stay(self, inputs: dict[str, str | None]) -> None:
        if not os.path.isdir(self.path):
            return
        for name, path in inputs.items():
            if path and os.path.exists(path):
                place = self._place_of(path)
                if place == os.curdir or is_output(place.split(os.sep)[0], self.own):
                    raise ValueError(f"--{name} {path} lies where this run writes its own. Give another --output_dir.")

    def _place_of(self, path: str) -> str:
        return os.path.relpath(os.path.realpath(path), os.path.realpath(self.path))

    # ---- writing

    @contextmanager
    def claim(self, note: dict) -> Iterator[None]:
        """Inside, the folder is there, and this run's alone: a lock is held that the kernel lets go of when the
        process dies. A folder that was made for it and left empty is removed again; what a run replaced that fails
        before its first checkpoint is put back.

        Args:
            note: the content of run.json, which `clear` writes.
        Raises:
            UsageError: if the folder cannot be made, or is another run's by now; in every process.
        """
        made, lock = not os.path.isdir(self.path), RunLock(self.path)
        if refusal := of_the_first(self._take(lock) if self.is_main_process else None):
            raise UsageError(refusal)
        self._note, self._cleared, self._seen = note, False, seen(self.path)
        try:
            yield
        finally:
            if self.is_main_process:
                self._undo()
                if made and set(os.listdir(self.path)) <= set(LOCK_FILES):
                    os.remove(self.file(LOCK_FILE))
                lock.release()
                if made:
                    with suppress(OSError):
                        os.rmdir(self.path)  # which fails where anything lies in it

    def _take(self, lock: RunLock) -> str | None:
        """Make and lock the folder, and look at it again; why that cannot be, or None."""
        try:
            os.makedirs(self.path, exist_ok=True)
        except (OSError, ValueError) as error:  # a read-only place, a name that no folder can have
            reason = getattr(error, "strerror", None) or error
            return f"output_dir {self.path!r} cannot be made: {reason}. Give another --output_dir."
        try:
            lock.take()
            self._check_again()
        except ValueError as error:  # another run has the folder, or has finished there
            lock.release()
            return str(error)
        return None

    def clear(self) -> None:
        """Once in a claim, before anything else is written: make room for a run from the beginning, or after a resume
        for what comes later than its checkpoint; then say in run.json whose the folder is."""
        if self._cleared:
            return
        self._cleared = True
        if self.is_main_process:
            remove_empty(self.path, self.own)  # of a Trainer that was just built
            self._aside = Aside(self.path)
            self._aside.take(self.later_files(), (RUN_FILE, *TOKENIZER_FILES))
            self._kept = self._own_files()
            self.write_json(RUN_FILE, self._note)
        wait_for_everyone()

    def _own_files(self) -> set[str]:
        """Of a run in the folder, as `ranks.json`, `checkpoint-3` or `search/checkpoint-3`."""
        top = [name for name in os.listdir(self.path) if is_output(name, self.own) or name == RUN_FILE]
        folders = [name for name in top if name in self.own and os.path.isdir(self.file(name))]
        inside = [os.path.join(folder, name) for folder in folders for name in os.listdir(self.file(folder))]
        return {name for name in (*top, *inside) if name not in folders}

    def _undo(self) -> None:
        """After a run that has not finished: where it leaves nothing to go on from, the folder is as it was."""
        if self._aside is None:
            return
        new = self._own_files() - self._kept
        if not any(self._is_progress(name) for name in new):
            remove(self.path, new)
            remove_empty(self.path, self.own)
            self._aside.give_back()
        elif self._aside.holds(RESULTS_FILE):
            logger.warning(f"the run that this one was to replace lies in {self._aside.all}, until one is finished")
        self._aside = None

    def _is_progress(self, name: str) -> bool:
        """Whether something new is worth keeping of a run that failed: all but its note, the record of a search, and
        what is not whole."""
        if os.path.isdir(self.file(name)):
            return any(os.path.exists(self.file(name, own)) for own in (MANIFEST, TRIAL_FILE))
        own = os.path.basename(name)
        return own not in (RUN_FILE, HISTORY_FILE) and not TEMPORARY.fullmatch(own)

    def write_json(self, name: str, content: dict) -> None:
        write_json(self.file(name), content, indent=4, sort_keys=True)

    def publish(self, results: dict) -> None:
        """Write all_results.json, last: it marks the run as finished, and what it replaced goes; before it the record
        of what was written."""
        text = json_text(results, RESULTS_FILE, indent=4, sort_keys=True)
        write_record(self.path, self._seen, {RESULTS_FILE: text})
        write_atomically(self.file(RESULTS_FILE), text)
        if self._aside is not None:
            self._aside.drop()
            self._aside = None

    def add_results(self, scores: dict) -> None:
        """Put new scores into all_results.json of a finished run; nothing where the folder holds none of ours."""
        try:
            # what the run wrote: a push would send whatever else has taken its place, a link's target too
            results = parse_json(recorded_text(self.path, RESULTS_FILE))
        except ValueError:
            return
        if self.is_ours and isinstance(results, dict):
            text = json_text({**results, **scores}, RESULTS_FILE, indent=4, sort_keys=True)
            add_to_record(self.path, RESULTS_FILE, text)
            write_atomically(self.file(RESULTS_FILE), text)
