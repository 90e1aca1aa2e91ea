from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from mtlsi import device
from mtlsi.device import choose_precision, find_device, keep_freed_memory
from mtlsi.errors import MistakeError

CAN_FLUSH = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "omp_pause_resource_all")
"""Every x86 and 64-bit ARM CPU flushes."""


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.parametrize("name", [None, "auto", "cpu"])
def test_without_an_accelerator_everything_runs_on_the_cpu(no_accelerator, name):  # noqa: ARG001
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
    quiet, busy = (1.0, bf16_seconds), (9.0, 7.0)  # seconds of float32, which is measured first, and of bf16
    rounds = [busy, (1.0, 8.0), (8.0, bf16_seconds), quiet, busy]
    times = iter([clock for measured in rounds for seconds in measured for clock in (0.0, seconds)])
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(times))
    assert choose_precision("auto", "cpu") == chosen


def test_keeping_freed_memory_leaves_memory_usable():
    keep_freed_memory()
    assert sum(torch.ones(2**20).sum().item() for _ in range(8)) == 8 * 2**20


DENORMALS_LEFT = """
import torch
torch.set_num_threads(4)
denormals = torch.full((2**22,), 1e-39)
def left():  # counted as integers: comparing floats would flush too
    return int(((denormals * 0.5).view(torch.int32) != 0).sum())
"""


def denormals_left(program: str) -> list[int]:
    """What a fresh process prints: there the setting cannot leak into other tests."""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    command = [sys.executable, "-c", DENORMALS_LEFT + program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not CAN_FLUSH, reason="this CPU cannot flush denormals, or its OpenMP cannot stop its workers")
@pytest.mark.parametrize(
    "doing",
    [
        "from mtlsi.device import prepare_process; prepare_process()",
        "from mtlsi.cli import main; assert main(['evaluate', 'nowhere', '--root', 'nowhere']) == 2",
    ],
    ids=["by hand", "by a verb"],
)
def test_workers_that_already_run_flush_denormals_too(doing):
    before, after, threads = denormals_left(f"print(left())\n{doing}\nprint(left(), torch.get_num_threads())")
    assert (before, after, threads) == (2**22, 0, 4)


@pytest.mark.skipif(not CAN_FLUSH, reason="this CPU cannot flush denormals, or its OpenMP cannot stop its workers")
def test_a_predictor_flushes_denormals():
    made = """
from mtlsi.prediction.predictor import Predictor
model = torch.nn.Identity()
model.tasks, model.input_size = ("depth",), (8, 8)
Predictor(model, device="cpu")
print(left())
"""
    assert denormals_left(made) == [0]
