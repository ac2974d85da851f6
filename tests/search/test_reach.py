"""Does every module that should have ranks have a held-out gradient, and is one without any named?"""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset
from transformers import TrainingArguments

from autolora_trainer import AutoLoraTrainer, LearnedRanks, compress
from autolora_trainer.compat import CHECKPOINTING
from autolora_trainer.errors import UsageError
from autolora_trainer.search.reach import SWITCHED
from tests.helpers.models import tiny_llama
from tests.helpers.rows import rows
from tests.helpers.trainings import arguments

TOWERS = LoraConfig(target_modules=["left.a", "left.b", "right.a", "right.b"], lora_alpha=8)


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, h):
        return self.b(torch.relu(self.a(h)))


class Towers(nn.Module):
    """Two equal towers, the right one run in a way of its own: `run(tower, h, training)`."""

    def __init__(self, run=None):
        super().__init__()
        torch.manual_seed(0)
        self.inp, self.left, self.right, self.out = nn.Linear(4, 16), Tower(), Tower(), nn.Linear(16, 2)
        self.right.load_state_dict(self.left.state_dict())
        self.run, self.calls = run or (lambda tower, h, training: tower(h)), 0

    def forward(self, x, labels=None):
        self.calls += 1
        h = torch.relu(self.inp(x)).requires_grad_(self.training)
        left, right = self.left(h), self.run(self.right, h, self.training)
        logits = self.out(torch.relu(left if right is None else left + right))
        return {"loss": None if labels is None else cross_entropy(logits, labels), "logits": logits}


def data(count=128):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


def collate(rows):
    return {"x": torch.stack([x for x, _ in rows]), "labels": torch.stack([label for _, label in rows])}


def towers(folder, run=None, **changes):
    settings = {"max_steps": 16, "hypergradient_interval": 1, "hypergradient": "first_order", **changes}
    args, model = arguments(folder, **settings), Towers(run)
    return AutoLoraTrainer(model, args, train_dataset=data(), data_collator=collate, peft_config=TOWERS)


def checkpointed(reentrant):
    return lambda tower, h, training: checkpoint(tower, h, use_reentrant=reentrant) if training else tower(h)


def without_gradient(tower, h, training):
    with torch.no_grad():
        return tower(h)


def without_gradient_in_evaluation(tower, h, training):
    with torch.set_grad_enabled(training):
        return tower(h)


UNUSED = {
    "its output is not used": lambda tower, h, training: 0 * tower(h).detach(),
    "it runs without gradient": without_gradient,
    "its checkpoint has no trainable input": lambda tower, h, training: checkpoint(
        tower, h.detach(), use_reentrant=True
    ),
    "no row comes to it": lambda tower, h, training: None,
}


def llama_search(folder, wrapped=False, reentrant=False, **changes):
    torch.manual_seed(0)
    model, config = tiny_llama(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    if reentrant:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    own = {} if wrapped else {"peft_config": config}
    model = get_peft_model(model, config) if wrapped else model
    text = [{**row, "labels": row["input_ids"]} for row in rows()]
    args = arguments(folder, max_steps=4, **changes)
    return AutoLoraTrainer(model, args, train_dataset=text, **own)


def checkpoints(model):
    return [
        own["_gradient_checkpointing_func"] for own in map(vars, model.modules()) if own.get("gradient_checkpointing")
    ]


@pytest.mark.parametrize("method, wrapped", [("first_order", True), ("finite_difference", False)])
def test_reentrant_checkpoints_of_transformers_are_switched(tmp_path, caplog, method, wrapped):
    plain, switched = (llama_search(tmp_path, wrapped, own, hypergradient=method) for own in (False, True))
    before = checkpoints(switched.model)
    plain.train()
    switched.train()
    assert switched.learned_ranks.ranks == plain.learned_ranks.ranks
    torch.testing.assert_close(switched.gates.selection, plain.gates.selection)
    torch.testing.assert_close(switched.gates.logits, plain.gates.logits)
    assert plain.gates.logits.abs().max() > 0 and switched.reach.unreached == []
    assert len(before) > 1 and all(one is other for one, other in zip(before, checkpoints(switched.model)))
    assert [record.getMessage() for record in caplog.records].count(SWITCHED) == 1


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*:FutureWarning")
def test_reentrant_checkpoints_that_arguments_ask_for_are_switched(tmp_path, caplog):
    kwargs = {"use_reentrant": True}
    own = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
    plain, switched = llama_search(tmp_path), llama_search(tmp_path, reentrant=True, **own)
    plain.train()
    switched.train()
    assert switched.learned_ranks.ranks == plain.learned_ranks.ranks
    torch.testing.assert_close(switched.gates.selection, plain.gates.selection)
    assert getattr(switched.args, f"{CHECKPOINTING}_kwargs") == kwargs == {"use_reentrant": True}
    assert [record.getMessage() for record in caplog.records].count(SWITCHED) == 1


def test_a_part_that_its_author_checkpoints_has_the_ranks_of_one_that_he_does_not(tmp_path):
    plain, checked = towers(tmp_path), towers(tmp_path, checkpointed(False))
    plain.train()
    checked.train()
    assert checked.learned_ranks.ranks == plain.learned_ranks.ranks
    torch.testing.assert_close(checked.gates.selection, plain.gates.selection)
    assert plain.reach.unreached == checked.reach.unreached == []


@pytest.mark.parametrize(
    "run", [checkpointed(True), without_gradient_in_evaluation], ids=["reentrant", "in evaluation"]
)
def test_a_part_whose_held_out_gradient_is_hidden_is_refused(tmp_path, run):
    trainer = towers(tmp_path, run)
    with pytest.raises(
        UsageError, match="^No held-out gradient reaches 'right.a' and 1 more, while the weights learn"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_checkpoint_after_gates_is_explained(tmp_path):
    """There torch itself refuses: the gradient of the left tower would have to pass through the checkpoint."""

    class Chain(Towers):
        def forward(self, x, labels=None):
            h = torch.relu(self.left(torch.relu(self.inp(x))))
            logits = self.out(checkpoint(self.right, h, use_reentrant=True))
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    args = arguments(tmp_path, hypergradient="first_order")
    trainer = AutoLoraTrainer(Chain(), args, train_dataset=data(), data_collator=collate, peft_config=TOWERS)
    with pytest.raises(
        UsageError, match="^No held-out gradient reaches 'right.a' and 1 more, while the weights learn"
    ):
        trainer.train()


@pytest.mark.parametrize("run", UNUSED.values(), ids=UNUSED)
@pytest.mark.parametrize(
    "settings",
    [{"rank_rule": "threshold"}, {"rank_rule": "threshold", "size": "lora:2"}, {"size": "300", "min_rank": 1}, {}],
    ids=str,
)
def test_a_part_that_learns_nothing_is_named_and_left_out(tmp_path, caplog, run, settings):
    """By the count of the paper its α, which never moved, would have every component."""
    trainer = towers(tmp_path, run, **settings)
    trainer.train()
    ranks = trainer.learned_ranks
    assert [ranks.ranks[name] for name in ("right.a", "right.b")] == [0, 0] and ranks.ranks["left.a"] > 0
    assert ranks.modules["right.a"].contributions == ()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text for text in warnings if text.startswith("no held-out gradient reaches 'right.a' and 1 more so far")]
    assert "left out (rank 0), as no held-out gradient ever reached it: 'right.a' and 1 more" in warnings
    ranks.save(tmp_path / "ranks.json")
    loaded = LearnedRanks.load(tmp_path / "ranks.json")
    assert loaded.ranks == ranks.ranks and loaded.modules["right.a"].contributions == ()


def test_what_only_later_rows_come_to_is_not_left_out(tmp_path, caplog):
    trainer = towers(tmp_path, rank_rule="threshold")
    trainer.model.get_base_model().run = lambda tower, h, training: tower(h) if trainer.state.global_step > 4 else None
    trainer.train()
    assert trainer.reach.unreached == [] and "so far" in caplog.text and "ever reached" not in caplog.text
    assert trainer.learned_ranks.ranks["right.a"] > 0


def test_no_gradient_at_all_is_refused(tmp_path):
    """In evaluation the whole model runs without gradient, as some models of the Hub do."""

    class Silent(Towers):
        def forward(self, *args, **kwargs):
            with torch.set_grad_enabled(self.training):
                return super().forward(*args, **kwargs)

    args = arguments(tmp_path, hypergradient="first_order")
    trainer = AutoLoraTrainer(Silent(), args, train_dataset=data(), data_collator=collate, peft_config=TOWERS)
    with pytest.raises(ValueError, match="^No held-out gradient reaches 'left.a'"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_adapter_on_a_part_that_nobody_uses_can_be_compressed(tmp_path):
    """PEFT's all-linear adapts it too; its update is zero, and takes nothing off any loss."""
    model = get_peft_model(Towers(UNUSED["its output is not used"]), TOWERS)
    for name, parameter in model.named_parameters():
        if "left" in name and "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    small = compress(model, data(), args=args, data_collator=collate, tolerance=10.0)
    assert small.ranks.modules["right.a"].contributions == (0.0,) * 8 and small.ranks.ranks["right.a"] == 0
