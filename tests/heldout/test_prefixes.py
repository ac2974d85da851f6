"""Is the size found, where there is one to find, and none where nothing was learned?"""

import math

import pytest
import torch

from autolora_trainer.heldout.contributions import contributions
from autolora_trainer.heldout.prefixes import (
    SIZES,
    chosen_of,
    find_size,
    in_order,
    mean_loss,
    measured_prefixes,
    paired_error,
)
from tests.heldout.test_contributions import linear_teacher, mean_squares, squares

COSTS = {"m": 10}


def losses_of(gains, rows=200, noise=0.05, start=1.0, seed=0):
    """losses(components): every component takes its gain off the loss of every row, with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    each = [gain * (1 + noise * torch.randn(rows, generator=generator)) for gain in gains]
    base = start * (1 + 0.3 * torch.randn(rows, generator=generator))

    def losses(components):
        values = base - sum((each[j] for _, j in components), torch.zeros(rows))
        return torch.stack([values, torch.ones(rows)], dim=1).double()

    return losses


ORDER = [("m", j) for j in range(40)]


@pytest.mark.parametrize("real", [1, 2, 7, 26, 40])
def test_the_exact_number_of_components_is_found(real):
    gains = [0.9 / real] * real + [-1e-4] * (40 - real)
    curve = find_size(losses_of(gains), ORDER, COSTS, 0.01)
    assert curve.decided and curve.kept == real and len(curve.points) <= SIZES
    assert curve.points[0].parameters == 0 and curve.points[-1].parameters == 400
    assert curve.gain == pytest.approx(0.9, abs=0.05)


def test_a_larger_tolerance_gives_a_smaller_adapter():
    gains = [0.5 * 0.8**j for j in range(40)]
    sizes = [find_size(losses_of(gains), ORDER, COSTS, tolerance).kept for tolerance in (0.001, 0.01, 0.05, 0.2)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] > 0
    lost = [0.8**kept for kept in sizes]  # the share of the gain
    assert all(share <= tolerance * 1.2 for share, tolerance in zip(lost, (0.001, 0.01, 0.05, 0.2)))


def test_few_rows_do_not_make_it_smaller():
    """What a handful of rows cannot tell is kept."""
    gains = [0.5 * 0.8**j for j in range(40)]
    many = find_size(losses_of(gains, rows=2000, noise=1.0), ORDER, COSTS, 0.02).kept
    for seed in range(10):
        assert find_size(losses_of(gains, rows=12, noise=1.0, seed=seed), ORDER, COSTS, 0.02).kept >= many - 2


def test_nothing_learned_is_undecided():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        gains = (0.02 * torch.randn(40, generator=generator)).tolist()
        rows = torch.randn(40, 200, generator=generator)

        def losses(components):
            values = torch.ones(200) - sum((rows[j] * 0.02 for _, j in components), torch.zeros(200))
            return torch.stack([values, torch.ones(200)], dim=1).double()

        curve = find_size(losses, ORDER, COSTS)
        assert (curve.kept, curve.decided) == (0, False), seed
    assert gains


def test_an_adapter_that_overfits_keeps_what_helps():
    gains = [0.3, 0.2] + [-0.05] * 38
    curve = find_size(losses_of(gains, noise=0.01), ORDER, COSTS, 0.01)
    assert curve.decided and 1 <= curve.kept <= 4 and curve.points[-1].loss > curve.points[0].loss


def test_no_component_that_helps_is_undecided():
    curve = find_size(losses_of([]), [], COSTS)
    assert (curve.kept, curve.decided, len(curve.points)) == (0, False, 1)


def test_no_adapter_is_measured_with_a_head_of_its_own():
    losses = losses_of([0.5, 0.1])
    alone = losses([("m", 0), ("m", 1)])  # a head alone does as well
    assert not find_size(losses, ORDER[:2], COSTS, none=alone).decided


def test_paired_error_of_the_ratio_estimator():
    torch.manual_seed(0)
    counts = torch.randint(1, 20, (400,)).double()
    one, other = (torch.stack([counts * torch.rand(400), counts], dim=1) for _ in range(2))
    resampled = []
    for _ in range(500):
        rows = torch.randint(0, 400, (400,))
        resampled.append(mean_loss(one[rows]) - mean_loss(other[rows]))
    assert paired_error(one, other) == pytest.approx(torch.tensor(resampled).std().item(), rel=0.15)
    assert paired_error(one, one) == 0 and paired_error(one[:1], other[:1]) == math.inf


def test_prefixes_are_measured_with_the_other_components_off():
    model, batches = linear_teacher(rank=3, modules=3)
    found = contributions(model, batches, squares)
    order = in_order(found, dict.fromkeys(found, 12))
    assert {c for c in order} == {(name, j) for name in found for j in range(3)}
    with measured_prefixes(model, batches, squares) as losses:
        whole, none, one = losses(order), losses([]), losses(order[:1])
    assert whole.shape == (40, 2)
    assert mean_loss(whole) == pytest.approx(float(mean_squares(model, batches)), rel=1e-5)
    with model.disable_adapter():
        assert mean_loss(none) == pytest.approx(float(mean_squares(model, batches)), rel=1e-5)
    assert min(mean_loss(none), mean_loss(whole)) != mean_loss(one)
    assert chosen_of(order[:2]) == {order[0][0]: [order[0][1]], order[1][0]: [order[1][1]]} or (
        order[0][0] == order[1][0]
    )


def test_of_the_whole_the_loss_itself_may_grow():
    """The measure of a cut: of a loss of 1.12 the last two components may go for 3 %, the last one for 1 %."""
    losses = losses_of([0.5, 0.2, 0.1, 0.05, 0.02, 0.01], noise=0, start=2.0)
    kept = lambda tolerance: find_size(losses, ORDER[:6], COSTS, tolerance, of_whole=True).kept
    assert [kept(tolerance) for tolerance in (0.0, 0.01, 0.03)] == [6, 5, 4]
    nothing = find_size(losses_of([0.0] * 40, noise=0), ORDER, COSTS, 0.01, of_whole=True)
    assert nothing.kept == 1 and not nothing.decided


def test_a_size_has_room_for_what_the_rows_teach():
    """Five components of 10 parameters keep all that a short search has learned, 0.9 nats of each target."""
    losses = losses_of([0.18] * 5 + [1e-6] * 35, noise=0)
    kept = lambda targets: find_size(losses, ORDER, COSTS, 0.01, targets=targets).kept
    bits = 0.9 / math.log(2)
    assert kept(None) == kept(int(5 * 10 * 3 / bits)) == 5  # 3 bits a parameter: 1.5 times the 2 that it stores
    curve = find_size(losses, ORDER, COSTS, 0.01, targets=int(17 * 10 * 3 / bits))
    assert curve.kept == 17 and curve.size == 170 and curve.load(170) == pytest.approx(1.5, rel=0.01)
    assert kept(10**6) == 40  # all that there is


@pytest.mark.parametrize("noise, kept", [(0.0, 5), (0.04, 5), (0.09, 6)])
def test_a_size_is_within_the_tolerance_and_sure_within_twice_that(noise, kept):
    """5 of 6 components lose 0.04 of a gain of 1 at a tolerance of 0.05; how sure that is depends on the rows."""
    sure = torch.tensor([noise, -noise]).repeat(50) * 10  # of mean 0; the mean of 100 rows has an error of `noise`

    def losses(components):
        loss = 2 - sum([0.5, 0.3, 0.1, 0.04, 0.02, 0.04][: len(components)])
        return torch.stack([loss + sure * (0 < len(components) < 6), torch.ones(100)], dim=1).double()

    assert paired_error(losses(ORDER[:5]), losses(ORDER[:6])) == pytest.approx(noise, rel=0.01)
    assert find_size(losses, ORDER[:6], COSTS, 0.05).kept == kept
