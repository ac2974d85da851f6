"""One run a folder: a lock that the kernel lets go of when its process dies, and a note of who holds it."""

import os
import platform
import time
from contextlib import suppress

from filelock import FileLock, Timeout

from autolora_trainer.files import read_json, write_json

LOCK_FILE = ".run.lock"
OWNER_FILE = ".run.json"  # beside it: whoever asks for the lock empties its file
LOCK_FILES = (LOCK_FILE, OWNER_FILE)


class RunLock:
    """The lock of an output folder, advisory: of this package's runs. On a network file system it is worth what that
    file system's locks are.

    Args:
        place: the folder.
    """

    def __init__(self, place: str):
        self.place, self._owner = place, os.path.join(place, OWNER_FILE)
        self._lock = FileLock(os.path.join(place, LOCK_FILE), timeout=0)

    def take(self) -> None:
        """Raise `ValueError` if another process has it."""
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.place} is another run's{self._holder()}, which has not ended. Wait for it, or give another "
                "--output_dir."
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(self._owner, {"process": os.getpid(), "host": platform.node(), "since": since})

    def release(self) -> None:
        if self._lock.is_locked:
            with suppress(OSError):
                os.remove(self._owner)
            self._lock.release()

    def _holder(self) -> str:
        try:
            return " (process {process} on {host}, since {since})".format(**read_json(self._owner))
        except (OSError, ValueError, KeyError, TypeError):
            return ""
