"""Help as it is shown: a sentence, examples, and the arguments in groups, in at most 100 columns."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterable

from autolora_trainer.machine import BOLD, takes_colour

WIDTH = 100  # columns, at most
COLUMN = 34  # where the text of an argument begins
SHORT = 32  # characters of the choices that stand beside an argument; longer ones follow its text


class Helpful(argparse.ArgumentParser):
    """A parser whose help has the form of this file.

    Attributes:
        examples: command lines, as they are typed.
    """

    examples: tuple[str, ...] = ()

    def groups(self) -> dict[str, list[argparse.Action]]:
        """{title: arguments}, in the order in which help shows them."""
        return {group.title: group._group_actions for group in self._action_groups}

    def format_help(self) -> str:
        return self.help_text(bold=False)

    def print_help(self, file=None) -> None:
        file = sys.stdout if file is None else file
        print(self.help_text(bold=takes_colour(file)), end="", file=file)

    def help_text(self, bold: bool) -> str:
        """The whole help.

        Args:
            bold: whether titles are in bold, for a terminal.
        """
        width = max(COLUMN + 20, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
        parts = [[line for text in (self.description or "").splitlines() for line in _wrapped(text, width)]]
        parts.append(_wrapped(f"usage: {self.prog} {self._needs()}", width, "  "))
        if self.examples:
            parts.append([_title("examples", bold), *(f"  {line}" for line in self.examples)])
        for title, actions in self.groups().items():
            lines = [line for action in actions if action.help != argparse.SUPPRESS for line in _entry(action, width)]
            if lines:
                parts.append([_title(title, bold), *lines])
        return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"

    def _needs(self) -> str:
        """What has to be typed, and that there is more."""
        of_one_kind = [group for group in self._mutually_exclusive_groups if group.required]
        words = [value_of(action) for action in self._actions if not action.option_strings]
        for group in of_one_kind:
            words.append("(" + " | ".join(name_of(action) for action in group._group_actions) + ")")
        words += [name_of(action) for action in self._actions if action.option_strings and action.required]
        ends = ("help", "version")  # what shows something, and is no argument of a run
        others = (a for a in self._actions if a.option_strings and not a.required and a.dest not in ends)
        more = any(others) or any(action.nargs == argparse.PARSER for action in self._actions)
        return " ".join(words + ["[argument ...]"] * more)


def _title(title: str, bold: bool) -> str:
    return f"{BOLD}{title}\x1b[0m:" if bold else f"{title}:"


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of a text; one that is indented is an example, and stays as it is."""
    if text.startswith(" ") or not text:
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def value_of(action: argparse.Action) -> str:
    """What is typed after an argument: its choices, N for a whole number, X for another, a word for the rest; nothing
    after a switch.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> value_of(parser.add_argument("--eval_file")), value_of(parser.add_argument("--size", choices=("a", "b")))
        ('FILE', 'a|b')
    """
    if action.nargs == 0:
        return ""
    if action.metavar is not None:
        return str(action.metavar)
    choices = "|".join(map(str, action.choices or ()))
    if 0 < len(choices) <= SHORT:
        return choices
    if getattr(action.type, "__name__", "") == "string_to_bool":  # of HfArgumentParser
        return "" if action.nargs == "?" and not action.default else "true|false"
    word = {int: "N", float: "X"}.get(action.type, action.dest.rpartition("_")[2].upper())
    return {"+": f"{word} ...", "*": f"[{word} ...]", argparse.REMAINDER: "..."}.get(action.nargs, word)


def name_of(action: argparse.Action) -> str:
    """An argument as it is typed, in the first of its spellings, with its value."""
    names = action.option_strings
    spelled = [name for name in names if "-" not in name[2:] or name[2:].replace("-", "_") == name[2:]]
    return " ".join(word for word in (", ".join(spelled or names[:1]), value_of(action)) if word)


def text_of(action: argparse.Action) -> str:
    """What an argument is for, its choices where they are many, and its default where the text has none."""
    text = (action.help or "") % vars(action)
    if action.choices is not None and action.metavar is None and len("|".join(map(str, action.choices))) > SHORT:
        text = f"{text.rstrip('.')}. One of {', '.join(map(str, action.choices))}."
    default = action.default
    silent = default is None or default is False or default in ("", argparse.SUPPRESS) or action.nargs == 0
    if silent or action.required or "default" in text.lower():
        return text
    default = getattr(default, "value", default)
    shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
    text = f"{text.rstrip('.')}. " if text else ""
    return f"{text}Default: {'true' if default is True else shown}."


def _entry(action: argparse.Action, width: int) -> list[str]:
    """The lines of one argument."""
    name, text = f"  {name_of(action)}", textwrap.wrap(text_of(action), width - COLUMN, break_on_hyphens=False)
    lines = [" " * COLUMN + line for line in text]
    if len(name) > COLUMN - 2 or not lines:
        return [name, *lines]
    return [name.ljust(COLUMN) + text[0], *lines[1:]]


def first_of_each(actions: Iterable[argparse.Action]) -> list[argparse.Action]:
    """Without the second switch of one argument, `--no_x` beside `--x true|false`."""
    found: dict[str, argparse.Action] = {}
    for action in actions:
        found.setdefault(action.dest, action)
    return list(found.values())
