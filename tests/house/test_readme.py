"""README's program runs as it is printed, and programs show users the names that are meant for them."""

import glob
import os
import re

import autolora_trainer
from tests.helpers.commands import ROOT


def readme() -> str:
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def test_program_of_the_first_screen_runs(tmp_path, monkeypatch, capsys):
    program = re.search(r"```python\n(.*?)```", readme(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    short = program.replace("max_steps=100", "max_steps=9").replace("num_train_epochs=3", "max_steps=2")
    assert short.count("max_steps") == 2
    exec(compile(short, "README.md", "exec"), {"__name__": "readme"})
    assert "total rank" in capsys.readouterr().out
    assert os.path.exists(tmp_path / "adapter" / "adapter_config.json")


def test_every_file_it_names_exists():
    for name in re.findall(r"\]\(([^)#:]+)\)", readme()):
        assert os.path.exists(os.path.join(ROOT, name)), name


def test_programs_take_public_names_from_the_package_itself():
    public = set(autolora_trainer.__all__)
    paths = [os.path.join(ROOT, "README.md")]
    paths += glob.glob(os.path.join(ROOT, "docs", "*.md")) + glob.glob(os.path.join(ROOT, "examples", "*.py"))
    found = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for names in re.findall(r"^from autolora_trainer\.[\w.]+ import (.+)$", file.read(), re.MULTILINE):
                found += [f"{os.path.basename(path)}: {name}" for name in public & set(names.split(", "))]
    assert found == [] and {"ModuleRank", "AutoLoraMixin", "build_adapter"} <= public
