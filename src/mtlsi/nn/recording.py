"""A pass of a network as a CUDA graph: which networks may be recorded, and how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

import torch
from torch import nn

OURS = ("mtlsi", "timm", "torch")
"""Packages whose modules compute the same in every pass."""
ONE_AT_A_TIME = RLock()
"""Held while a graph is recorded or replayed: some versions of torch have one state of random numbers for all of a GPU's."""


def not_ours(network: nn.Module) -> str:
    """Why a recording of one pass through ``network`` may not stand for every later one's; empty where it does.

    A recording repeats what a GPU did and runs no Python again: neither code of a person's own nor hooks.
    """
    modules = list(network.modules())
    for module in modules:
        if type(module).__module__.partition(".")[0] not in OURS:
            return f"{type(module).__name__} is a module of your own"
        if hasattr(module, "attention_bias_cache"):  # timm's TinyViT, LeViT and others: dropped between passes
            return f"{type(module).__name__} keeps tensors from one pass to the next"
    return "a module has hooks" if any(m._forward_hooks or m._forward_pre_hooks for m in modules) else ""


@contextmanager
def recorded_into(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any = None) -> Iterator[None]:
    """What ``device`` is told to do in this context goes into ``graph`` and is not done. ``pool``: memory that graphs share.

    Raises ``RuntimeError`` where something cannot be recorded.
    """
    with ONE_AT_A_TIME, torch.cuda.device(device):
        current = torch.cuda.current_stream()
        try:
            # thread_local: other threads, a loader's that pins memory for one, may go on meanwhile
            with torch.cuda.graph(
                graph, pool=pool, stream=_stream_for_recording(device), capture_error_mode="thread_local"
            ):
                yield
        finally:
            torch.cuda.set_stream(current)  # which a refused recording does not


@cache
def _stream_for_recording(device: torch.device) -> torch.cuda.Stream:
    """One for each GPU: torch's own lies on the GPU that it was first used on."""
    return torch.cuda.Stream(device)
