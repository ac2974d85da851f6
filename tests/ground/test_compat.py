"""Is a transformers that lacks a hook refused, and is every hook checked?"""

from pathlib import Path

import pytest
from transformers import Trainer

from autolora_trainer import AutoLoraTrainer, compat
from autolora_trainer.compat import HOOKS, check_hooks
from autolora_trainer.methods.adalora import AdaLoraTrainer
from autolora_trainer.training.trainer import FinalTrainer
from tests.helpers.commands import ROOT


def test_a_transformers_without_a_hook_is_refused(monkeypatch):
    assert "transformers==5.23.0\n" in (Path(ROOT) / "constraints.txt").read_text()
    monkeypatch.setattr(compat.transformers, "__version__", "9.1")
    check_hooks()
    for name in HOOKS:
        stub = type("Trainer", (), {hook: None for hook in HOOKS if hook != name})
        with pytest.raises(ImportError, match=rf"^transformers 9.1 is installed, whose Trainer has no {name}; .*==5"):
            check_hooks(stub)


def test_every_hook_that_is_overridden_is_checked():
    kinds = {kind for trainer in (AutoLoraTrainer, FinalTrainer, AdaLoraTrainer) for kind in trainer.__mro__}
    own = [kind for kind in kinds if kind.__module__.startswith("autolora_trainer")]
    overridden = {name for kind in own for name in vars(kind) if name.startswith("_") and not name.startswith("__")}
    assert overridden & set(dir(Trainer)) <= set(HOOKS)
