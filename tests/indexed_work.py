"""Functions for ``test_parallel``, in a module that another process can import."""

from __future__ import annotations

import os
import signal
import time

from mtlsi.errors import MistakeError


def square_and_process(index: int) -> tuple[int, int]:
    return index**2, os.getpid()


def refuse_seven(index: int) -> int:
    if index == 7:
        raise MistakeError("seven")
    return index


def end_at_seven(index: int) -> int:
    if index == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def take_a_while(index: int) -> int:
    time.sleep(0.3)
    return index
