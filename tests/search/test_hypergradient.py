"""Is the hypergradient the derivative it claims to be? Truth: central differences of L_val(W - u(∇L_tr)) in
float64."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from autolora_trainer.sample import encoder_path
from autolora_trainer.sample.data import generate
from autolora_trainer.search import hypergradient
from autolora_trainer.search.selection import attach_gates
from tests.helpers.measures import relative_error
from tests.helpers.models import lora, tiny_roberta


class TwoLayers(nn.Module):
    """y = Σ_j α_j (U_j V_j) x twice, in float64: the smallest thing with a selection variable and a second order."""

    def __init__(self):
        super().__init__()
        shape = {"A1": (3, 5), "B1": (5, 3), "A2": (3, 5), "B2": (2, 3)}
        self.weights = [nn.Parameter(torch.randn(*s, dtype=torch.float64)) for s in shape.values()]
        self.selection = torch.softmax(torch.randn(2, 3, dtype=torch.float64), dim=-1)
        self.data = {
            name: (torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64))
            for name in ("tr", "val")
        }

    def loss(self, name, selection=None, weights=None):
        alpha = self.selection if selection is None else selection
        a1, b1, a2, b2 = self.weights if weights is None else weights
        x, y = self.data[name]
        hidden = torch.tanh((x @ a1.T * alpha[0]) @ b1.T)
        return (((hidden @ a2.T * alpha[1]) @ b2.T - y) ** 2).mean()

    def closures(self):
        return lambda: [self.loss("tr")], lambda: [self.loss("val")]

    def train_gradient(self):
        return list(torch.autograd.grad(self.loss("tr"), self.weights))


def true_hypergradient(model, take_step, h=1e-6):
    """Central differences over α of L_val(W - u(∇_W L_tr(W, α)), α), entry by entry."""
    result = torch.zeros_like(model.selection)
    for index in range(result.numel()):
        values = []
        for sign in (1, -1):
            alpha = model.selection.clone()
            alpha.view(-1)[index] += sign * h
            grads = torch.autograd.grad(model.loss("tr", alpha), model.weights)
            updates, _ = take_step(model.weights, list(grads))
            moved = [w.detach() - u.detach() for w, u in zip(model.weights, updates)]
            values.append(model.loss("val", alpha, moved).item())
        result.view(-1)[index] = (values[0] - values[1]) / (2 * h)
    return result


def warm_adamw(model, steps=3):
    optimizer = torch.optim.AdamW(model.weights, lr=0.02, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss("tr").backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def steps_under_test(model):
    yield hypergradient.sgd_step(0.1)
    yield hypergradient.adamw_step(warm_adamw(model))
    yield hypergradient.adamw_step(warm_adamw(model), clip=0.3)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["sgd", "adamw", "adamw clipped"])
def test_exact_equals_central_differences(which):
    model = TwoLayers()
    step = list(steps_under_test(model))[which]
    result = hypergradient.exact(*model.closures(), model.weights, model.selection, model.train_gradient(), step)
    assert relative_error(result.total, true_hypergradient(model, step)) < 1e-7
    assert relative_error(result.direct, true_hypergradient(model, step)) > 1e-3  # the implicit term can be told apart


def test_finite_difference_equals_exact_and_its_error_falls_with_the_square_of_the_radius():
    model, step = TwoLayers(), hypergradient.sgd_step(0.1)
    arguments = (*model.closures(), model.weights, model.selection, model.train_gradient(), step)
    truth = hypergradient.exact(*arguments).implicit
    errors = [
        relative_error(hypergradient.finite_difference(*arguments, radius=radius).implicit, truth)
        for radius in (0.1, 0.01)
    ]
    assert errors[1] < 1e-4
    assert 50 < errors[0] / errors[1] < 200


def test_adamw_step_is_the_step_that_adamw_takes():
    model = TwoLayers()
    optimizer = warm_adamw(model)
    gradient = model.train_gradient()
    updates, _ = hypergradient.adamw_step(optimizer)(model.weights, gradient)
    expected = [w.detach() - u for w, u in zip(model.weights, updates)]
    for weight, g in zip(model.weights, gradient):
        weight.grad = g
    optimizer.step()
    for weight, value in zip(model.weights, expected):
        torch.testing.assert_close(weight.detach(), value.detach(), rtol=0, atol=1e-14)


def test_adamw_step_refuses_a_weight_it_does_not_know():
    with pytest.raises(ValueError, match="needs every weight in the optimizer"):
        weight = nn.Parameter(torch.ones(2))
        hypergradient.adamw_step(torch.optim.AdamW([nn.Parameter(torch.ones(1))]))([weight], [torch.ones(2)])


def test_no_inner_step_leaves_only_the_direct_gradient():
    model = TwoLayers()
    arguments = (model.weights, model.selection, model.train_gradient(), hypergradient.sgd_step(0.0))
    for method in (hypergradient.exact, hypergradient.finite_difference):
        result = method(*model.closures(), *arguments)
        assert result.implicit.abs().max() == 0
        first_order = hypergradient.first_order(model.closures()[1], model.selection)
        torch.testing.assert_close(result.direct, first_order.direct, rtol=0, atol=0)


def test_micro_batches_add_up():
    model, step = TwoLayers(), hypergradient.sgd_step(0.1)
    whole = hypergradient.finite_difference(
        *model.closures(), model.weights, model.selection, model.train_gradient(), step
    )

    def halves(name):
        x, y = model.data[name]

        def losses():
            for part in (slice(0, 4), slice(4, 8)):
                model.data[name] = (x[part], y[part])
                yield model.loss(name) / 2
            model.data[name] = (x, y)

        return losses

    parts = hypergradient.finite_difference(
        halves("tr"), halves("val"), model.weights, model.selection, model.train_gradient(), step
    )
    torch.testing.assert_close(whole.total, parts.total, rtol=1e-7, atol=1e-12)


def test_weights_are_restored_bit_for_bit_even_after_an_error():
    model = TwoLayers()
    before = copy.deepcopy(model.weights)

    def fails():
        raise RuntimeError("held-out batch lost")

    step = hypergradient.sgd_step(0.1)
    train, val = model.closures()
    hypergradient.finite_difference(train, val, model.weights, model.selection, model.train_gradient(), step)
    with pytest.raises(RuntimeError):
        hypergradient.finite_difference(train, fails, model.weights, model.selection, model.train_gradient(), step)
    assert all(torch.equal(w, b) for w, b in zip(model.weights, before))
    assert not model.selection.requires_grad


# ---- a transformer in a trained state, with dropout and gates


def transformer(dropout, dtype=torch.float32):
    model = lora(
        tiny_roberta(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout), lora_dropout=dropout
    ).to(dtype)
    gates = attach_gates(model)
    with torch.no_grad():
        gates.logits.copy_(torch.randn(gates.logits.shape))
    gates.refresh()
    if dtype == torch.float64:
        gates.selection = gates.selection.double()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = [{"input_ids": torch.randint(3, 60, (8, 12)), "labels": torch.randint(0, 2, (8,))} for _ in range(2)]
    model.train()
    return model, gates, weights, batch


def replayed(model, batch, seed):
    def losses():
        torch.manual_seed(seed)
        yield model(**batch).loss

    return losses


def both_estimates(model, gates, weights, batch, train=None):
    train, val = train or replayed(model, batch[0], 1), replayed(model, batch[1], 2)
    gradient, _ = hypergradient.gradients(train, weights)
    arguments = (train, val, weights, gates.selection, gradient, hypergradient.sgd_step(1.0))
    return hypergradient.exact(*arguments), hypergradient.finite_difference(*arguments)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_finite_difference_equals_exact_on_a_trained_transformer_with_replayed_dropout(dropout):
    exact, estimate = both_estimates(*transformer(dropout))
    assert exact.implicit.norm() > 1e-6
    assert relative_error(estimate.implicit, exact.implicit) < 5e-3
    assert torch.cosine_similarity(estimate.implicit.flatten(), exact.implicit.flatten(), dim=0) > 0.9999


def test_finite_difference_equals_exact_on_the_shipped_encoder():
    """A pre-trained model of six blocks on rows of the sample, in a state like a trained one, with dropout."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    base = AutoModelForSequenceClassification.from_pretrained(encoder_path(), hidden_dropout_prob=0.1)
    model = lora(base, rank=4, lora_dropout=0.1)
    gates = attach_gates(model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made = generate(16, seed=3)
    batch = [
        {
            **tokenizer([row["sentence"] for row in part], padding=True, return_tensors="pt"),
            "labels": torch.tensor([row["label"] for row in part]),
        }
        for part in (made[:8], made[8:])
    ]
    exact, estimate = both_estimates(model.train(), gates, weights, batch)
    assert relative_error(estimate.implicit, exact.implicit) < 0.02
    assert torch.cosine_similarity(estimate.implicit.flatten(), exact.implicit.flatten(), dim=0) > 0.999


def test_fresh_dropout_masks_would_be_noise():
    model, gates, weights, batch = transformer(0.1)
    exact, _ = both_estimates(model, gates, weights, batch)
    seeds = iter(range(100, 200))

    def fresh():
        torch.manual_seed(next(seeds))
        yield model(**batch[0]).loss

    gradient, _ = hypergradient.gradients(replayed(model, batch[0], 1), weights)
    noisy = hypergradient.finite_difference(
        fresh, replayed(model, batch[1], 2), weights, gates.selection, gradient, hypergradient.sgd_step(1.0)
    )
    assert relative_error(noisy.implicit, exact.implicit) > 1


def test_direct_gradient_is_zero_while_lora_B_is_zero():
    model, gates, weights, batch = transformer(0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert hypergradient.selection_gradient(replayed(model, batch[1], 2), gates.selection).abs().max() == 0


def test_selection_gradient_is_a_by_product_of_the_weight_gradient():
    """∂L/∂α_j = <B_j, ∂L/∂B_j> / α_j, as the loss depends on α_j only through α_j B_j."""
    model, gates, weights, batch = transformer(0.1)
    loss = replayed(model, batch[0], 1)
    direct = hypergradient.selection_gradient(loss, gates.selection)
    layers = [layer.lora_B["default"].weight for layer in gates.layers.values()]
    grads, _ = hypergradient.gradients(loss, layers)
    by_product = torch.stack([(b * g).sum(dim=0) for b, g in zip(layers, grads)]) / gates.selection
    torch.testing.assert_close(by_product, direct, rtol=1e-4, atol=1e-7)


# ---- what a selection step costs beside its passes


class Operations(TorchDispatchMode):
    """Names of the operations that ran; views are none."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name not in ("view", "expand", "detach", "unbind", "split", "split_with_sizes", "select"):
            self.names.append(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("one_sided", [False, True])
def test_nothing_waits_for_the_device(one_sided):
    """`.item()`, `bool(tensor)` and copies to the CPU would stop a GPU at every step."""
    model = TwoLayers()
    step = hypergradient.adamw_step(warm_adamw(model), clip=torch.tensor(0.3))
    gradient = model.train_gradient()
    base = hypergradient.selection_gradient(model.closures()[0], model.selection) if one_sided else None
    with Operations() as operations:
        hypergradient.finite_difference(*model.closures(), model.weights, model.selection, gradient, step, base=base)
    assert not {"_local_scalar_dense", "is_nonzero", "nonzero", "equal"} & set(operations.names)


def test_adamw_step_is_one_calculation_however_many_weights_there_are():
    counts = []
    for modules in (2, 20):
        weights = [nn.Parameter(torch.randn(3, 4)) for _ in range(modules)]
        optimizer = torch.optim.AdamW(weights)
        gradients = [torch.randn_like(weight) for weight in weights]
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        optimizer.step()
        with Operations() as operations, torch.no_grad():
            hypergradient.adamw_step(optimizer)(weights, gradients)
        counts.append(len(operations.names))
    assert counts[0] == counts[1]


def test_adamw_step_needs_no_double_where_there_is_none(monkeypatch):
    """Apple's mps: `step` lies there, too, with a fused optimizer."""
    weights = [nn.Parameter(torch.randn(3, 4))]
    optimizer = torch.optim.AdamW(weights, lr=0.01)
    weights[0].grad = torch.randn(3, 4)
    optimizer.step()
    with torch.no_grad():
        expected = hypergradient.adamw_step(optimizer)(weights, [torch.ones(3, 4)])
        assert hypergradient.accurate(torch.device("mps")) == torch.float32
        monkeypatch.setattr(hypergradient, "accurate", lambda device: torch.float32)
        monkeypatch.setattr(torch.Tensor, "double", None)
        found = hypergradient.adamw_step(optimizer)(weights, [torch.ones(3, 4)])
    for values, others in zip(expected, found):
        torch.testing.assert_close(values[0], others[0], rtol=1e-3, atol=1e-6)


def test_adamw_step_with_groups_late_weights_and_a_fused_optimizer():
    """Every weight has its own group, count of steps and averages, or none yet; the truth is AdamW's own step and, for
    J, the derivative of the formula by autograd."""
    for fused in (False, True):
        weights = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in [(3, 2), (4,), (2, 2), (5,)]]
        groups = [
            {"params": [weights[0], weights[2]], "weight_decay": 0.1, "lr": 0.02},
            {"params": [weights[3], weights[1]], "betas": (0.8, 0.99), "lr": 0.01, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, fused=fused)
        for step in range(4):
            for weight in weights[: 2 if step < 2 else 3]:  # the third comes late, the fourth never
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        gradients = [torch.randn_like(weight) for weight in weights]
        take_step = hypergradient.adamw_step(optimizer)
        with torch.no_grad():
            updates, jacobians = take_step(weights, gradients)
        asked = [gradient.clone().requires_grad_() for gradient in gradients]
        slopes = torch.autograd.grad(sum(u.sum() for u in take_step(weights, asked)[0]), asked)
        for jacobian, slope in zip(jacobians, slopes):
            torch.testing.assert_close(jacobian, slope, rtol=1e-9, atol=1e-14)
        expected = [weight.detach() - update for weight, update in zip(weights, updates)]
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        optimizer.step()
        for weight, value in zip(weights, expected):
            torch.testing.assert_close(weight.detach(), value, rtol=0, atol=1e-14)
