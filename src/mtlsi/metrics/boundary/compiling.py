"""How the loops of the boundary metric are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable) -> Any:
    """``function`` compiled by numba when first called, kept on disk for the next process, and run without the GIL."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba finds no folder that it may write to: compile again in every process
        return njit(nogil=True)(function)
