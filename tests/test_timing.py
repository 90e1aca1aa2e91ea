from __future__ import annotations

import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from mtlsi.timing import (
    copy_rate,
    describe_machine,
    fit_power,
    matrix_rate,
    peak_memory,
    time_calls,
)

CPU = torch.device("cpu")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the resident size is read from /proc: Linux only")


def test_calls_take_as_long_as_they_sleep():
    found = time_calls({"short": lambda: time.sleep(0.01), "long": lambda: time.sleep(0.04)}, repeats=3, warmup=1)
    for name, seconds in (("short", 0.01), ("long", 0.04)):
        assert seconds <= found[name].lowest_s <= found[name].median_s <= found[name].highest_s
    assert found["short"].lowest_s < 0.03 < found["long"].lowest_s


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    turns = []

    def slow_at_first():
        turns.append("a")
        if len(turns) <= 3:
            time.sleep(0.3)

    found = time_calls({"a": slow_at_first, "b": lambda: turns.append("b")}, repeats=3, warmup=2)
    assert turns == ["a", "b"] * 5
    assert found["a"].highest_s < 0.2


def test_the_median_is_the_middle_one():
    naps = iter([0.0, 0.05, 0.1])
    found = time_calls({"": lambda: time.sleep(next(naps))}, repeats=3, warmup=0)[""]
    assert 0.05 <= found.median_s < 0.1 <= found.highest_s


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


def test_the_rate_of_products_is_that_of_a_stopwatch():
    a = torch.randn(512, 512)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - start)
    assert 0.2 < matrix_rate(torch.float32, CPU) / (2 * 512**3 / min(seconds)) < 5


def test_the_rate_of_copies_is_that_of_numpy():
    source, seconds = np.ones(2**22), []
    target = np.zeros_like(source)
    for _ in range(8):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    assert 0.2 < copy_rate(CPU, source.nbytes) / (2 * source.nbytes / min(seconds)) < 5


def test_the_machine_is_described():
    described = describe_machine(CPU)
    assert described["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads()
    assert described["cpu"].strip()
