"""Files of ours: written whole or not at all, and read with one line for what is wrong with them."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autolora_trainer.errors import NonFiniteError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """The name of a file to write in place of `path`, which then holds all of it or what it held before: a kill in
    between, or a full disk, leaves the old one."""
    temporary = f"{os.fspath(path)}.tmp"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all; in UTF-8, whatever the locale. What came in undecoded goes out as it
    came: under LC_ALL=C, Python reads an umlaut of the command line as two bytes."""
    form = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}
    with replacing(path) as temporary, open(temporary, "w", **form) as file:
        file.write(text)


def write_json(path: str | os.PathLike, content, indent: int | None = None, sort_keys: bool = False) -> None:
    """Write JSON, whole or not at all.

    Raises:
        NonFiniteError: for content with NaN or infinity, for which JSON has no word.
    """
    try:
        text = json.dumps(content, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError:
        if (place := no_number(content)) is None:
            raise
        name = os.path.basename(path)
        raise NonFiniteError(f"{place.lstrip('.')} is NaN or infinite, and {name} was not written with it.") from None
    write_atomically(path, text + "\n")


def no_number(content, place: str = "") -> str | None:
    """Where in a document the first NaN or infinity stands, as `name.0.name`; None where there is none."""
    if isinstance(content, float):
        return None if math.isfinite(content) else place
    if isinstance(content, dict):
        parts = content.items()
    else:
        parts = enumerate(content) if isinstance(content, (list, tuple)) else ()
    return next(filter(None, (no_number(part, f"{place}.{name}") for name, part in parts)), None)


def check_regular(path: str | os.PathLike) -> None:
    """Raise `OSError` for what is neither a file nor a folder of such, before it is opened: reading a pipe
    waits for somebody who writes, and a device may have no end."""
    inside = os.listdir(path) if os.path.isdir(path) else ()
    for place in (path, *(os.path.join(path, name) for name in inside)):
        mode = os.stat(place).st_mode if place == path or os.path.exists(place) else stat.S_IFREG  # or a broken link
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kinds = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket"}
            what = kinds.get(stat.S_IFMT(mode), "a device")
            raise OSError(errno.EINVAL, f"it is {what}, not a file", os.fspath(place))


def read_json(path: str):
    """The content of a JSON file of an earlier part of a run; `ValueError`, which names it, if it is no JSON."""
    check_regular(path)
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}. Remove it to do without it.") from None
