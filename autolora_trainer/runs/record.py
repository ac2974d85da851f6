"""What a run wrote, by its own record: of all that lies in a folder, these files alone may be pushed.

A folder may come from elsewhere, and a name in it be a link to a private key. So a file is pushed if it is a regular
one, reached through no link, and holds what the record says that the run wrote under its name.
"""

import fnmatch
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from autolora_trainer.files import open_regular, read_bounded, read_json, write_json
from autolora_trainer.runs.outputs import PUSHED_FILES, RECORD_FILE


class RecordError(ValueError):
    """There is nothing that may be pushed, or something has taken its place."""


Seen = dict[str, tuple[int, int, int]]  # {name: inode, size and time} of files


def seen(folder: str | os.PathLike) -> Seen:
    """The files in a folder that could be pushed, as they are before a run writes there."""
    found = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        status = os.lstat(os.path.join(folder, name))
        if any(fnmatch.fnmatchcase(name, kind) for kind in PUSHED_FILES) and stat.S_ISREG(status.st_mode):
            found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def write_record(folder: str | os.PathLike, before: Mapping, texts: Mapping[str, str] | None = None) -> None:
    """Write down what has been written.

    Args:
        before: `seen` before that.
        texts: {name: content} of files that are about to be written.
    """
    names = [name for name, status in seen(folder).items() if before.get(name) != status]
    files = {name: _of_file(os.path.join(folder, name)) for name in names}
    files |= {name: _of_text(text) for name, text in (texts or {}).items()}
    write_json(os.path.join(folder, RECORD_FILE), {"files": files}, indent=1, sort_keys=True)


def add_to_record(folder: str | os.PathLike, name: str, text: str) -> None:
    """Write down that a file of a finished run is about to be written anew."""
    files = {**recorded(folder), name: _of_text(text)}
    write_json(os.path.join(folder, RECORD_FILE), {"files": files}, indent=1, sort_keys=True)


def recorded_text(folder: str | os.PathLike, name: str) -> str:
    """The text that a run wrote under a name.

    Raises:
        RecordError: if there is another by now, which may be anybody's.
    """
    with suppress(OSError, ValueError):
        text = read_bounded(os.path.join(folder, name), follow=False)
        if _of_text(text) == recorded(folder).get(name):
            return text
    raise RecordError(f"{name} in {folder} is not what the run wrote.")


def recorded(folder: str | os.PathLike) -> dict[str, dict]:
    """{name: {"bytes", "sha256"}} of what a run wrote into a folder.

    Raises:
        RecordError: if there is no record, or it is none.
    """
    path = os.path.join(folder, RECORD_FILE)
    try:
        files = read_json(path, follow=False)["files"]
        valid = all(_is_entry(name, entry) for name, entry in files.items())
    except FileNotFoundError:
        raise RecordError(
            f"{folder} has no {RECORD_FILE}, the record of what a run wrote, and nothing else is pushed. Give the "
            "folder of a run, as it was written."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise RecordError(f"{path} is damaged, and only what it names is pushed. Run again, or upload by hand.")
    return files


@contextmanager
def staged(folder: str | os.PathLike) -> Iterator[str]:
    """A private folder with the files that a run wrote into `folder`, and nothing else, while it lasts.

    Raises:
        RecordError: if one of them is another than the run wrote, or a link.
    """
    folder = os.fspath(folder)
    files = recorded(folder)
    place = os.path.join(
        folder, f".{RECORD_FILE}.{secrets.token_hex(8)}.tmp"
    )  # the next run clears what a kill leaves
    try:
        os.mkdir(place, 0o700)
    except OSError:  # a folder that is only read
        place = tempfile.mkdtemp()
    try:
        for name, entry in files.items():
            path, own = os.path.join(folder, name), os.path.join(place, name)
            try:
                _bring(path, own)
                same = _of_file(own) == entry
            except (OSError, ValueError):
                same = False
            if not same:
                raise RecordError(
                    f"{path} is not the file that the run wrote, and is not pushed. Put that back, or run again; a "
                    "card is edited on the Hub."
                )
        yield place
    finally:
        shutil.rmtree(place)


def _bring(path: str, own: str) -> None:
    """Another name for a file, or a copy where the file system has no second names; a link stays a link."""
    try:
        os.link(path, own, follow_symlinks=False)
    except (OSError, NotImplementedError):
        with open_regular(path, follow=False) as source, open(own, "xb") as target:
            shutil.copyfileobj(source, target)


def _of_file(path: str) -> dict:
    with open_regular(path, follow=False) as file:
        size = os.fstat(file.fileno()).st_size
        return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _of_text(text: str) -> dict:
    content = text.encode("utf-8")
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _is_entry(name, entry) -> bool:
    known = any(fnmatch.fnmatchcase(name, kind) for kind in PUSHED_FILES) and "/" not in name
    kinds = {"bytes": int, "sha256": str}
    whole = entry.keys() == kinds.keys() and all(type(entry[key]) is kind for key, kind in kinds.items())
    return known and whole and re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]) is not None
