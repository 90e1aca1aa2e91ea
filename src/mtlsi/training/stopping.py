"""Ctrl-C and SIGTERM: the step in hand ends, a checkpoint is written, and the run stops. A second signal ends it at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from mtlsi import interrupts
from mtlsi.errors import Stopped
from mtlsi.run_folder import saved_steps

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_S = 5.0
"""A SIGTERM so soon after another is the same one: sent to all processes, it is passed on by a launcher or a study, too."""


class StopRequest:
    """A context in which a signal raises ``Stopped``, or, within ``deferred``, waits to be asked for.

    It also waits where Python would drop what is raised; see ``interrupts.drops``.
    Loader processes that were forked meanwhile take no notice. Outside the main thread, where Python allows no handlers,
    signals do what they did before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first that came, to this process or, of several, to another."""
        self._first: tuple[int, float] | None = None  # to this one, and when
        self._raises, self._pid, self._former = True, os.getpid(), {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former: dict[int, Any] = {number: signal.signal(number, self._came) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal waits until it is asked for."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before

    @contextmanager
    def between_images(self, network: nn.Module, accelerator: Accelerator) -> Iterator[None]:
        """``Stopped`` is raised before ``network`` sees its next image: an evaluation leaves no trace when it is cut there.

        Not out of the signal's handler, which may come while a loader process is forked, where Python swallows what is
        raised; and not with several processes, which would wait for one another.
        """
        if accelerator.num_processes > 1:
            yield
            return
        hook = network.register_forward_pre_hook(lambda *_: self.raise_if_asked())
        try:
            yield
        finally:
            hook.remove()

    def asked(self, accelerator: Accelerator) -> bool:
        """Whether a signal came, to any process of the run: all of them get one answer and stop after one step."""
        if accelerator.num_processes == 1:
            return self.signal is not None
        mine = torch.tensor(float(self.signal or 0), device=accelerator.device)
        total: Any = accelerator.reduce(mine, reduction="sum")
        # what came to this process while it waited for the others is not in their answer, and waits for the next one
        some = float(total) > 0
        if some and self.signal is None:
            self.signal = signal.SIGTERM
        return some

    def raise_if_asked(self) -> None:
        """Raises ``Stopped`` where a signal came."""
        if self.signal is not None:
            raise Stopped(self.signal)

    @contextmanager
    def telling_how_to_go_on(self, out: Path, how: str) -> Iterator[None]:
        """Gives ``Stopped`` the words of a training in the run folder ``out``; ``how`` it goes on."""
        try:
            yield
        except Stopped as stop:
            steps = saved_steps(out)
            where = f"stopped after step {steps[0]}" if steps else "stopped before the first checkpoint"
            raise Stopped(stop.signal, f"{where}; go on {how}") from None

    def _came(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader process, before it sets its own handlers
            return
        now = time.monotonic()
        if self._first is not None:
            first, then = self._first
            if first == number == signal.SIGTERM and now - then < ONE_S:
                return
            end_at_once(number)
        self._first = number, now
        if self.signal is None:  # else another process has told of it, which got the same one a moment earlier
            self.signal = number
        if self._raises and not interrupts.drops(frame):
            raise Stopped(number)


def end_at_once(number: int) -> None:
    """Leave without a word of Python's: the second signal is somebody's who does not want to wait."""
    for child in multiprocessing.active_children():
        child.kill()
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # the progress bar has hidden it
    os.write(2, show_cursor + b"mtlsi: stopped at once, without a checkpoint of the last steps\n")
    os._exit(128 + number)
