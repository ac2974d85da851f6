"""What stands around a training stands around a search: a notebook's table, optimizers, `hyperparameter_search`."""

import importlib
import sys
import types

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from autolora_trainer import AutoLoraTrainer
from tests.helpers.models import lora, tiny_roberta
from tests.helpers.rows import rows
from tests.helpers.trainings import arguments, searcher


@pytest.fixture
def notebook(monkeypatch):
    """transformers' callback of notebooks; what it shows is kept."""
    display = types.SimpleNamespace(display=lambda *a, **k: display, HTML=str, update=lambda *a, **k: None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.delitem(sys.modules, "transformers.utils.notebook", raising=False)
    module = importlib.import_module("transformers.utils.notebook")
    tables, made = [], module.NotebookTrainingTracker
    monkeypatch.setattr(module, "NotebookTrainingTracker", lambda *args: tables.append(made(*args)) or tables[-1])
    return module.NotebookProgressCallback(), tables


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_notebook_has_its_table_of_losses(tmp_path, notebook, evaluates):
    callback, tables = notebook
    changes = {"eval_strategy": "steps", "eval_steps": 4} if evaluates else {}
    trainer = AutoLoraTrainer(
        lora(tiny_roberta()), arguments(tmp_path, **changes), train_dataset=rows(), eval_dataset=rows(8),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    head, *lines = tables[0].inner_table
    losses = [line[head.index("Training Loss")] for line in lines]
    logged = [row["search_train_loss"] for row in trainer.state.log_history if "search_grad_norm" in row]
    assert losses == logged and len(losses) == 3
    assert ("Validation Loss" in head) == evaluates and [line[0] for line in lines] == [4, 8, 12]


class WithItsOwn(AutoLoraTrainer):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD((p for p in self.model.parameters() if p.requires_grad), lr=0.1)
        return self.optimizer


def test_optimizers_that_plain_trainer_takes(tmp_path):
    """A pair, a class with settings, a method of one's own; LoRA+ has groups of different rates, and AdamW's step."""
    model = lora(tiny_roberta())
    plus = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    makers = [
        (AutoLoraTrainer, {"optimizers": (plus, None)}, {"hypergradient": "finite_difference"}, model),
        (AutoLoraTrainer, {"optimizer_cls_and_kwargs": (torch.optim.Adagrad, {"lr": 0.1})}, {}, None),
        (WithItsOwn, {}, {"hypergradient": "finite_difference", "virtual_step": "sgd"}, None),
    ]
    for kind, given, changes, own in makers:
        settings = arguments(tmp_path, **{"hypergradient": "first_order", "max_steps": 4, **changes})
        trainer = kind(own or lora(tiny_roberta()), settings, train_dataset=rows(), **given)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_A" in n}
        trainer.train()
        moved = [not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before]
        assert all(moved) and trainer.learned_ranks is not None


def test_hyperparameter_search_is_of_the_retrain(tmp_path):
    with pytest.raises(
        ValueError, match="a model for every trial.* Call it on the Trainer of the retrain, with a mod"
    ):
        searcher(tmp_path).hyperparameter_search(n_trials=1)
