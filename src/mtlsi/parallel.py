"""Map a function over indices in several processes, with a progress bar."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track

from mtlsi.errors import MistakeError

Result = TypeVar("Result")


def for_each(
    function: Callable[[int], Result], count: int, *, title: str, num_workers: int, console: Console
) -> Iterator[Result]:
    """``function(index)`` for every index below ``count``, in order; ``num_workers`` processes, or 0: this one.

    ``function`` must be picklable. What it raises in a worker is raised here, and pending work is dropped; a worker that
    is killed raises ``MistakeError``. Each worker computes on one thread.
    """
    if not num_workers:
        yield from map(function, track(range(count), title, console=console))
        return
    processes = _fresh_processes(function.__module__)
    with ProcessPoolExecutor(num_workers, processes, torch.set_num_threads, (1,)) as pool:
        try:
            with _script_left_out(function):
                results = pool.map(function, range(count), chunksize=4)
            yield from track(results, title, count, console=console)
        except BrokenProcessPool as error:
            raise MistakeError(
                f"{title}: a process ended unexpectedly; the system kills one when memory runs out: ask for fewer workers "
                f"than {num_workers}"
            ) from error


def _fresh_processes(module: str) -> BaseContext:
    """How to start processes that inherit no threads, with ``module`` imported once for all where that can be done.

    A process that is merely forked has the locks of its parent's threads, but not the threads: one with the parent's
    OpenMP threads waits forever in its first parallel loop.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    processes = get_context("forkserver")
    processes.set_forkserver_preload([module])
    return processes


@contextmanager
def _script_left_out(function: Callable[[int], object]) -> Iterator[None]:
    """Processes that are started meanwhile do not run the person's own script, unless ``function`` comes from it.

    A script would else need ``if __name__ == "__main__":``, and one that came from a pipe is not there to be run again.
    """
    script = sys.modules["__main__"]
    if b"__main__" not in pickle.dumps(function):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
