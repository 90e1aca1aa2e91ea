"""Standard output and error of the command, which whoever started it may have closed or broken."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Unheard(io.FileIO):
    """A file into which nothing may fail: what cannot be written is lost."""

    def write(self, content: Any, /) -> int:
        """All of ``content``, as far as anyone can tell."""
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


def prepare() -> None:
    """Let the command say what it has to say whatever the streams are.

    What is written to a closed one is lost, and so is what standard error does not take: a message that nobody can read is
    no reason for another exit code. Names of files need not be UTF-8, and are shown nonetheless.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    elif os.name != "nt" and isinstance(sys.stderr, io.TextIOWrapper):
        unheard = io.BufferedWriter(_Unheard(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(unheard, sys.stderr.encoding, "backslashreplace", write_through=True)
        sys.stderr.reconfigure(line_buffering=True)
