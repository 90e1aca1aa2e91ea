"""What the machine has, and how to get along with it."""

from __future__ import annotations

import ctypes
import sys
import time

import torch

from mtlsi.errors import MistakeError


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
    """float32 or bfloat16; ``auto`` multiplies two matrices both ways and takes the faster.

    On a GPU that knows bf16 and on CPUs with bf16 instructions bf16 wins; on others it is many times slower.
    """
    if wanted in ("float32", "bfloat16"):
        return wanted
    if wanted != "auto":
        raise MistakeError(f"train.precision {wanted!r}; expected float32, bfloat16 or auto")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype, device=device)
        (a @ a).sum().item()
        start = time.perf_counter()
        (a @ a @ a).sum().item()
        seconds[dtype] = time.perf_counter() - start
    return "bfloat16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "float32"


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: handed back and taken again, a step's large tensors cost page faults on a CPU."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # absent in other C libraries than glibc
            trim_threshold, top_pad, mmap_max = -1, -2, -4
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(top_pad, 64 * 2**20)
            mallopt(mmap_max, 0)
