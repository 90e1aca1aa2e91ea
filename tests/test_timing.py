from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch

from mtlsi import timing
from mtlsi.timing import (
    Timing,
    copy_rate,
    describe_machine,
    fit_power,
    matrix_rate,
    peak_memory,
    time_calls,
)

CPU = torch.device("cpu")
RATES = {"product": 1e9, "convolution": 2e9}
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the resident size is read from /proc: Linux only")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is advanced: nothing else on the machine can move it."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_calls_take_as_long_as_the_clock_says(clock):
    found = time_calls({"short": lambda: clock(0.25), "long": lambda: clock(4.0)}, repeats=3, warmup=1)
    for name, seconds in (("short", 0.25), ("long", 4.0)):
        assert found[name].lowest_s == found[name].median_s == found[name].highest_s == seconds


def test_calls_take_turns_and_the_warm_up_is_not_counted(clock):
    turns = []

    def slow_at_first():
        turns.append("a")
        clock(8.0 if len(turns) <= 3 else 0.5)

    found = time_calls({"a": slow_at_first, "b": lambda: turns.append("b")}, repeats=3, warmup=2)
    assert turns == ["a", "b"] * 5
    assert found["a"].highest_s == 0.5


def test_the_median_is_the_middle_one(clock):
    naps = iter([4.0, 0.0, 1.0])
    found = time_calls({"": lambda: clock(next(naps))}, repeats=3, warmup=0)[""]
    assert (found.lowest_s, found.median_s, found.highest_s) == (0.0, 1.0, 4.0)


def test_the_exponent_of_a_power_is_found_again():
    x = [100, 250, 700, 3000]
    exponent, factor = fit_power(x, [0.3 * value**1.05 for value in x]) or (0, 0)
    assert exponent == pytest.approx(1.05)
    assert factor == pytest.approx(0.3)


def test_the_fit_is_that_of_least_squares():
    numbers = np.random.default_rng(0)
    x, y = numbers.uniform(1, 9, 12), numbers.uniform(1, 9, 12)
    slope, offset = np.polyfit(np.log(x), np.log(y), 1)
    assert fit_power(list(x), list(y)) == pytest.approx((slope, np.exp(offset)))


@pytest.mark.parametrize(("x", "y"), [([5], [1]), ([5, 5], [1, 2]), ([5, 6], [1, 0]), ([5, 6], [-1, 2])])
def test_what_has_no_exponent_gets_none(x, y):
    assert fit_power(x, y) is None


@needs_proc
def test_memory_that_a_call_takes_and_gives_back_is_seen():
    numbers = [1.0] * 2**20  # they become an array of 8 bytes each for a moment, and one number is left
    rise = peak_memory(partial(partial, np.linalg.norm, numbers), CPU)  # a fresh process could not import this file
    if rise is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 8 * 2**20 <= rise < 12 * 2**20


def test_memory_that_cannot_be_measured_is_none():
    assert peak_memory(partial(partial, int), torch.device("meta")) is None


def test_the_rate_of_products_is_their_operations_over_the_faster_ways_time(clock, monkeypatch):
    """Of a machine that does 10^9 operations a second in products, and twice as many in convolutions."""
    ways = timing.ways_to_square

    def timed_ways(a):
        return {name: lambda c=call, n=name: (c(), clock(2 * len(a) ** 3 / RATES[n])) for name, call in ways(a).items()}

    monkeypatch.setattr(timing, "ways_to_square", timed_ways)
    monkeypatch.setattr(timing, "MATRIX_SIDES", (32, 64))  # the clock knows no other time than that of the operations
    assert matrix_rate(torch.float32, CPU) == pytest.approx(2e9)


def test_the_rate_of_copies_counts_what_is_read_and_what_is_written(monkeypatch):
    monkeypatch.setattr(timing, "time_calls", lambda calls, **_: {name: Timing(1.0, 0.5, 2.0) for name in calls})
    assert copy_rate(CPU, 2**20) == 2 * 2**20 / 0.5


def test_the_machine_is_described():
    described = describe_machine(CPU)
    assert described["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads()
    assert described["cpu"].strip()
