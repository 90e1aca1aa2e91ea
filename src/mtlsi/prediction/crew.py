"""Threads that read ahead and write behind while the network works, with a bound on what waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def _finished(ahead: deque[tuple[Job, Future[Result]]]) -> tuple[Job, Result]:
    """The first job with its result, of which nothing is kept here."""
    job, future = ahead.popleft()
    return job, future.result()


class Crew:
    """``num_workers`` threads that read and as many that write; 0: everything in the calling thread, one by one.

    Decoding and compressing let other threads run. At most one image more than there are threads waits on either side.
    """

    def __init__(self, num_workers: int):
        self.num_workers = num_workers
        self.readers = ThreadPoolExecutor(num_workers, "reading") if num_workers else None
        self.writers = ThreadPoolExecutor(num_workers, "writing") if num_workers else None
        self.writing: deque[Future[Any]] = deque()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.readers, self.writers):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def read(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result]]:
        """Every job with what ``function`` makes of it, in order."""
        if self.readers is None:
            yield from ((job, function(job)) for job in jobs)
            return
        ahead: deque[tuple[Job, Future[Result]]] = deque()
        for job in jobs:
            ahead.append((job, self.readers.submit(function, job)))
            if len(ahead) > self.num_workers:
                yield _finished(ahead)
        while ahead:
            yield _finished(ahead)

    def write(self, function: Callable[[], None]) -> None:
        """Call ``function`` now or later; what it raises is raised here, in a later call, or in ``finish``."""
        if self.writers is None:
            function()
            return
        self.writing.append(self.writers.submit(function))
        if len(self.writing) > self.num_workers:
            self.writing.popleft().result()

    def finish(self) -> None:
        """Wait until everything is written."""
        while self.writing:
            self.writing.popleft().result()
