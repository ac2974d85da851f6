"""Does a script's help show what there is, in groups, ours first, and do its examples parse?"""

import dataclasses
import importlib
import inspect
import re
import shlex
import sys

import pytest

import run_ner
import run_nlg
from autolora_trainer.scripts.arguments import DataArguments, MethodArguments, ModelArguments, ScriptTrainingArguments
from autolora_trainer.training.finite import NonFiniteArguments
from tests.helpers.commands import groups_of_help

ROWS = {"run_glue": DataArguments, "run_ner": run_ner.NerDataArguments, "run_nlg": run_nlg.NlgArguments}
OTHERS = "Trainer's other arguments (transformers)"
every_script = pytest.mark.parametrize("script", ROWS)


def shown(script, capsys, *typed):
    """What `--help` and the like print, which is checked to fit its columns and to end well."""
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main([*typed])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and max(map(len, text.splitlines())) <= 100
    return text


def names(*kinds):
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


@every_script
def test_help_has_every_argument_of_ours_in_one_group(script, capsys):
    groups = groups_of_help(shown(script, capsys, "--help"))
    listed = [name for group in groups.values() for name in group]
    own = names(ModelArguments, ROWS[script], MethodArguments, NonFiniteArguments) | {"config", "help", "help_all"}
    assert own | set(inspect.get_annotations(ScriptTrainingArguments)) <= set(listed)
    assert len(listed) == len(set(listed)) and OTHERS not in groups
    assert list(groups)[0] == "rows" and groups["rows"][0] == "task_name"
    assert groups["how large"][0] == "size" and "learning_rate" in groups["the training (of every method)"]
    own_group = names(ROWS[script]) - names(DataArguments)
    assert set(groups.get("prompts and decoding", ())) == own_group


@every_script
def test_help_all_lists_every_argument(script, capsys):
    groups = groups_of_help(shown(script, capsys, "--help_all"))
    listed = [name for group in groups.values() for name in group]
    every = names(ModelArguments, ROWS[script], MethodArguments, ScriptTrainingArguments)
    assert sorted(listed) == sorted(every | {"config", "help", "help_all"})
    assert list(groups)[-2:] == [OTHERS, "more"] and len(groups[OTHERS]) > 60


@pytest.mark.parametrize("program", ["run_glue.py", "autolora"])
@every_script
def test_examples_parse(script, program, monkeypatch, capsys, tmp_path):
    """As they stand in a clone, and after a `pip install` in the words of `autolora run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{program}", "--help"])
    examples = re.search(r"^examples:\n(.*?)\n\n", shown(script, capsys, "--help"), re.DOTALL | re.MULTILINE)[1]
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "execute", lambda task, *groups: seen.append(groups) or {})
    lines, seen = [shlex.split(line, comments=True) for line in examples.splitlines()], []
    begins = {
        "run_glue.py": ({f"python {script}.py", f"accelerate launch {script}.py"}),
        "autolora": ({f"autolora run {script[4:]}", f"accelerate launch -m {script}"}),
    }[program]
    for words in lines:
        start = next(place for place, word in enumerate(words) if word.startswith("--"))
        assert " ".join(words[:start]) in begins
        module.main(words[start:])
    assert len(seen) == len(lines) >= 2


def test_help_shows_the_defaults_that_hold(capsys):
    def default(text, name):
        entry = re.search(rf"^  --{name} .*?(?=^  -|^\S|\Z)", text, re.DOTALL | re.MULTILINE)[0]
        return re.search(r"Default:\s+([^\s]+)\.$", entry, re.MULTILINE)[1]

    plain, sample = shown("run_glue", capsys, "--help"), shown("run_glue", capsys, "--task_name", "sample", "--help")
    assert default(plain, "lora_alpha") == "16" and default(shown("run_nlg", capsys, "--help"), "lora_alpha") == "32"
    assert default(plain, "learning_rate") == "0.0001" and default(sample, "learning_rate") == "0.001"
    assert default(plain, "weight_decay") == "0.0" and "(default:" not in plain and "None" not in plain


def test_a_narrow_terminal_is_kept_to(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    text = shown("run_glue", capsys, "--help").partition("rows:")[2]
    assert max(map(len, text.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "300")
    shown("run_glue", capsys, "--help")
