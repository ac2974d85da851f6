"""A command and names as they may be published: without this machine's paths, and without secrets."""

import os
import re
import shlex
from collections.abc import Sequence

from autolora_trainer.clean import CONTROL, HUB_TOKEN, is_secret, without_secrets

# name=value and "name": "value" inside a longer value; the Hub's own tokens go wherever they stand (HUB_TOKEN)
INNER_SECRET = re.compile(
    r"""([\w-]*(?:token(?!i[sz])|secret|api_?key|passw|credential)[\w-]*["']?\s*[=:]\s*["']?)[^\s,"'}&]+""",
    re.IGNORECASE,
)
HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.\-]{0,95}/)?[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
HUB_ARGUMENTS = """
    model_name_or_path base_model_id tokenizer_name config_name hub_model_id hub_revision dataset_name
""".split()
EXTENSION = re.compile(r"\.[A-Za-z]\w{0,7}$")


def public_command(argv: Sequence[str]) -> str:
    """A command line as it may be published: it can be typed again, and names neither a folder nor a secret.

    A value that is a path (it holds a separator or exists on disk) keeps its last component: `$DATA/train.jsonl` for a
    file, `train` for a folder, and the bare name for a configuration file or a script. Hub ids (`owner/name`) of
    model and data set arguments stay. Values of arguments named like a token, secret, key or password become `***`,
    and addresses `$URL`. Applied to its own output, split again, it changes nothing.

    Args:
        argv: as in `sys.argv`: the script or program, then its arguments.
    Example:
        >>> public_command(["/home/me/run_glue.py", "--train_file", "/home/me/data/train.jsonl", "--hub_token=hf_abc"])
        'python run_glue.py --train_file $DATA/train.jsonl --hub_token=***'
    """
    words, flag = [], ""
    for position, word in enumerate(map(str, argv)):
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--?[A-Za-z][\w-]*", name):
            flag = name.lstrip("-").replace("-", "_")
            words.append(name + equals + (_public_value(flag, value) if equals else ""))
        elif equals and not flag and re.fullmatch(r"[A-Za-z_]\w*", name):  # HF_HOME=/cache python run_glue.py
            words.append(name + equals + _public_value(name, value))
        elif position == 0:
            words.append(_public_program(word))
        else:
            words.append(_public_value(flag, word))
    return without_secrets(" ".join(words))


def _public_program(word: str) -> str:
    parts = [part for part in re.split(r"[/\\]", word) if part]
    last = parts[-1] if parts else word
    if last == "__main__.py" and len(parts) > 1:
        return f"python -m {shlex.quote(parts[-2])}"
    if last.endswith(".py"):
        return f"python {shlex.quote(last)}"
    return "python" if re.fullmatch(r"python[\d.]*(\.exe)?", last) else shlex.quote(last.removesuffix(".exe"))


def _public_value(flag: str, value: str) -> str:
    """One value, quoted for a shell."""
    if value == "***" or is_secret(flag, value):
        return "***"
    value = HUB_TOKEN.sub("***", INNER_SECRET.sub(r"\1***", value))
    value = value.removeprefix("file://")
    if "://" in value or value == "$URL":
        return "$URL"
    if value.startswith(("{", "[")):
        return shlex.quote(without_paths(value))
    windows = re.match(r"[A-Za-z]:[\\/]|\\\\", value) or (os.sep == "\\" and "\\" in value)
    separated = "/" in value or windows
    exists = os.path.exists(value)
    if not separated and not exists:
        return value if value == "***" else shlex.quote(value)
    if flag in HUB_ARGUMENTS and HUB_ID.fullmatch(value) and not exists:
        return shlex.quote(value)
    last = [part for part in re.split(r"[/\\]" if windows else "/", value) if part not in ("", ".", "..", "~")]
    name = last[-1] if last else "."
    extension = bool(EXTENSION.search(name))
    is_file = os.path.isfile(value) if exists else extension and not flag.endswith("dir")
    bare = flag == "config" or name.endswith((".py", ".yaml", ".yml")) or not (separated or extension)
    if value.startswith("$DATA/") or (is_file and not bare):
        return "$DATA/" + shlex.quote(name)
    return shlex.quote(name)


def without_paths(text: str) -> str:
    """Free text with every path in it cut to its last component."""
    text = re.sub(r"(?<![\w/<.:~])(?:~[\w.-]*|\.{1,2})?(?:/[^\s/\"'<>,]+){2,}/?", _last_component, text)
    return re.sub(r"(?<!\w)(?:[A-Za-z]:[\\/]|\\\\\w)[^\s\"'<>,]*", _last_component, text)


def _last_component(match: re.Match) -> str:
    return [part for part in re.split(r"[/\\]", match[0]) if part][-1]


def on_one_line(text) -> str:
    return " ".join(CONTROL.sub(" ", str(text)).split())


def public_name(text) -> str:
    """A name on one line, without control characters, and without the folders if it is a path."""
    text = on_one_line(text).removeprefix("file://")
    path = text.replace("\\", "/")
    if os.path.isabs(text) or re.match(r"[A-Za-z]:/|~|\.{1,2}/", path) or ("/" in path and os.path.exists(text)):
        return path.rstrip("/").rsplit("/", 1)[-1]
    return without_paths(text)


def is_hub_id(text) -> bool:
    return isinstance(text, str) and bool(HUB_ID.fullmatch(text)) and ".." not in text and not os.path.isdir(text)
