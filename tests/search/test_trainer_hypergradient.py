"""Does the trainer compute the hypergradient? Truth: exact double backward, all in fp32."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig

from autolora_trainer import AutoLoraTrainer, AutoLoraTrainingArguments
from autolora_trainer.compat import CHECKPOINTING
from autolora_trainer.search import hypergradient
from autolora_trainer.training.passes import RandomState, full_precision
from tests.helpers.measures import relative_error
from tests.helpers.models import tiny_roberta
from tests.helpers.rows import rows


class Compared(AutoLoraTrainer):
    """Keeps, at the selection step after `after` weight steps, what the trainer computed and the truth."""

    after, zeroed = 12, False

    def training_step(self, *args, **kwargs):
        if self.zeroed and self.state.global_step == self.after:
            with torch.no_grad():
                self.gates.logits[0, 1] = 0
            self.gates.refresh()
        return super().training_step(*args, **kwargs)

    def outer_step(self, num_items_in_batch=None):
        if self.state.global_step != self.after:
            return super().outer_step(num_items_in_batch)
        now, position, count = RandomState(self.args.device), self._val_batches.position, len(self._window)
        batches = [self._prepare_inputs(next(self._val_batches)) for _ in range(count)]
        self._val_batches.position = position
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        before = [(weight.detach().clone(), weight.grad.clone()) for weight in weights]

        def val(precision=full_precision):
            def losses():
                now.restore()
                with precision(self.model):
                    yield from (self._micro_loss(inputs, None, count) for inputs in batches)

            return losses

        def train(fresh=False):
            def losses():
                with full_precision(self.model):
                    for inputs, random_state in self._window:
                        if not fresh:
                            random_state.restore()
                        yield self._micro_loss(inputs, num_items_in_batch, count)

            return losses

        gradient, _ = hypergradient.gradients(train(), weights)
        rest = (weights, self.gates.selection, gradient, self._virtual_step(gradient))
        self.truth = hypergradient.exact(train(), val(), *rest)
        self.held_out_in_bf16 = hypergradient.finite_difference(train(), val(nullcontext), *rest)
        self.with_fresh_masks = hypergradient.finite_difference(train(fresh=True), val(), *rest)
        now.restore()
        passes = self.selection_passes
        super().outer_step(num_items_in_batch)
        self.passes = (self.selection_passes - passes) / count
        self.unchanged = all(torch.equal(w, b) and torch.equal(w.grad, g) for w, (b, g) in zip(weights, before))

    def _step_selection(self, result):
        self.computed = result
        super()._step_selection(result)


def compared(folder, dropout=0.1, accumulation=2, zeroed=False, **settings):
    torch.manual_seed(0)
    model = tiny_roberta(
        hidden_size=32,
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    arguments = AutoLoraTrainingArguments(
        output_dir=str(folder),
        max_steps=Compared.after + 1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        learning_rate=5e-3,
        initial_rank=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        hypergradient_interval=4,
        **{"hypergradient": "finite_difference", **settings},
    )
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_alpha=16, lora_dropout=dropout)
    trainer = Compared(model, arguments, train_dataset=rows(320), peft_config=config)
    trainer.zeroed = zeroed
    trainer.train()
    return trainer


def errors(trainer, result):
    """(cosine, relative error) of the implicit term alone and of the whole, by α and by β; the worst of each."""
    pairs = [
        (change(value), change(truth))
        for change in (torch.clone, trainer.gates.pull_back)
        for value, truth in ((result.implicit, trainer.truth.implicit), (result.total, trainer.truth.total))
    ]
    cosines = [(a / a.norm() * b / b.norm()).sum().item() for a, b in pairs]
    return min(cosines), max(relative_error(a, b) for a, b in pairs)


@pytest.mark.parametrize("virtual_step", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "difference, bf16, passes", [("central", True, 3), ("one_sided", True, 3), ("one_sided", False, 2)]
)
def test_trainer_computes_the_hypergradient(tmp_path, virtual_step, difference, bf16, passes):
    """bf16, dropout, two micro-batches, a trained state: the worst case that a search meets."""
    trainer = compared(tmp_path, virtual_step=virtual_step, finite_difference=difference, bf16=bf16)
    cosine, error = errors(trainer, trainer.computed)
    assert cosine > 0.999 and error < 0.03
    assert trainer.passes == passes
    assert trainer.unchanged
    assert errors(trainer, trainer.with_fresh_masks)[1] > 1
    if bf16 and difference == "central" and virtual_step == "sgd":  # where only v can be wrong
        assert error < errors(trainer, trainer.held_out_in_bf16)[1] / 10


def test_one_sided_difference_survives_selection_variables_of_zero_and_activation_checkpoints(tmp_path):
    """Its base point is no quotient by α_j; checkpointed activations are computed anew with the same α."""
    for settings in ({}, {CHECKPOINTING: True}):
        trainer = compared(tmp_path, finite_difference="one_sided", constraint="none", zeroed=True, **settings)
        assert trainer.gates.selection[0, 1].abs() < 0.1  # it was zero before its last step
        cosine, error = errors(trainer, trainer.computed)
        assert cosine > 0.999 and error < 0.03 and trainer.passes == 2


def test_first_order_and_exact_take_the_passes_they_say(tmp_path):
    for method, passes in {"first_order": 1, "exact": 3}.items():
        trainer = compared(tmp_path, hypergradient=method)
        assert trainer.passes == passes and trainer.unchanged
        if method == "exact":
            assert errors(trainer, trainer.computed)[1] < 1e-5


def test_weight_step_shares_its_base_point_only_where_it_is_the_same_function(tmp_path, monkeypatch):
    monkeypatch.setattr(Compared, "after", 4)
    shares = lambda **settings: compared(tmp_path, **settings)._shares_base_point()
    assert shares(finite_difference="one_sided")
    assert not shares(finite_difference="one_sided", bf16=True)
    assert not shares() and not shares(finite_difference="one_sided", hypergradient="first_order")
