"""Schedules against their formulas, written out."""

import math
from fractions import Fraction

import pytest

from pyro_vae.objectives import Constant, Cosine, Cyclical, Linear, Sigmoid


@pytest.mark.parametrize(
    ("cycles", "ratio"), [(4, Fraction(1, 2)), (2, Fraction(1, 4)), (1, Fraction(1))]
)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.25, 2.0)])
def test_cyclical_is_the_array_of_its_paper(cycles, ratio, start, end):
    """Fu et al. (2019): min(1, tau / R) with tau = mod(t, T / M) / (T / M)."""
    steps = 200
    period = Fraction(steps, cycles)
    expected = [
        start + (end - start) * float(min(Fraction(1), (t % period) / period / ratio))
        for t in range(steps)
    ]
    schedule = Cyclical(start, end, steps, cycles=cycles, ratio=float(ratio))
    assert [schedule(t) for t in range(steps)] == pytest.approx(expected, abs=1e-12)
    assert schedule(steps) == schedule(10 * steps) == end


def test_cyclical_by_hand():
    expected = [0.0, 0.5, 1.0, 1.0] * 4 + [1.0]
    schedule = Cyclical(0.0, 1.0, 16)
    assert [schedule(t) for t in range(17)] == expected


FORMULAS = {
    Linear: lambda t: t,
    Cosine: lambda t: (1 - math.cos(math.pi * t)) / 2,
    Sigmoid: lambda t: (math.tanh(6 * t - 3) / math.tanh(3) + 1) / 2,
}


@pytest.mark.parametrize("schedule", FORMULAS)
def test_rises_follow_their_formula(schedule):
    made = schedule(0.5, 2.0, 50)
    expected = [0.5 + 1.5 * FORMULAS[schedule](t / 50) for t in range(50)]
    assert [made(t) for t in range(50)] == pytest.approx(expected, abs=1e-12)
    assert made(50) == made(1000) == 2.0


def test_constant_is_constant():
    assert {Constant(0.3)(t) for t in range(5)} == {0.3}
    assert Constant(0.3).steps == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Linear(0.0, 1.0, -1), "steps to be an integer of at least 0, got -1"),
        (lambda: Linear(0.0, math.nan, 1), "Expected end to be a number, got nan"),
        (lambda: Cyclical(0.0, 1.0, 8, cycles=0), "cycles to be an integer of at least 1, got 0"),
        (lambda: Cyclical(0.0, 1.0, 8, ratio=0.0), r"ratio to be within \(0, 1\], got 0.0"),
    ],
)
def test_what_is_no_schedule_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
