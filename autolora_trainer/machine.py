"""What the machine around a process can lack: a reader, an encoding, room on a disk, file handles, a folder."""

import errno
import os
import re
import select
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

FULL = (errno.ENOSPC, errno.EDQUOT)
# torch and safetensors say that a write failed, and not why
FAILED_WRITE = re.compile(r"inline_container|PytorchStreamWriter|I/O error|file write failed|Error while serializing")
LITTLE_ROOM = 2**24  # bytes; a file that did not fit may be gone by the time that one looks
BOLD, RED = "\x1b[1m", "\x1b[1;31m"  # what a terminal shows text in, until "\x1b[0m"


def is_terminal(stream) -> bool:
    """Whether somebody watches what is written: only there a bar may move and text have a colour."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False


def takes_colour(stream) -> bool:
    """Whether a stream is a terminal that shows colours, and nobody wants none (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def emphasized(text: str, how: str, stream) -> str:
    """A text in `BOLD` or `RED`, where the stream takes that."""
    return f"{how}{text}\x1b[0m" if takes_colour(stream) else text


def forgiving_streams() -> None:
    """Let stdout and stderr show `?` for what their encoding has not got (LC_ALL=C, latin-1), rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # none, closed, or somebody's own
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def check_letters(words: Iterable[str]) -> None:
    """Raise `ValueError` for a word of a command line that this locale does not keep: libraries in Rust take a name
    for UTF-8, and would write beside the folder that was meant, or nowhere."""
    form = sys.getfilesystemencoding()
    bad = [] if form.lower().replace("-", "") == "utf8" else [word for word in words if not word.isascii()]
    if bad:
        raise ValueError(
            f"{bad[0]!a} has letters that {form}, the encoding of this locale, does not keep. Type PYTHONUTF8=1 "
            "before the command."
        )


def output_is_closed() -> bool:
    """Whether stdout or stderr has no reader any more (`| head -1`), or no room. What is still to be written there
    goes nowhere from now on, or the interpreter would complain at its end."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # none, closed, or somebody's own
            descriptor, poll = stream.fileno(), select.poll()
            try:
                stream.flush()
                poll.register(descriptor, 0)
                broken = any(event & select.POLLERR for _, event in poll.poll(0))
            except OSError:
                broken = True
            if broken:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
                closed = True
    return closed


@contextmanager
def naming_a_full_disk(place: str | os.PathLike) -> Iterator[None]:
    """Inside, a write that failed in a library is said to be for want of room where there is none in `place`."""
    try:
        yield
    except Exception as error:
        if FAILED_WRITE.search(str(error)) and not is_full_disk(error) and not has_room(place):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(place)) from error
        raise


def has_room(place: str | os.PathLike) -> bool:
    """Whether a few megabytes can still be written in a folder: what a file system says of itself knows no quota."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(LITTLE_ROOM))
    except OSError as error:
        return error.errno not in FULL
    return True


def is_full_disk(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, is for want of room, in whatever class a library wraps it."""
    seen = []
    while error is not None and error not in seen:
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def advice(error: BaseException, again: str) -> str | None:
    """What to do about a failure whose cause is not the program's.

    Args:
        again: how the command goes on, as a clause.
    """
    if is_full_disk(error):
        named = any(os.strerror(number) in str(error) for number in FULL)
        return f"{'' if named else os.strerror(errno.ENOSPC) + '. '}Free some space, then {again}."
    if os.strerror(errno.EMFILE) in str(error):
        return "Raise the number of files that a process may open, e.g. ulimit -n 1024."
    if sys.flags.optimize > 1 and not isinstance(error, OSError):
        return "Type it without -OO, which takes away the docstrings that transformers reads."
    try:
        os.getcwd()
    except OSError:
        return "The working folder is gone. Change to one that is there (cd), and type it again."
    return None
