"""Standard output and error of the command, which whoever started it may have closed or broken, and lines in them."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

from mtlsi.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console


class _Stream(io.FileIO):
    """A file into which some writes may fail: what cannot be written is lost."""

    lost: tuple[type[OSError], ...] = (BrokenPipeError,)
    """The failures that nobody is told of."""

    def write(self, content: Any, /) -> int:
        """All of ``content``, as far as anyone can tell."""
        try:
            return super().write(content)
        except self.lost:
            return memoryview(content).nbytes
        except OSError:
            self.lost = (OSError,)  # told once: what is still buffered is tried again at the end of the process
            raise


class _Errors(_Stream):
    lost = (OSError,)


def prepare() -> None:
    """Let the command say what it has to say whatever the streams are.

    What is written to a closed one is lost, and so is what a reader of standard output no longer wants, such as head, and
    what standard error does not take: a message that nobody can read ends no training and is no reason for another exit
    code. A disk on which standard output finds no room is one. Names of files need not be UTF-8, and are shown nonetheless.
    """
    sys.stdout = _prepared(sys.stdout, _Stream)
    sys.stderr = _prepared(sys.stderr, _Errors)


def _prepared(stream: Any, kind: type[_Stream]) -> Any:
    """``stream`` over a file of ``kind``; None is a stream that was closed, and what is no file stays where it is."""
    if stream is None:
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        number = stream.fileno()
    except io.UnsupportedOperation:  # a program's own, in memory
        number = None
    if number is None or os.name == "nt":  # a console there is no file
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(number, "w", closefd=False)),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering or kind is _Errors,
        write_through=kind is _Errors,
    )


def write_line(console: Console, text: str) -> None:
    """One line on ``console`` as it is, however long: brackets are no markup, and names of files steer no terminal."""
    console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)
