from __future__ import annotations

import pytest
import torch

from mtlsi import device
from mtlsi.device import choose_precision, find_device, keep_freed_memory
from mtlsi.errors import MistakeError


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.parametrize("name", [None, "auto", "cpu"])
def test_without_an_accelerator_everything_runs_on_the_processor(no_accelerator, name):  # noqa: ARG001
    assert find_device(name) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "found"), [(None, "cuda"), ("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:1", "cuda:1")]
)
def test_an_accelerator_is_taken_unless_told_otherwise(two_gpus, name, found):  # noqa: ARG001
    assert find_device(name) == torch.device(found)


@pytest.mark.parametrize("name", ["cuda", "gpu", "cuda:0", ""])
def test_a_device_that_is_not_there_is_refused(no_accelerator, name):  # noqa: ARG001
    with pytest.raises(MistakeError, match=r"expected auto or one of cpu$"):
        find_device(name)


def test_a_third_of_two_accelerators_is_refused(two_gpus):  # noqa: ARG001
    with pytest.raises(MistakeError, match="cpu, cuda, cuda:0, cuda:1"):
        find_device("cuda:2")


def test_a_precision_that_is_named_is_taken():
    assert [choose_precision(name) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    with pytest.raises(MistakeError, match="'fp16'; expected float32, bfloat16 or auto"):
        choose_precision("fp16")


@pytest.mark.parametrize(("bf16_seconds", "chosen"), [(0.79, "bfloat16"), (0.81, "float32")])
def test_auto_takes_bf16_where_it_is_clearly_faster(monkeypatch, bf16_seconds, chosen):
    times = iter([0.0, 1.0, 5.0, 5.0 + bf16_seconds])  # float32 is measured first
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(times))
    assert choose_precision("auto", "cpu") == chosen


def test_keeping_freed_memory_leaves_memory_usable():
    keep_freed_memory()
    assert sum(torch.ones(2**20).sum().item() for _ in range(8)) == 8 * 2**20
