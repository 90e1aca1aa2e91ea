"""A disk that takes nothing more, as the system tells of it: by a limit on what a file may hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Within the context the system refuses to write more into any file."""
    resource = pytest.importorskip("resource", reason="no such limits there")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
