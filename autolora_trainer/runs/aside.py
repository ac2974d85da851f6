"""What a new run replaces, put aside until the new one is finished: a run that fails costs no other."""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress

ASIDE_FOLDER = ".replaced"  # in the output folder, so that nothing is copied


class Aside:
    """Files and folders of an output folder, moved into `.replaced/1` there; or into 2, where an earlier run that was
    to replace others did not finish.

    Args:
        place: the output folder.
    """

    def __init__(self, place: str):
        self.place, self.all = place, os.path.join(place, ASIDE_FOLDER)
        taken = [int(name) for name in os.listdir(self.all) if name.isdigit()] if os.path.isdir(self.all) else []
        self.folder = os.path.join(self.all, str(max(taken, default=0) + 1))

    def holds(self, name: str) -> bool:
        """Whether some run that lies aside has such a file."""
        numbers = os.listdir(self.all) if os.path.isdir(self.all) else []
        return any(os.path.exists(os.path.join(self.all, number, name)) for number in numbers)

    def take(self, names: Iterable[str], copies: Iterable[str] = ()) -> None:
        """Move `names`, as `search/checkpoint-3`; of `copies`, which a run writes over, keep a copy."""
        for name in names:
            os.makedirs(os.path.dirname(os.path.join(self.folder, name)), exist_ok=True)
            os.rename(os.path.join(self.place, name), os.path.join(self.folder, name))
        for name in filter(self._is_there, copies):
            os.makedirs(self.folder, exist_ok=True)
            shutil.copy2(os.path.join(self.place, name), os.path.join(self.folder, name))

    def give_back(self) -> None:
        """Move all to where it was, over what lies there."""
        for folder, _, names in os.walk(self.folder, topdown=False):
            own = os.path.relpath(folder, self.folder)
            os.makedirs(os.path.join(self.place, own), exist_ok=True)
            for name in names:
                os.replace(os.path.join(folder, name), os.path.join(self.place, own, name))
            os.rmdir(folder)
        with suppress(OSError):
            os.rmdir(self.all)  # which fails where another lies there

    def drop(self) -> None:
        """Remove all that lies aside: the new run is finished."""
        if os.path.isdir(self.all):
            shutil.rmtree(self.all)

    def _is_there(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.place, name))


def check_movable(paths: Iterable[str]) -> None:
    """Raise `ValueError` for a mount, or a folder that is another user's: a run would be half there."""
    for path in paths:
        if os.path.ismount(path):
            what = "a mount"
        elif os.path.isdir(path) and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            what = "not yours to write"
        else:
            continue
        raise ValueError(
            f"{path} is {what}, and a run makes its own in its place. Move it away, or give another --output_dir."
        )


def remove(place: str, names: Iterable[str]) -> None:
    """Remove files, and folders with all that is in them."""
    for name in names:
        path = os.path.join(place, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)


def remove_empty(place: str, names: Iterable[str]) -> None:
    """Remove those folders in which nothing lies."""
    for name in names:
        with suppress(OSError):  # something lies in it, or there is none
            os.rmdir(os.path.join(place, name))
