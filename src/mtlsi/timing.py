"""Measuring tools that know nothing of the network: time, memory, how a cost grows, and what the machine can do."""

from __future__ import annotations

import gc
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlsi.memory import hand_back_freed_memory
from mtlsi.version import __version__

Name = TypeVar("Name")
RESET_PEAK = "5"
"""What Linux takes in /proc/self/clear_refs to start the peak resident size again."""
MATRIX_SIDES = (256, 512, 1024, 2048, 4096, 8192)
LONG_PRODUCT_S = 0.1
"""Matrix products are tried in growing size until one takes this long."""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls."""

    median_s: float
    lowest_s: float
    highest_s: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """What several repeats come to."""
        return cls(median(seconds), min(seconds), max(seconds))


def time_calls(
    calls: Mapping[Name, Callable[[], Any]],
    *,
    repeats: int,
    warmup: int = 2,
    device: torch.device | None = None,
) -> dict[Name, Timing]:
    """How long each call takes, by name, over ``repeats`` rounds in which every call has one turn.

    Turn and turn about, because a machine's other work then meets all calls alike. ``warmup`` rounds come before and are
    not counted. On an accelerator the clock stops only when its work is done.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        for name, call in calls.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(taken) for name, taken in seconds.items()}


def synchronise(device: torch.device | None) -> None:
    """Wait for the work given to an accelerator; a CPU has done its work when a call returns."""
    if device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)


def fit_power(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Exponent and factor of ``y = factor * x ** exponent``, by least squares in log-log.

    None where there is nothing to fit: fewer than two different ``x``, or a value that is not positive.
    """
    if len(set(x)) < 2 or min(*x, *y) <= 0:
        return None
    across, up = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_across, mean_up = sum(across) / len(x), sum(up) / len(x)
    deviations = [value - mean_across for value in across]
    exponent = sum(d * value for d, value in zip(deviations, up, strict=True)) / sum(d * d for d in deviations)
    return exponent, math.exp(mean_up - exponent * mean_across)


# ---- memory


def peak_memory(prepare: Callable[[], Callable[[], Any]], device: torch.device) -> int | None:
    """Bytes by which memory rises at most while the call that ``prepare`` gives runs; None where it cannot be measured.

    CUDA: what torch allocates, in this process. CPU: the resident size of a fresh process, in which ``prepare`` (it
    must be picklable) is called with this process's number of threads; Linux only, and None too if the process is killed.
    """
    if device.type == "cuda":
        call = prepare()
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        try:
            return child.submit(_resident_rise, prepare, torch.get_num_threads()).result()
        except BrokenProcessPool:
            return None


def _resident_rise(prepare: Callable[[], Callable[[], Any]], num_threads: int) -> int | None:
    torch.set_num_threads(num_threads)
    call = prepare()
    gc.collect()
    hand_back_freed_memory()  # else it is used again unseen, and the rise comes out too small
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError:  # some containers
        return None
    before = _status_bytes("VmRSS")
    kept = call()  # the result counts as long as it is held
    rise = _status_bytes("VmHWM") - before
    del kept
    return max(rise, 0)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


# ---- the machine


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second (2 x MAC) of square matrix products: the best of several sizes and two ways to ask for them.

    On a CPU torch's products and its 1x1 convolutions come from different libraries, one of which may be twice as
    fast as the other.
    """
    best = 0.0
    for side in MATRIX_SIDES:
        calls = ways_to_square(torch.randn(side, side, device=device).to(dtype))
        taken = min(timing.lowest_s for timing in time_calls(calls, repeats=3, warmup=1, device=device).values())
        best = max(best, 2 * side**3 / taken)
        if taken > LONG_PRODUCT_S:
            break
    return best


def ways_to_square(a: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The product of a square matrix with itself, by that name, and as the 1x1 "convolution" that it equals."""
    rows = a[None, None].permute(0, 3, 1, 2)
    return {"product": lambda: a @ a, "convolution": lambda: F.conv2d(rows, a[..., None, None])}


def copy_rate(device: torch.device, num_bytes: int = 2**28) -> float:
    """Bytes per second, read and written together, of copying a tensor of ``num_bytes``, far more than a cache holds."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source).zero_()  # its pages are there before the clock runs
    taken = time_calls({"copy": lambda: target.copy_(source)}, repeats=5, warmup=1, device=device)["copy"]
    return 2 * num_bytes / taken.lowest_s


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on: CPU, accelerator, threads, versions, and how busy the machine is."""
    described = {
        "device": str(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mtlsi": __version__,
    }
    if device.type == "cuda":
        described["accelerator"] = torch.cuda.get_device_name(device)
    if sys.platform != "win32":
        described["load"] = round(os.getloadavg()[0], 2)
    return described


def cpu_name() -> str:
    """The CPU's model, as the system names it."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
