"""The gradient probe against the gradient itself, and what it leaves untouched."""

import pytest
import torch

from autolora_trainer.heldout.gradient import DIRECTIONS, GradientProbe
from autolora_trainer.search.selection import attach_gates
from tests.helpers.models import lora, tiny_gpt2, tiny_roberta


def batch(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (4, 10), generator=generator)
    labels = ids if model.config.model_type == "gpt2" else torch.tensor([0, 1, 0, 1])
    return {"input_ids": ids, "labels": labels}


def whole_gradient(model, gates, inputs):
    """∂L/∂W of every gated module, (m, n), from the base weights themselves."""
    weights = [layer.get_base_layer().weight for layer in gates.layers.values()]
    for weight in weights:
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(model(**inputs).loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    return gradients


@pytest.mark.parametrize(
    "make, targets, task", [(tiny_roberta, ["query", "value"], "SEQ_CLS"), (tiny_gpt2, ["c_attn"], "CAUSAL_LM")]
)
def test_energy_is_the_squared_norm_of_the_whole_gradient(make, targets, task):
    """Hutchinson's estimate over 400 draws of the directions: within 5 % of the exact norm."""
    model = lora(make(), targets=targets, task_type=task)
    gates = attach_gates(model)
    inputs = batch(model)
    exact = torch.stack([g.norm() for g in whole_gradient(model, gates, inputs)])
    probe = GradientProbe(gates.parts, gates.selection.device)
    for _ in range(400):
        with probe.watching():
            loss = model(**inputs).loss
        loss.backward()
        probe.collect(lambda tensors: None)
    assert probe.count == 400
    torch.testing.assert_close(probe.energy, exact, rtol=0.05, atol=0)


def test_micro_batches_of_a_window_add_up_before_they_are_squared():
    model = lora(tiny_roberta())
    gates = attach_gates(model)
    halves = [batch(model, seed) for seed in (1, 2)]
    whole = {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
    energies = []
    for parts in ([whole], halves):
        probe = GradientProbe(gates.parts, gates.selection.device, seed=3)
        for inputs in parts:
            with probe.watching():
                loss = model(**inputs).loss / len(parts)
            loss.backward()
        probe.collect(lambda tensors: None)
        energies.append(probe.energy)
    torch.testing.assert_close(*energies, rtol=1e-4, atol=1e-8)


def test_only_watched_passes_count_and_the_model_computes_the_same():
    model = lora(tiny_roberta())
    gates = attach_gates(model)
    inputs = batch(model)
    before = model(**inputs).loss
    probe = GradientProbe(gates.parts, gates.selection.device)
    loss = model(**inputs).loss
    loss.backward()
    probe.collect(lambda tensors: None)
    assert probe.count == 0 and torch.equal(loss, before)
    with probe.watching():
        assert torch.equal(model(**inputs).loss, before)
        assert all(module._forward_hooks for module in gates.layers.values())
    assert not any(module._forward_hooks for module in gates.layers.values())


def test_same_seed_and_count_draw_the_same_directions():
    gates = attach_gates(lora(tiny_roberta()))
    probes = [GradientProbe(gates.parts, gates.selection.device, seed) for seed in (0, 0, 1)]
    drawn = []
    for probe in probes:
        with probe.watching():
            drawn.append(probe._directions[16])
    assert drawn[0].shape == (16, DIRECTIONS)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_gradients_that_are_no_numbers_are_left_out():
    gates = attach_gates(lora(tiny_roberta()))
    probe = GradientProbe(gates.parts, gates.selection.device)
    probe._sketches = [torch.full((16, DIRECTIONS), float("nan"))] + [torch.ones(16, DIRECTIONS)] * 3
    probe.collect(lambda tensors: None)
    assert probe.energy.tolist() == pytest.approx([0.0] + [4.0] * 3)  # sqrt(16 · 8 / 8)


def test_activation_checkpointing_changes_nothing():
    energies = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = lora(tiny_roberta())
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        gates = attach_gates(model)
        probe = GradientProbe(gates.parts, gates.selection.device)
        with probe.watching():
            loss = model(**batch(model)).loss
        loss.backward()
        probe.collect(lambda tensors: None)
        energies.append(probe.energy)
    assert (energies[0] > 0).all()
    torch.testing.assert_close(*energies, rtol=1e-5, atol=0)
