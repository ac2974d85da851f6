"""Text as it may leave a program: without secrets, and without what a terminal would obey.

One function, `clean`, and the places that text leaves by: what is said, logged and warned of.
"""

import functools
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, unquote

SECRET = re.compile(r"token(?!i[sz])|secret|key(?!w)|passw|credential", re.IGNORECASE)  # names of what is secret
# tokens of the Hub, also where one stands close behind another word; a shorter one has more than small letters, or
# `rlhf_experiments` and `hf_checkpoints` would be some
HUB_TOKEN = re.compile(
    r"hf_[A-Za-z0-9]{30,}|(?<![A-Za-z])(?:hf_oauth_[\w.\-]{8,}|(?:hf|api_org)_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{10,})",
    re.ASCII,
)
SURE_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}", re.ASCII)
# user:password@host, with or without a scheme; a password that was not encoded may hold / and @. Lengths are bounded,
# or a text of a stranger's could take hours.
PASSWORD = re.compile(
    r"""(?<=//)(?:[^\s/@:'"<>]{0,200}:[^\s'"<>]{0,500}|[^\s/'"<>]{0,500})@"""
    r"""|(?<![\w/:.])[\w.+-]{1,200}:[^\s/@:'"<>]{3,500}@(?=[\w-]+[.:/])"""
)
SECRET_WORDS = "token|secret|key|passw|credential|signature"
QUERY = re.compile(rf"([?&;][^?=&;\s#]{{0,100}}(?:{SECRET_WORDS})[^?=&;\s#]{{0,100}}=)[^&;\s#'\"]+", re.IGNORECASE)
HEADER = re.compile(r"\b(Bearer|Basic)\s+(?=\S{0,200}[\d=_])[\w.~+/=-]{8,}")
# Control characters but tab and line feed, what turns the direction of text around, line separators, invisible tags,
# and halves of characters, which no file or terminal takes.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
SHORTEST = 6  # characters of a secret that is looked for in texts
_kept: set[str] = set()


def keep_secret(value) -> None:
    """From now on, leave a value out of all text."""
    if isinstance(value, str) and len(value.strip()) >= SHORTEST:
        _kept.add(value.strip())


def without_secrets(text: str) -> str:
    """Text with `***` for the Hub's tokens, for what was typed as a secret, for the values of environment variables
    that are named as secrets, and for what addresses and headers carry.

    Example:
        >>> without_secrets("no such file: https://me:hunter2@host/x.json?api_key=abc")
        'no such file: https://***@host/x.json?api_key=***'
    """
    for value in _spellings(frozenset(_kept | _of_the_environment())):
        text = text.replace(value, "***")
    text = PASSWORD.sub("***@", text) if "@" in text else text
    return HUB_TOKEN.sub("***", HEADER.sub(r"\1 ***", QUERY.sub(r"\1***", text)))


def _of_the_environment() -> set[str]:
    named = {value for name, value in os.environ.items() if len(value) >= 8 and SECRET.search(name)}
    users = [value.partition("//")[2].rpartition("@")[0] for value in os.environ.values() if "//" in value]
    return named | {password for user in users if len(password := user.partition(":")[2]) >= SHORTEST}


@functools.lru_cache(maxsize=8)
def _spellings(values: frozenset[str]) -> list[str]:
    """As they are, in addresses and in JSON; the longest first, as one secret may begin another."""
    forms = (str, quote, lambda value: quote(value, safe=""), unquote, lambda value: json.dumps(value)[1:-1])
    found = {form(value) for value in values for form in forms}
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def public(value):
    """The same for what JSON holds: text, lists and objects.

    Example:
        >>> public({"a": ["hf_" + 12 * "A1", 3]})
        {'a': ['***', 3]}
    """
    if isinstance(value, dict):
        return {name: public(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(own) for own in value]
    return without_secrets(value) if isinstance(value, str) else value


def printable(text: str, instead: str = "?") -> str:
    """Text of one or several lines that a terminal shows and does not obey; umlauts and CJK stay.

    Example:
        >>> printable("Größe \\x1b[31m漢字")
        'Größe ?[31m漢字'
    """
    return CONTROL.sub(instead, text.replace("\r\n", "\n"))


def clean(text) -> str:
    """What may leave of a text, or of what has one."""
    return printable(without_secrets(str(text)))


def say(text) -> None:
    print(clean(text), flush=True)


# ---- command lines and tokens


def is_secret(name: str, value: str = "") -> bool:
    """Whether an argument or variable of this name holds a secret; `max_new_tokens 5` does not."""
    counts = name.lower().endswith("tokens") and re.fullmatch(r"[\d.]+|true|false", value, re.IGNORECASE)
    return bool(SECRET.search(name)) and not counts


def hide_secrets(argv: list[str]) -> list[str]:
    """A command line without secrets: trackers send `sys.argv` along (seen with wandb 0.31).

    Example:
        >>> hide_secrets(["--hub-token", "hf_abc", "--token=hf_abc", "--seed", "1"])
        ['--hub-token', '***', '--token=***', '--seed', '1']
    """
    hidden, flag = [], ""
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            flag = name
            shown = "***" if is_secret(flag, value) else without_secrets(value)
            hidden.append(without_secrets(name) + (equals and equals + shown))
        else:
            hidden.append("***" if is_secret(flag, word) else without_secrets(word))
    return hidden


def usable_token(token, argument: str = "token"):
    """A token as it may be sent: without the blanks and line breaks that copying leaves at its ends; None for nothing.

    Raises:
        ValueError: for one with others inside, which no header takes; the sentence does not repeat it.
    """
    if not isinstance(token, str):
        return token
    token = token.strip(" \t\r\n\v\f\ufeff")
    keep_secret(token)
    if not all("!" <= character <= "~" for character in token):
        raise ValueError(f"{argument} holds blanks or characters that no token has. Copy it again, as a whole.")
    return token or None


# ---- where text leaves


class _CleanRecord(logging.LogRecord):
    """What any logger says, whichever handler writes it."""

    def getMessage(self):
        return clean(super().getMessage())

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = clean("".join(traceback.format_exception(*self.exc_info))).rstrip("\n")


class _CleanStream:
    """A stream that no secret passes, whoever writes; a bar's control characters do."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text) -> int:
        self._stream.write(without_secrets(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextmanager
def clean_output() -> Iterator[None]:
    """Inside, what is printed, logged and warned of by anybody is clean."""
    streams, factory, form = (sys.stdout, sys.stderr), logging.getLogRecordFactory(), warnings.formatwarning
    sys.stdout, sys.stderr = (stream and _CleanStream(stream) for stream in streams)
    logging.setLogRecordFactory(_CleanRecord)
    warnings.formatwarning = lambda *args, **kwargs: clean(form(*args, **kwargs))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = form
