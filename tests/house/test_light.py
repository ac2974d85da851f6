"""Looking at adapters is quick: what needs neither torch nor a model does not load them."""

import json
import subprocess
import sys

import pytest

from autolora_trainer import HOMES
from autolora_trainer.ranks.learned import LearnedRanks, ModuleRank

HEAVY = ("torch", "transformers", "matplotlib", "peft", "scipy", "accelerate", "datasets", "huggingface_hub")
PROBE = """
import contextlib, io, json, sys, time
began = time.process_time()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    {action}
print(json.dumps([time.process_time() - began, sorted(set({heavy}) & set(sys.modules))]))
"""


def probed(action: str):
    """(CPU seconds, heavy libraries) of an action in a new interpreter."""
    code = PROBE.format(action=action, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "words", ["--help", "--version", "show {0}", "diff {0} {0}", "export {0}", "export {0} --format axolotl"]
)
def test_commands_that_look_load_no_library_that_trains(tmp_path, words):
    path = tmp_path / "ranks.json"
    LearnedRanks({"h.0.q": ModuleRank(2), "h.1.q": ModuleRank(1)}, base_model="org/base").save(path)
    action = f"from autolora_trainer.commands.cli import main; main({words.format(path).split()!r})"
    seconds, loaded = probed(action)
    assert loaded == [] and seconds < 1


def test_the_package_itself_is_imported_at_once():
    seconds, loaded = probed("import autolora_trainer")
    assert loaded == [] and seconds < 0.5


def test_every_public_name_is_where_it_is_looked_for():
    import autolora_trainer

    for name, home in HOMES.items():
        assert getattr(autolora_trainer, name).__module__ == f"autolora_trainer.{home}"
    assert set(HOMES) <= set(dir(autolora_trainer)) and set(autolora_trainer.__all__) == {*HOMES, "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        autolora_trainer.nothing
