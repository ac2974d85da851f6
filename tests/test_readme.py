"""README's program runs as it is printed."""

import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
