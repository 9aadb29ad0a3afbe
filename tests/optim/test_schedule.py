"""Schedules at the points where their formulas are plain numbers."""

import pytest

from nanigpt.optim.schedule import Cosine, Linear, WarmupStableDecay


def curve(schedule, steps):
    return [schedule(step, steps) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_peak():
    for schedule in (
        Cosine(warmup_steps=4),
        Linear(warmup_steps=4),
        WarmupStableDecay(warmup_steps=4),
    ):
        assert curve(schedule, 20)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine():
    factors = curve(Cosine(warmup_steps=0, final=0.2), 101)
    assert factors[0] == 1.0
    assert factors[25] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + 0.5**0.5))
    assert factors[50] == pytest.approx(0.6)
    assert factors[100] == pytest.approx(0.2)
    assert factors == sorted(factors, reverse=True)


def test_linear():
    assert curve(Linear(final=0.0), 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert curve(Linear(final=0.2), 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("kind", [Cosine, Linear, WarmupStableDecay])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_last_step_learns(kind, final):
    factors = curve(kind(warmup_steps=5, final=final), 100)
    assert min(factors[5:]) == factors[-1] > 0
    assert kind(warmup_steps=5, final=final)(100, 100) == pytest.approx(final)


def test_warm_up_stable_decay():
    factors = curve(WarmupStableDecay(final=0.0, decay_fraction=0.25), 100)
    assert factors[:76] == pytest.approx([1.0] * 76)
    assert factors[88] == pytest.approx(12 / 25)
    assert factors[99] == pytest.approx(1 / 25)


def test_past_the_end_the_factor_stays():
    assert Cosine(final=0.1)(500, 100) == pytest.approx(0.1)


def test_a_warm_up_may_be_a_fraction_of_all_steps():
    assert curve(Cosine(warmup_steps=0.05), 100) == curve(Cosine(warmup_steps=5), 100)
    assert curve(Cosine(warmup_steps=0.05), 19) == curve(Cosine(warmup_steps=0), 19)
    assert Cosine(warmup_steps=5.0).warmup(100) == 5


@pytest.mark.parametrize(
    "kwargs",
    [{"warmup_steps": -1}, {"warmup_steps": 1.5}, {"final": 1.5}, {"final": -0.1}],
)
def test_wrong_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        Cosine(**kwargs)
