"""Files of ours: written whole or not at all, through no link, and read with bounds and one line for what is wrong."""

import errno
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from autolora_trainer.errors import NonFiniteError

MOST_BYTES = 20_000_000  # of a file that is read as a whole
MOST_BRACKETS = 500_000  # of JSON: an empty list takes 2 bytes in a file, and 64 in memory
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")  # a file that was being written when its run was killed
NO_LINK, NO_WAIT = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))  # 0: where there is no such thing

# ---- writing


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """The name of a new file to write in place of `path`, which then holds all of it or what it held before: a kill in
    between, or a full disk, leaves the old one. A link of either name is not followed: nobody can have made the new
    name, and the old one is replaced itself."""
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666))  # less the umask
    try:
        yield temporary
        with open(temporary, "rb+", opener=no_link) as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise


def no_link(path: str, flags: int) -> int:
    """An `opener` for `open`, which follows no link of the last name."""
    return os.open(path, flags | NO_LINK, 0o666)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all; in UTF-8, whatever the locale. What came in undecoded goes out as it
    came: under LC_ALL=C, Python reads an umlaut of the command line as two bytes."""
    form = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}
    with replacing(path) as temporary, open(temporary, "w", **form) as file:
        file.write(text)


def json_text(content, name: str, indent: int | None = None, sort_keys: bool = False) -> str:
    """The text of a JSON file.

    Raises:
        NonFiniteError: for content with NaN or infinity, for which JSON has no word.
    """
    try:
        return json.dumps(content, indent=indent, sort_keys=sort_keys, allow_nan=False) + "\n"
    except ValueError:
        if (place := no_number(content)) is None:
            raise
        raise NonFiniteError(f"{place.lstrip('.')} is NaN or infinite, and {name} was not written with it.") from None


def no_number(content, place: str = "") -> str | None:
    """Where in a document the first NaN or infinity stands, as `name.0.name`; None where there is none."""
    if isinstance(content, float):
        return None if math.isfinite(content) else place
    if isinstance(content, dict):
        parts = content.items()
    else:
        parts = enumerate(content) if isinstance(content, (list, tuple)) else ()
    return next(filter(None, (no_number(part, f"{place}.{name}") for name, part in parts)), None)


def write_json(path: str | os.PathLike, content, indent: int | None = None, sort_keys: bool = False) -> None:
    """Write JSON, whole or not at all; `NonFiniteError` for content with NaN or infinity."""
    write_atomically(path, json_text(content, os.path.basename(path), indent, sort_keys))


def refuse_links(folder: str, names: Iterable[str]) -> None:
    """Raise `ValueError` if one of these names in a folder, or anything below it, is a link, or neither file nor
    folder: libraries that write there would write through it, into files of others."""
    for name in names:
        place = os.path.join(folder, name)
        below = (os.path.join(inner, own) for inner, *own_names in os.walk(place) for own in sum(own_names, []))
        for path in (place, *below):
            with suppress(FileNotFoundError):
                mode = os.lstat(path).st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    what = "a link" if stat.S_ISLNK(mode) else "no file"
                    raise ValueError(
                        f"{path} is {what}, and what is written there would go elsewhere. Remove it, or give another "
                        "folder."
                    )


# ---- reading


def _irregular(mode: int) -> str | None:
    """What something is that is neither a file nor a folder: reading a pipe waits for somebody who writes, and a
    device may have no end."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kinds = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def check_regular(path: str | os.PathLike) -> None:
    """Raise `OSError` for what is neither a file nor a folder of such, before a library opens it."""
    inside = os.listdir(path) if os.path.isdir(path) else ()
    for place in (path, *(os.path.join(path, name) for name in inside)):
        if (place == path or os.path.exists(place)) and (what := _irregular(os.stat(place).st_mode)):
            raise OSError(errno.EINVAL, f"it is {what}, not a file", os.fspath(place))


def open_regular(path: str | os.PathLike, follow: bool = True):
    """A regular file, opened for reading bytes.

    Args:
        follow: a link of the last name is followed.
    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is something else, without its name.
    """
    descriptor = os.open(path, os.O_RDONLY | NO_WAIT | (0 if follow else NO_LINK))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise ValueError(f"it is {_irregular(mode)}, not a file")


def read_bounded(path: str | os.PathLike, most: int = MOST_BYTES, follow: bool = True) -> str:
    """The text of a file; `ValueError`, without its name, for one that is too large, no regular file or not UTF-8."""
    with open_regular(path, follow) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"it has {size:,} bytes, and at most {most:,} are read")
        return file.read(most).decode("utf-8")


def parse_json(text: str, **settings):
    """JSON of a stranger's; `ValueError`, one line, for what is none or would take too much memory."""
    if text.count("[") + text.count("{") > MOST_BRACKETS:
        raise ValueError(f"it holds more than {MOST_BRACKETS:,} lists and objects")
    try:
        return json.loads(text, **settings)
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def read_json(path: str | os.PathLike, most: int = MOST_BYTES, follow: bool = True):
    """The content of a JSON file of an earlier part of a run, or of a stranger's; `ValueError`, which names it, if it
    is no JSON or too large."""
    try:
        return parse_json(read_bounded(path, most, follow))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Remove it to do without it.") from None
