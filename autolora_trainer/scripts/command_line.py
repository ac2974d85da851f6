"""A command line, a YAML file and a preset as the scripts' arguments."""

import dataclasses
import json
import re
import sys

import yaml

from autolora_trainer.clean import SURE_TOKEN, hide_secrets, is_secret
from autolora_trainer.errors import one_line, shown, usage_errors
from autolora_trainer.files import check_regular
from autolora_trainer.machine import check_letters
from autolora_trainer.scripts.arguments import (
    PRESETS,
    DataArguments,
    MethodArguments,
    ModelArguments,
    ScriptTrainingArguments,
)
from autolora_trainer.scripts.help import ROWS, ScriptParser
from autolora_trainer.search.arguments import check_effect
from autolora_trainer.values import check_choice, no_argument, suggestion

NO_SETTINGS = ("config", "help", "help_all")


def parse_arguments(
    argv: list[str] | None = None,
    task_defaults: dict[str, dict] | None = None,
    data_arguments: type = DataArguments,
    preset_changes: dict | None = None,
    about: str | None = None,
    **defaults,
):
    """Parse a script's command line.

    Args:
        argv: the arguments, without the program's name; default `sys.argv[1:]`.
        task_defaults: {task name: defaults of that task}, e.g. the built-in sample's own small model.
        data_arguments: `DataArguments`, or the script's own subclass of it.
        preset_changes: what a preset sets otherwise in this script, e.g. the batch size of §5.4.
        about: the script's docstring, whose first paragraph and examples its help shows.
        **defaults: defaults of the script that differ from the dataclasses'.
    Returns:
        (ModelArguments, DataArguments, MethodArguments, ScriptTrainingArguments).
    Raises:
        UsageError: one line, for whatever is wrong with them.
    """
    if argv is None:
        argv, sys.argv[1:] = sys.argv[1:], hide_secrets(sys.argv[1:])
    argv = [_with_underscores(word) for word in argv]
    groups = (ModelArguments, data_arguments, MethodArguments, ScriptTrainingArguments)
    parser = ScriptParser(groups, about, getattr(data_arguments, "own_group", ROWS))
    parser.set_defaults(**defaults)
    known = {action.dest: action for action in parser._actions}
    with usage_errors():
        check_letters(argv)
        typed, config = _take_config(argv)
        from_file = _config_tokens(config, known) if config else []
        name = _last_value(from_file + typed, "--preset")
        if name is not None:
            check_choice("preset", name, tuple(PRESETS))
        task = _last_value(from_file + typed, "--task_name")
        parser.set_defaults(**(task_defaults or {}).get(task and task.lower(), {}))
        preset = {**PRESETS[name], **(preset_changes or {})} if name is not None else {}
        tokens = _tokens(preset) + from_file + _complete_resume(typed)
        if _last_value(tokens, "--search_epochs") is not None and _last_value(tokens, "--search_max_steps") is None:
            parser.set_defaults(search_max_steps=-1)  # a task's own number of steps would win over epochs
        *groups, unknown = parser.parse_args_into_dataclasses(tokens, return_remaining_strings=True)
        typed_names = {word[2:].partition("=")[0] for word in from_file + typed if word.startswith("--")}
        check_effect(groups[2], typed_names)
        if unknown:
            raise ValueError(no_argument(unknown, tokens, _named(known), "this script"))
        _refuse_tokens(groups[:4])
        return tuple(groups[:4])


def _named(known) -> list[str]:
    return [dest for dest in known if dest not in NO_SETTINGS]


def _refuse_tokens(groups) -> None:
    """Raise `ValueError` for a token of the Hub where files, folders or trackers would keep it."""
    for group in groups:
        for name in (field.name for field in dataclasses.fields(group)):
            if not is_secret(name) and SURE_TOKEN.search(str(getattr(group, name))):
                raise ValueError(
                    f"--{name} holds a token of the Hub, which files would keep. Take it out; a token is for --token "
                    "and --hub_token, or for `hf auth login`."
                )


def _with_underscores(word: str) -> str:
    """`--hub-token=a-b` -> `--hub_token=a-b`: HfArgumentParser takes both, and so must what reads the words."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word


def _take_config(argv):
    """Split off `--config FILE`, `--config=FILE` or a file as the only argument."""
    if len(argv) == 1 and argv[0].endswith((".yaml", ".yml", ".json")) and not argv[0].startswith("-"):
        return [], argv[0]
    typed, config, index = [], None, 0
    while index < len(argv):
        if argv[index] == "--config":
            if index + 1 == len(argv) or argv[index + 1].startswith("--"):
                raise ValueError("--config needs a YAML file after it.")
            config, index = argv[index + 1], index + 2
        elif argv[index].startswith("--config="):
            config, index = argv[index].split("=", 1)[1], index + 1
        else:
            typed.append(argv[index])
            index += 1
    return typed, config


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a name stands once; PyYAML takes the last of several."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"it sets {name!r} twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-6, without a point, for text
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _config_tokens(path, known):
    """The settings of a YAML file as words of a command line.

    Args:
        path: of the file.
        known: {argument: action of the parser}.
    """
    try:
        check_regular(path)
        with open(path, encoding="utf-8") as file:
            settings = yaml.load(file, _UniqueKeys)
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}. Give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        # what it quotes may be a secret that YAML takes for a tag or an alias
        problem = re.sub(r"'[^']{3,}'", "'...'", getattr(error, "problem", None) or "")
        reason, mark = shown(problem or one_line(error), 200), getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"--config {path} is not YAML: {reason}{where}. Write 'name: value' lines.") from None
    if not isinstance(settings, dict):
        given = "nothing" if settings is None else type(settings).__name__
        raise ValueError(f"--config {path} must hold 'name: value' lines, got {given}.")
    for name, value in settings.items():
        if name in NO_SETTINGS:
            raise ValueError(f"--config {path} sets {name}, which is for the command line alone. Type --{name}.")
        if name not in known:
            hint = (
                " Write its settings without it." if isinstance(value, dict) else suggestion(str(name), _named(known))
            )
            raise ValueError(f"--config {path} sets {name!r}, which is no argument.{hint}")
        if isinstance(value, list) and known[name].nargs not in ("+", "*"):
            given = "a list" if is_secret(name) else f"the list {value}"
            raise ValueError(f"--config {path} sets {name} to {given}, and it takes one value. Write one.")
    if "trust_remote_code" in settings:
        raise ValueError(
            f"--config {path} sets trust_remote_code. Type --trust_remote_code yourself if you trust the model."
        )
    return _tokens(settings)


def _tokens(settings: dict) -> list[str]:
    """{'bf16': True, 'lora_target_modules': ['q', 'v']} -> ['--bf16=True', '--lora_target_modules', 'q', 'v']"""
    tokens = []
    for name, value in settings.items():
        if isinstance(value, list):
            if any(str(item).startswith("-") for item in value):
                raise ValueError(
                    f"the list {name} holds {next(i for i in value if str(i).startswith('-'))!r}, an argument. "
                    "Write values only."
                )
            tokens += [f"--{name}", *map(str, value)]
        elif value is not None:
            tokens.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return tokens


def _complete_resume(argv):
    """`--resume_from_checkpoint` without a value means True."""
    completed = []
    for index, token in enumerate(argv):
        completed.append(token)
        if token == "--resume_from_checkpoint" and (index + 1 == len(argv) or argv[index + 1].startswith("--")):
            completed.append("True")
    return completed


def _last_value(tokens, name):
    value = None
    for index, token in enumerate(tokens):
        if token == name and index + 1 < len(tokens):
            value = tokens[index + 1]
        elif token.startswith(name + "="):
            value = token.split("=", 1)[1]
    return value
