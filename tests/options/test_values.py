from __future__ import annotations

import os

import pytest

from mtlsi.options.values import num_cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to some of its CPUs")
def test_cpus_are_those_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert num_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert num_cpus() == len(before)
