"""One line on stderr for whatever goes wrong: what was given, what is needed, what to type next."""

import errno
import os
import sys
import traceback
from contextlib import contextmanager

from autolora_trainer.clean import clean, clean_output

LONGEST = 4000  # characters of a message, whatever a file holds


class UsageError(ValueError):
    """The user's arguments, data or configuration: exit status 2."""


class Terminated(Exception):
    """A run was told to stop (SIGTERM), and has; the message says where it goes on. Exit status 143, as of a shell."""


def is_first_process() -> bool:
    """Whether this process is the first of those that `torchrun` or `accelerate launch` has started, or the only one:
    it alone prints and writes."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def usage_errors():
    """Around set-up, before anything runs: a `ValueError` or `OSError` there is about what the user gave."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UsageError(shown(one_line(error))) from error


def one_line(error: BaseException) -> str:
    """The message of an exception without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def shown(text: str, most: int = LONGEST) -> str:
    """A message as it may leave, cut where it is too long; cut last, or the first half of a secret would be left."""
    text = clean(text[: 5 * LONGEST])
    return text if len(text) <= most else text[:most] + " ..."


def sentence(error: BaseException, most: int = 300) -> str:
    """The message of another library's exception as one sentence of at most `most` characters, or a few more.

    Example:
        >>> sentence(ValueError("no such\\nmodule"))
        'no such module.'
    """
    text = shown(one_line(error), most)
    return text if text.endswith((".", "?", "!")) else text + "."


INTERRUPTED = "interrupted; type the same command with --resume_from_checkpoint to go on."


def run_guarded(main, program: str, interrupted: str = INTERRUPTED) -> int:
    """Run a script's `main` and turn its exceptions into one line and an exit status: 2 for a `UsageError`, 1 for a
    failure while running, 130 for Ctrl-C. `AUTOLORA_DEBUG=1` shows the traceback."""
    try:
        with clean_output():
            main()
        return 0
    except KeyboardInterrupt:
        message, status = interrupted, 130
    except Terminated as stop:
        message, status = str(stop), 143
    except Exception as error:
        if os.environ.get("AUTOLORA_DEBUG") == "1":
            print(clean(traceback.format_exc()), end="", file=sys.stderr)
        usage = isinstance(error, UsageError)
        name = "" if usage else f"{type(error).__name__}: "
        message, status = f"error: {name}{one_line(error)}", 2 if usage else 1
        full = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))  # in whatever class a library wraps it
        if any(text in str(error) for text in full):
            message += ". Free some space, then type the same command with --resume_from_checkpoint to go on."
    print(f"{program}: {shown(message)}", file=sys.stderr)
    return status
