"""Does the help of `autolora` and of its verbs show every argument in one group, and do its examples parse?"""

import re
import shlex

import pytest

import run_glue
from autolora_trainer.commands import cli
from autolora_trainer.commands.arguments import VERBS, parser
from tests.helpers.commands import groups_of_help


def shown(capsys, *typed):
    with pytest.raises(SystemExit) as ended:
        cli.main([*typed, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and max(map(len, text.splitlines())) <= 100
    return text


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """What `run_glue` was told to do; it stops there."""
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_glue, "execute", lambda task, *groups: seen.append(groups) or {})
    return seen


def test_the_verbs_are_told_with_two_examples_each(capsys):
    whole = shown(capsys)
    assert re.findall(r"^(\w+): ", whole, re.MULTILINE) == [*VERBS, "usage"]
    for verb in VERBS:
        assert len(re.findall(rf"^  autolora {verb}\b", whole, re.MULTILINE)) == 2


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_a_sentence_two_examples_and_groups(capsys, parsed, verb):
    text = shown(capsys, verb)
    examples = re.search(r"^examples:\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE)[1].splitlines()
    assert re.match(r"[A-Z][^\n]*?(\n[^\n]+)?\.\n\n", text) and len(examples) == 2
    for line in examples:
        program, *words = shlex.split(line, comments=True)
        assert program == "autolora" and words[0] == verb
        if verb == "run" and "--help" not in words:
            cli.main(words)
        else:
            parser().parse_args(words)
    groups = groups_of_help(text)
    listed = [name for group in groups.values() for name in group]
    known = [name for name in parser().names[verb] if re.search(rf"--{name}\b", text)]
    assert sorted(listed) == sorted(known) and len(set(listed)) == len(listed)
    assert not {"options", "positional arguments"} & set(groups) and list(groups)[-1] == "more"
