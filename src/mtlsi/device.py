"""Device, precision, allocator and floating-point settings."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtlsi.errors import MistakeError

ROUNDS = 5
"""Of timing both precisions: on a busy machine one of each would choose by what else ran meanwhile."""


def find_device(wanted: str | torch.device | None) -> torch.device:
    """The device ``wanted``, or the best one here for None or ``"auto"``; else ``MistakeError``."""
    name = str(wanted) if isinstance(wanted, torch.device) else wanted
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None or name == "auto":
        return accelerator or torch.device("cpu")
    here = ["cpu"]
    if accelerator is not None:
        here += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in here:
        raise MistakeError(f"device {name!r} is not there; expected auto or one of {', '.join(here)}")
    return torch.device(name)


def choose_precision(wanted: str, device: str | None = None) -> str:
    """float32 or bfloat16; ``auto`` multiplies matrices both ways, in turn, and takes the faster by the shortest times.

    On a GPU that knows bf16 and on CPUs with bf16 instructions bf16 wins; on others it is many times slower.
    """
    if wanted in ("float32", "bfloat16"):
        return wanted
    if wanted != "auto":
        raise MistakeError(f"train.precision {wanted!r}; expected float32, bfloat16 or auto")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for _ in range(ROUNDS):
        for dtype, shortest in seconds.items():
            a = torch.ones(512, 512, dtype=dtype, device=device)
            (a @ a).sum().item()
            start = time.perf_counter()
            (a @ a @ a).sum().item()
            seconds[dtype] = min(shortest, time.perf_counter() - start)
    return "bfloat16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "float32"


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within the context torch takes only operations that give the same bits every time, if ``on``.

    cuBLAS reads its part of it from the environment when it is first used: enter the context before anything is computed.
    """
    if not on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, tuned = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tuned


def prepare_process() -> None:
    """Settings of the whole process under which networks run fast on a CPU; results differ by denormals only.

    For verbs and ``Predictor``: importing or building a model changes nothing. May be called at any time, and again.
    """
    keep_freed_memory()
    flush_denormals()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: returned and allocated again, a step's large tensors cost page faults on a CPU."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # absent in other C libraries than glibc
            trim_threshold, top_pad, mmap_max = -1, -2, -4
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(top_pad, 64 * 2**20)
            mallopt(mmap_max, 0)


def flush_denormals() -> None:
    """Round numbers below 1.2e-38 (float32) to zero, in this thread and its workers: some CPUs take 100 times as long.

    The flag belongs to a thread, and a new thread inherits it from the one that starts it. torch sets it in the calling
    thread alone, so OpenMP's workers that already run, as they do after any large operation, would keep denormals.
    They are therefore stopped first; the next parallel region starts new ones, which flush.
    """
    if sys.platform != "win32":
        pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
        if pause is not None:  # OpenMP 5; without it only workers that start later flush
            soft = 1
            pause(soft)
    torch.set_flush_denormal(True)  # False, and no effect, on a CPU that cannot
