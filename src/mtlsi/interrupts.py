"""Ctrl-C while a command starts: whatever exception comes of it is its doing.

Raised while a module is imported it need not stay what it is: NumPy's import, cut short, recurses without end the next time.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_came = False


def note() -> None:
    """Take note of Ctrl-C from now on, which raises ``KeyboardInterrupt`` as before; not where it does something else."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _take_note)


def have_come() -> bool:
    """Whether Ctrl-C came since ``note``."""
    return _came


def _take_note(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    signal.default_int_handler(number, frame)
