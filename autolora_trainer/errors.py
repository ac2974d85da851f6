"""One line on stderr for whatever goes wrong: what was given, what is needed, what to type next."""

import os
import sys
import threading
import traceback
from contextlib import contextmanager

from autolora_trainer.clean import clean, clean_output
from autolora_trainer.machine import RED, advice, emphasized, forgiving_streams, is_full_disk, output_is_closed

LONGEST = 4000  # characters of a message, whatever a file holds


class UsageError(ValueError):
    """The user's arguments, data or configuration: exit status 2."""


class Terminated(Exception):
    """A run was told to stop (SIGTERM), and has; the message says where it goes on."""

    status = 143  # as of a shell


class Interrupted(Terminated, KeyboardInterrupt):
    """The same by Ctrl-C."""

    status = 130


class NonFiniteError(RuntimeError):
    """NaN or infinity where a number is needed. No result is made of it, and nothing of it is saved."""


def is_first_process() -> bool:
    """Whether this process is the first of those that `torchrun` or `accelerate launch` has started, or the only one:
    it alone prints and writes."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") in ("0", "1", "")  # or left over


@contextmanager
def usage_errors():
    """Around set-up, before anything runs: a `ValueError` or `OSError` there is about what the user gave, unless the
    disk is full or nobody reads."""
    try:
        yield
    except (ValueError, OSError) as error:
        if is_full_disk(error) or isinstance(error, BrokenPipeError):
            raise
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
RESUMES = "type the same command with --resume_from_checkpoint to go on"


def guard_imports(program: str) -> None:
    """From now on what nobody catches is one line as well; for a script, before it imports what takes seconds."""
    sys.excepthook = lambda kind, error, trace: report(error, program, "interrupted; nothing was written.")


def run_guarded(main, program: str, interrupted: str = INTERRUPTED) -> int:
    """Run a script's `main` and turn its exceptions into one line and an exit status: 2 for a `UsageError`, 1 for a
    failure while running, 130 for Ctrl-C, 141 without a word where nobody reads what is printed. `AUTOLORA_DEBUG=1`
    shows the traceback."""
    forgiving_streams()
    heard = threading.excepthook
    threading.excepthook = lambda failed: print(
        f"{program}: warning: {shown(one_line(failed.exc_value))} (in the background)", file=sys.stderr
    )
    try:
        with clean_output():
            main()
            if sys.stdout is not None:
                sys.stdout.flush()
        return 0
    except SystemExit:
        output_is_closed()  # of --help
        raise
    except (Exception, KeyboardInterrupt) as error:
        return report(error, program, interrupted)
    finally:
        threading.excepthook = heard


def report(error: BaseException, program: str, interrupted: str = INTERRUPTED) -> int:
    """One line on stderr for an exception; its exit status."""
    closed = output_is_closed()
    if closed and isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, Terminated):
        message, status = str(error), error.status
    elif isinstance(error, KeyboardInterrupt):
        message, status = interrupted, 130
    else:
        if os.environ.get("AUTOLORA_DEBUG") == "1":
            print(clean("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        usage = isinstance(error, UsageError)
        name = "" if usage else f"{type(error).__name__}: "
        message, status = f"error: {name}{one_line(error)}", 2 if usage else 1
        if more := advice(error, RESUMES if interrupted == INTERRUPTED else "type it again"):
            message = f"{message.rstrip('.')}. {more}"
    text = shown(message)
    if text.startswith("error:"):
        text = text.replace("error:", emphasized("error:", RED, sys.stderr), 1)
    print(f"{program}: {text}", file=sys.stderr)
    return status
