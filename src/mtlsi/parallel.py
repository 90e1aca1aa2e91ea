"""Map a function over indices in several processes, with a progress bar."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import TypeVar

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from mtlsi.errors import MistakeError, one_line

Result = TypeVar("Result")
STARTING = threading.Lock()
"""Held while processes are started."""


def for_each(
    function: Callable[[int], Result], count: int, *, title: str, num_workers: int, console: Console
) -> Iterator[Result]:
    """``function(index)`` for every index below ``count``, in order; ``num_workers`` processes, or 0: this one.

    ``function`` must be picklable. What it raises in a worker is raised here; a worker that is killed or cannot start raises
    ``MistakeError``. Pending work is dropped then, and where the results are not all asked for. Each worker computes on one
    thread, and ends with this process, whatever ends it.
    """
    shown = escape(one_line(title))  # a split's name may be anybody's
    if not num_workers:
        yield from map(function, track(range(count), shown, console=console))
        return
    processes = _fresh_processes(function.__module__)
    with ProcessPoolExecutor(num_workers, processes, _begin_worker) as pool:
        try:
            with _script_left_out(function):
                results = pool.map(function, range(count), chunksize=4)
            yield from track(results, shown, count, console=console)
        except BrokenProcessPool as error:
            raise MistakeError(
                f"{title}: one of {num_workers} worker processes ended unexpectedly: it could not start, which is told "
                "above, or was killed, as happens when memory runs out; ask for fewer, or for 0"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that gives it work is gone: killed, it tells nobody to stop waiting for more."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _fresh_processes(module: str) -> BaseContext:
    """How to start processes that are not forked from this one, with ``module`` imported once for all where possible.

    A fork has the locks of its parent's threads, but not the threads: where the parent's OpenMP threads have worked it waits
    forever in its first parallel loop.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    processes = get_context("forkserver")
    processes.set_forkserver_preload([module, __name__])
    return processes


@contextmanager
def _script_left_out(function: Callable[[int], object]) -> Iterator[None]:
    """Processes that are started meanwhile do not run the person's own script, unless ``function`` comes from it.

    A script would otherwise need ``if __name__ == "__main__":``, and one that came from a pipe cannot be run again.
    """
    with STARTING:
        script = sys.modules["__main__"]
        if b"__main__" not in bytes(ForkingPickler.dumps(function)):
            sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script
