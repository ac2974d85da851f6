"""Contributions: their sum, their closed form, and what must not matter."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn

from autolora_trainer.heldout.contributions import contributions, path_points, shares_of_gain
from autolora_trainer.heldout.passes import Idle, count_targets, ordered_batches, target_loss, undisturbed
from autolora_trainer.lora.parts import lora_parts
from tests.helpers.models import FAMILIES, lora, tiny_gpt2, tiny_llama, tiny_roberta

LINEARS = {"roberta": ("query", "value", "dense"), "gpt2": ("c_attn", "c_proj"), "llama": ("q_proj", "down_proj")}


def token_batches(rows=12, size=4, seed=0, causal=True):
    """Batches of tokens with labels, some of them no targets."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, 9), generator=generator)
    labels = ids.clone() if causal else torch.randint(0, 2, (rows,), generator=generator)
    if causal:
        for row in range(rows):
            labels[row, : 1 + row % 5] = -100
    one = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return [{key: value[start : start + size] for key, value in one.items()} for start in range(0, rows, size)]


def loss_of(model, batches):
    with torch.no_grad(), undisturbed(model):
        pairs = [target_loss(model, batch) for batch in batches]
    return float(sum(s.sum() for s, _ in pairs) / sum(torch.as_tensor(n).sum() for _, n in pairs))


class Teacher(nn.Module):
    """Linear layers side by side, each with a target of its own: a quadratic loss, and closed forms."""

    def __init__(self, modules=3, size=6):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(modules))

    def forward(self, x):
        return torch.stack([layer(x) for layer in self.layers])  # (M, b, m)


def squares(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).sum((0, 2)), torch.ones(len(x))


def linear_teacher(rank=3, modules=3, size=6):
    torch.manual_seed(0)
    model = lora(Teacher(modules, size), rank, [f"layers.{i}" for i in range(modules)], task_type=None)
    x = torch.randn(40, size)
    return model, [(x[i : i + 8], torch.randn(modules, 40, size)[:, i : i + 8]) for i in range(0, 40, 8)]


def mean_squares(model, batches):
    with torch.no_grad():
        return sum(squares(model, b)[0].sum() for b in batches) / sum(len(b[0]) for b in batches)


def test_sum_of_contributions_is_the_held_out_gain_of_a_quadratic_loss():
    model, batches = linear_teacher()
    found = contributions(model, batches, squares)
    whole = mean_squares(model, batches)
    with model.disable_adapter():
        gain = mean_squares(model, batches) - whole
    assert sum(value.sum() for value in found.values()).item() == pytest.approx(gain.item(), rel=1e-5)


def closed_forms(model, batches):
    """[(module, j, E <rest, Δ_j x>, E <Δ x, Δ_j x>)]; of one module L(τ) = E ‖τ Δ x - rest‖²."""
    x = torch.cat([b[0] for b in batches])
    y = torch.cat([b[1] for b in batches], dim=1)
    for row, (name, part) in enumerate(lora_parts(model).items()):
        update = (part.lora_B @ part.lora_A * part.scaling).detach()
        u, s, vh = torch.linalg.svd(update)
        rest = y[row] - x @ part.layer.get_base_layer().weight.T  # what the base leaves
        for j in range(part.rank):
            own = s[j] * (x @ vh[j])[:, None] * u[:, j]  # the component's outputs
            yield name, j, (rest * own).sum(1).mean().item(), ((x @ update.T) * own).sum(1).mean().item()


def test_contributions_of_a_linear_teacher_equal_their_closed_form():
    model, batches = linear_teacher(rank=2, modules=2)
    with torch.no_grad():  # the adapter does half of what its teacher does in the first module, all in the second
        outputs = model(torch.cat([b[0] for b in batches])).detach()
        with model.disable_adapter():
            plain = model(torch.cat([b[0] for b in batches]))
    targets = plain + torch.tensor([2.0, 1.0])[:, None, None] * (outputs - plain)
    batches = [(x, targets[:, i : i + 8]) for i, (x, _) in zip(range(0, 40, 8), batches)]
    found, path, forms = contributions(model, batches, squares), path_points(2), list(closed_forms(model, batches))
    rates = torch.tensor([[2 * aim - 2 * tau * own for _, _, aim, own in forms] for tau, _ in path])
    for (name, j, aim, own), expected in zip(forms, shares_of_gain(rates, path)):
        assert found[name][j].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    first, second = list(found)
    integrated, cuts = {(name, j): 2 * aim - own for name, j, aim, own in forms}, contributions(
        model, batches, squares, shares=False
    )
    assert all(cuts[name][j].item() == pytest.approx(own, rel=1e-4, abs=1e-6) for (name, j), own in integrated.items())
    assert found[first].sum() > sum(integrated[first, j] for j in range(2))  # it goes on where the other has arrived
    assert found[second].sum() < sum(integrated[second, j] for j in range(2))


def test_of_a_teacher_that_is_met_contributions_are_the_integrated_gradient():
    model, batches = linear_teacher(rank=2, modules=2)
    batches = [(x, model(x).detach()) for x, _ in batches]  # every rate falls as 1 - τ
    found = contributions(model, batches, squares)
    for name, j, aim, own in closed_forms(model, batches):
        assert found[name][j].item() == pytest.approx(2 * aim - own, rel=1e-4, abs=1e-6)


def test_shares_of_gain():
    path = [(0.25, 0.5), (0.75, 0.5)]
    shares = lambda *rates: shares_of_gain(torch.tensor(rates), path).tolist()
    assert shares([6.0, 2.0], [3.0, 1.0]) == pytest.approx([4.5, 1.5])  # alike at both points: the integral
    # easy at first, equal later: (0.9, 0.1) and (0.5, 0.5) of a gain of 6, where the integral has (5, 1)
    assert shares([9.0, 1.0], [1.0, 1.0]) == pytest.approx([6 * 0.7, 6 * 0.3])
    assert shares([9.0, 1.0, 0.0], [1.0, 1.0, 0.0])[2] == 0
    # no gain at the end: a tenth of the mean rate, 4, stands in for it
    assert shares([6.0, 2.0], [1.0, -1.0]) == pytest.approx([4 * (0.75 + 2.5), 4 * (0.25 - 2.5)])
    assert shares([-2.0, 1.0], [-1.0, 1.0]) == pytest.approx([-1.5, 1.0])  # nothing to share: the integral


def test_what_does_nothing_contributes_exactly_nothing():
    model, batches = linear_teacher(rank=4, modules=3)
    parts = lora_parts(model)
    first, second, _ = parts.values()
    first.set_lora_B(torch.zeros_like(first.lora_B))
    with torch.no_grad():  # an update of rank 2 in four components
        second.lora_A[2:] = second.lora_A[:2]
    found = contributions(model, batches, squares)
    names = list(parts)
    assert found[names[0]].tolist() == [0, 0, 0, 0]
    assert found[names[1]][2:].tolist() == [0, 0] and (found[names[1]][:2] != 0).all()


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama"])
def test_sum_is_the_held_out_gain_of_a_language_model(family):
    torch.manual_seed(0)
    causal = family != "roberta"
    model = lora(FAMILIES[family](), 4, LINEARS[family], task_type="CAUSAL_LM" if causal else "SEQ_CLS")
    batches = token_batches(causal=causal)
    whole = loss_of(model, batches)
    with model.disable_adapter():
        gain = loss_of(model, batches) - whole
    found = contributions(model, batches, points=24)
    assert sum(value.sum() for value in found.values()).item() == pytest.approx(gain, rel=2e-3, abs=1e-5)
    assert set(found) == set(lora_parts(model))


def test_batch_size_and_sharing_do_not_matter():
    torch.manual_seed(0)
    model = lora(tiny_gpt2(), 4, LINEARS["gpt2"], task_type="CAUSAL_LM")
    expected = contributions(model, token_batches(size=4))
    other = contributions(model, token_batches(size=5))
    shares = []
    for process in range(2):  # of two processes: what each has added up, then the sum of both
        contributions(model, token_batches(size=5)[process::2], reduce=lambda t: shares.append(t[0].clone()))
    both = contributions(model, token_batches(size=5)[:1], reduce=lambda t: t[0].copy_(sum(shares)))
    for name, value in expected.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-7)


def test_fused_parts_contribute_apart_and_add_up():
    from autolora_trainer.lora.fused import add_lora

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn#q", "c_attn#v"])
    model = add_lora(tiny_gpt2(), config, rank=3)
    for part in lora_parts(model).values():
        part.set_lora_B(0.3 * torch.randn(part.lora_B.shape))
    found = contributions(model, token_batches(), points=24)
    assert list(found) == [f"transformer.h.{i}.attn.c_attn#{p}" for i in range(2) for p in "qv"]
    whole = loss_of(model, token_batches())
    with model.disable_adapter():
        gain = loss_of(model, token_batches()) - whole
    assert sum(value.sum() for value in found.values()).item() == pytest.approx(gain, rel=2e-3, abs=1e-5)


def test_model_ends_bit_for_bit_as_it_was():
    torch.manual_seed(0)
    model = lora(tiny_roberta(hidden_dropout_prob=0.5), 4, LINEARS["roberta"])
    model.train()
    model.base_model.model.roberta.encoder.layer[1].eval()
    model(**token_batches(causal=False)[0]).loss.backward()  # a pending gradient
    before = copy.deepcopy(model.state_dict())
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    contributions(model, token_batches(causal=False))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters() if n in grads)
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert {n for n, p in model.named_parameters() if p.requires_grad} >= set(grads)
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_does_not_matter():
    values = []
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        model = lora(tiny_roberta(hidden_dropout_prob=dropout), 4, LINEARS["roberta"], lora_dropout=dropout).train()
        values.append(contributions(model, token_batches(causal=False)))
    for name, value in values[0].items():
        assert torch.equal(values[1][name], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_same_within_its_rounding(dtype):
    torch.manual_seed(0)
    model = lora(tiny_llama(), 4, LINEARS["llama"], task_type="CAUSAL_LM")
    exact = contributions(model, token_batches())
    with torch.autocast("cpu", dtype=dtype):
        rough = contributions(model, token_batches())
    scale = max(value.abs().max() for value in exact.values())
    for name, value in exact.items():
        assert (rough[name] - value).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.01) * scale


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_keeps_checkpointing_and_changes_nothing(reentrant):
    torch.manual_seed(0)
    model = lora(tiny_llama(attention_dropout=0.5), 4, LINEARS["llama"], task_type="CAUSAL_LM").train()
    exact = contributions(model, token_batches())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    layer = model.get_base_model().model.layers[0]
    calls = []
    handle = layer.mlp.register_forward_pre_hook(lambda *a: calls.append(1))
    again = contributions(model, token_batches(size=12), points=1)
    handle.remove()
    assert len(calls) == 2, "computed in the forward pass, and anew in the backward pass"
    again = contributions(model, token_batches())
    for name, value in exact.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-8)
    assert "forward" not in vars(layer)


def test_half_precision_adapters_lose_nothing_and_come_back():
    torch.manual_seed(0)
    model = lora(tiny_llama(), 4, LINEARS["llama"], task_type="CAUSAL_LM").to(torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    found = contributions(model, token_batches())
    assert all(torch.isfinite(value).all() for value in found.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_module_that_no_gradient_reaches_is_named():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x) + self.idle(x).detach()

    model = lora(Part(), 2, ["used", "idle"], task_type=None)

    def loss(model, x):
        return model(x).square().sum(), len(x)

    with pytest.raises(ValueError, match="No held-out gradient reaches 'idle'"):
        contributions(model, [torch.randn(3, 4)], loss)
    with pytest.raises(ValueError, match="at least one target, got none"):
        contributions(model, [], loss)


def test_path_points_integrate_polynomials():
    for points in (1, 2, 3, 5):
        degree = 2 * points - 1
        assert sum(w * tau**degree for tau, w in path_points(points)) == pytest.approx(1 / (degree + 1))


def test_rows_say_the_same_as_the_models_own_loss():
    torch.manual_seed(0)
    for model, causal in ((tiny_gpt2(), True), (tiny_llama(), True), (tiny_roberta(), False)):
        batch = token_batches(causal=causal)[0]
        with torch.no_grad():
            sums, counts = target_loss(model, batch)
            assert sums.shape == counts.shape == (4,)
            assert (sums.sum() / counts.sum()).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
        assert count_targets(model, batch) == counts.sum()


def test_batches_hold_every_row_once_over_processes():
    rows = [{"input_ids": [1] * (1 + i % 7)} for i in range(23)]
    shares = [ordered_batches(rows, 4, list, process, 3) for process in range(3)]
    lengths = sorted(len(row["input_ids"]) for share in shares for batch in share for row in batch)
    assert lengths == sorted(1 + i % 7 for i in range(23))


def test_every_process_computes_as_many_batches():
    """Trainers such as TRL's gather figures in every loss: a process with fewer would let the others wait for ever."""
    rows = [{"input_ids": [1] * length} for length in range(1, 12)]
    for size, processes in ((2, 4), (4, 2), (3, 4), (11, 3), (1, 2)):
        shares = [
            ordered_batches(rows, size, lambda own: {"rows": own}, index, processes) for index in range(processes)
        ]
        assert len({len(own) for own in shares}) == 1
        real = [row for own in shares for batch in own if not isinstance(batch, Idle) for row in batch["rows"]]
        assert sorted(len(row["input_ids"]) for row in real) == list(range(1, 12))
