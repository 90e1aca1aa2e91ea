"""Ctrl-C where it cannot be raised, or does not stay what it is.

Raised while a module is imported it need not stay what it is: NumPy's import, cut short, recurses without end the next time.
Whatever exception comes of it while a command starts is its doing. And there are places where Python drops what a signal's
handler raises: it prints a traceback, and the work goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

AGAIN_AFTER_S = 0.02
"""How long a signal waits where it would be dropped, before it is tried again."""
_DROPPING = {"weakref", "_weakrefset", "multiprocessing.util", "multiprocessing.popen_fork", "logging"}
_came = False


def note() -> None:
    """Take note of Ctrl-C from now on, which raises ``KeyboardInterrupt`` as before; not where it does something else."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, _take_note)


def have_come() -> bool:
    """Whether Ctrl-C came since ``note``."""
    return _came


def drops(frame: FrameType | None) -> bool:
    """Whether Python drops, with a traceback, what is raised in ``frame``, or it is better not raised there.

    In callbacks of weak references, in ``__del__``, and while a process is forked: the hooks of ``os.register_at_fork``,
    such as the one that frees the lock of ``logging``, are cut short, and the new process would be nobody's. In ``logging``
    itself, which may hold that lock.
    """
    while frame is not None:
        if frame.f_globals.get("__name__") in _DROPPING or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def puts_off(handler: Callable[[int, FrameType | None], None], number: int, frame: FrameType | None) -> bool:
    """Whether ``handler`` is called again a little later, since what it raises in ``frame`` would be dropped."""
    if not drops(frame) or not hasattr(signal, "setitimer"):
        return False
    signal.signal(signal.SIGALRM, lambda _, later: handler(number, later))
    signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER_S)
    return True


def _take_note(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    if not puts_off(_take_note, number, frame):
        signal.default_int_handler(number, frame)
