"""Help as it is shown: what is typed after an argument, its text, and bold titles where a terminal wants them."""

import argparse
import io
import sys

import pytest

from autolora_trainer.errors import UsageError, report
from autolora_trainer.machine import is_terminal, takes_colour
from autolora_trainer.usage import Helpful


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)


def parser():
    made = Helpful(prog="tool", description="Does it.", add_help=False)
    group = made.add_argument_group("what is given")
    group.add_argument("place", help="a folder")
    group.add_argument("--out_dir", required=True, help="a new one")
    either = group.add_mutually_exclusive_group(required=True)
    either.add_argument("--rank", type=int, help="as a number")
    either.add_argument("--share", type=float, default=0.5, help="of 100 %%, at most")
    group.add_argument("--names", nargs="+", default=["a", "b"], help="of modules")
    group.add_argument("--kind", choices=("x", "y"), default="x")
    group.add_argument("--hidden", help=argparse.SUPPRESS)
    made.examples = ("tool here --rank 1 --out_dir there",)
    return made


def test_help_is_a_sentence_examples_and_groups():
    assert parser().format_help() == """Does it.

usage: tool PLACE (--rank N | --share X) --out_dir DIR [argument ...]

examples:
  tool here --rank 1 --out_dir there

what is given:
  PLACE                           a folder
  --out_dir DIR                   a new one
  --rank N                        as a number
  --share X                       of 100 %, at most. Default: 0.5.
  --names NAMES ...               of modules. Default: a b.
  --kind x|y                      Default: x.
"""


@pytest.mark.parametrize("variables, coloured", [
    ({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": "0"}, False),
    ({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False),
])  # fmt: skip
def test_colours_are_for_terminals_that_want_them(variables, coloured, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for stream, takes in ((Terminal(), coloured), (io.StringIO(), False), (None, False)):
        assert takes_colour(stream) is takes
        if stream is not None:
            parser().print_help(stream)
            assert ("\x1b[1mexamples\x1b[0m:" in stream.getvalue()) is takes
            monkeypatch.setattr(sys, "stderr", stream)
            assert report(UsageError("no \x1b[5m such folder"), "tool") == 2
            said = stream.getvalue().splitlines()[-1]
            assert (
                said
                == f"tool: {chr(27) + '[1;31merror:' + chr(27) + '[0m' if takes else 'error:'} no ?[5m such folder"
            )


def test_a_closed_stream_is_no_terminal():
    closed = io.StringIO()
    closed.close()
    assert not is_terminal(closed) and not is_terminal(None) and is_terminal(Terminal())
