"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def hand_back_freed_memory() -> None:
    """Give back what the C library keeps of freed memory, which ``mtlsi.device.prepare_process`` makes all of it.

    Between a large array and a larger one, which does not fit where the first one lay.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # absent in other C libraries than glibc
        trim(0)
