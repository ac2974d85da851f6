"""Does the help of `autolora` and of its verbs show every argument in one group, and do its examples parse?"""

import re
import shlex
import sys

import pytest

import run_glue
from autolora_trainer.commands import cli
from autolora_trainer.commands.arguments import VERBS, parser
from autolora_trainer.errors import UsageError
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
        if verb in ("demo", "run") and "--help" not in words:
            cli.main(words)
        else:
            parser().parse_args(words)
    groups = groups_of_help(text)
    listed = [name for group in groups.values() for name in group]
    known = [name for name in parser().names[verb] if re.search(rf"--{name}\b", text)]
    assert sorted(listed) == sorted(known) and len(set(listed)) == len(listed)
    assert not {"options", "positional arguments"} & set(groups) and list(groups)[-1] == "more"


def test_demo_is_the_sample_through_the_script(parsed, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(sys, "argv", ["/bin/autolora", "demo", "--overwrite", "--max_steps", "3"])
    cli.main()
    _, data, settings, training = parsed[0]
    assert (data.task_name, settings.method, settings.overwrite, training.max_steps) == ("sample", "autolora", True, 3)
    assert cli.os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(UsageError, match="--overwrit is no argument of this script. Did you mean overwrite?"):
        cli.main(["demo", "--overwrit"])


def test_demo_takes_what_its_help_names(capsys, parsed):
    names = groups_of_help(shown(capsys, "demo"))["any argument of autolora run glue, such as"]
    values = {"output_dir": ["o"], "search_max_steps": ["2"], "max_steps": ["2"], "seed": ["1"]}
    words = [word for name in names if name != "help_all" for word in (f"--{name}", *values.get(name, []))]
    cli.main(["demo", *words])
    assert len(parsed) == 1 and parsed[0][3].seed == 1
