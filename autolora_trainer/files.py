"""Files of ours: written whole or not at all, and read with one line for what is wrong with them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


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
    """Write a text file whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: str | os.PathLike, content, indent: int | None = None, sort_keys: bool = False) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=indent, sort_keys=sort_keys) + "\n")


def read_json(path: str):
    """The content of a JSON file of an earlier part of a run; `ValueError`, which names it, if it is no JSON."""
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}. Remove it to do without it.") from None
