"""Map a function over indices in several processes, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Result = TypeVar("Result")


def for_each(
    function: Callable[[int], Result], count: int, *, title: str, num_workers: int, console: Console
) -> Iterator[Result]:
    """``function(index)`` for every index below ``count``, in order; ``num_workers`` processes, or 0: this one.

    ``function`` must be picklable. What it raises in a worker is raised here, and pending work is dropped.
    """
    if not num_workers:
        yield from map(function, track(range(count), title, console=console))
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield from track(pool.map(function, range(count), chunksize=4), title, count, console=console)
