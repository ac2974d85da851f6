"""The arguments of commands and scripts, as tables made of their parsers.

A page asks for them by a comment: `<!-- arguments: autolora find -->`, `<!-- arguments: run_glue -->`, or
`<!-- arguments: run_nlg unlike run_glue -->` for those alone that are new there, or say something else.
"""

import argparse
import importlib
import re
from unittest import mock

from autolora_trainer.commands.arguments import parser
from autolora_trainer.scripts import command_line
from autolora_trainer.usage import Helpful, name_of, text_of

ASKED = re.compile(r"^<!-- arguments: (\w+)(?: (?:unlike )?(\w+))? -->$", re.MULTILINE)


def parser_of(program: str, verb: str | None = None) -> Helpful:
    """The parser of a verb of autolora, or of run_glue, run_nlg or run_ner."""
    if program != "autolora":
        return script_parser(program)
    verbs = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return verbs.choices[verb]


def script_parser(program: str) -> Helpful:
    """The parser of run_glue, run_nlg or run_ner, with its defaults, caught as it begins to read its words."""

    class Caught(Exception):
        pass

    def catch(self, *arguments, **settings):
        raise Caught(self)

    with mock.patch.object(command_line.ScriptParser, "parse_args_into_dataclasses", catch):
        try:
            importlib.import_module(program).main([])
        except Caught as caught:
            return caught.args[0]
    raise AssertionError(program)


def cell(text: str) -> str:
    """Text in a cell of a table, whose bars and angle brackets outside `code` are its own.

    Example:
        >>> cell("a|b <c> `d|<e>`")
        'a&#124;b &lt;c> `d|<e>`'
    """
    parts = text.replace("\n", " ").split("`")
    return "`".join(
        part if at % 2 else part.replace("|", "&#124;").replace("<", "&lt;") for at, part in enumerate(parts)
    )


def rows_of(helpful: Helpful) -> dict[str, list[str]]:
    """{title: rows of its table}."""
    return {
        title: [f"| `{name_of(action)}` | {cell(text_of(action))} |"
                for action in actions if action.help != argparse.SUPPRESS]
        for title, actions in helpful.groups().items()
    }  # fmt: skip


def tables(groups: dict[str, list[str]]) -> str:
    """A heading and a table a group that has rows."""
    top = ["| argument | what it does |", "| --- | --- |"]
    parts = [
        "\n".join([f"### {title[0].upper()}{title[1:]}\n", *top, *rows]) for title, rows in groups.items() if rows
    ]
    return "\n\n".join(parts)


def whole(helpful: Helpful) -> str:
    """What it is for, its examples, and its tables."""
    examples = "\n".join(helpful.examples)
    return f"{cell(helpful.description)}\n\n```bash\n{examples}\n```\n\n{tables(rows_of(helpful))}"


def asked_for(match: re.Match) -> str:
    """What a comment asks for."""
    program, other = match.groups()
    if program == "autolora" or other is None:
        return whole(parser_of(program, other))
    groups, known = rows_of(parser_of(program)), sum(rows_of(parser_of(other)).values(), [])
    return tables({title: [row for row in rows if row not in known] for title, rows in groups.items()})


def on_page_markdown(markdown, page, config, files):
    """Put the tables where a page asks for them."""
    return ASKED.sub(asked_for, markdown)
