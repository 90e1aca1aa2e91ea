"""What the options of several verbs share."""

from __future__ import annotations

import os

DEFAULT_MODEL = "nyud"
REPEATED = {"repeated": True}
"""Marks a flag that is given once per value, as in --plugin a.py --plugin b.py."""
Size = tuple[int, int]
"""Height and width, in pixels."""
Point = tuple[float, float]


def num_cpus() -> int:
    """Number of CPUs that this process may use, which a container or a batch system may have bound to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
