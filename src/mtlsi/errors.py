"""The one exception for a person's mistake."""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import Any

MOST = 2000
"""Characters of a message."""
OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTDIR,
    errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY,
)  # fmt: skip
"""Numbers of an ``OSError`` by which the system refuses room, permission, handles or a place where something else lies: what
a person can put right."""


class MistakeError(ValueError):
    """Something the caller can put right: the message is one line with what was given, what was expected, what to do.

    The command line prints the message alone and leaves with exit code 2; any other exception is a fault of ours.
    Of a message of more than ``MOST`` characters, which quotes a damaged file, the middle is left out.
    """

    def __init__(self, message: object = ""):
        super().__init__(clipped(str(message), MOST))


class Stopped(KeyboardInterrupt):
    """A signal, Ctrl-C or SIGTERM, has ended a piece of work in good order; the message says how to go on."""

    def __init__(self, signal: int, message: str = "stopped"):
        super().__init__(message)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """As a shell has it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


def message_of(error: BaseException, most: int = 1000) -> str:
    """What another exception says, in one line of at most ``most`` characters, its middle left out where it has more.

    Of a file that the system refuses only why, for ours names it already.
    """
    if isinstance(error, FileNotFoundError):
        return "no such file or directory"
    if strerror := getattr(error, "strerror", None):  # also of FFmpeg's errors, which need not be the system's
        return clipped(" ".join(strerror.split()), most)
    return clipped(f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split()), most)


def refusal(error: OSError) -> str:
    """What the system refuses and why, in one line; of an error that names no file only why."""
    return f"{error.filename}: {message_of(error)}" if error.filename else message_of(error)


def one_line(text: str) -> str:
    """``text`` without line breaks, and with every other sign that steers a terminal written out, such as ``\\x1b``."""
    joined = " ".join(line for part in text.splitlines() if (line := part.strip()))
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in joined)


def counted(count: int, noun: str) -> str:
    """``1 broken frame``, ``2 broken frames``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def clipped(line: str, most: int) -> str:
    """``line``, its middle left out where it has more than ``most`` characters."""
    if len(line) <= most:
        return line
    left_out = " ... "
    first = (most - len(left_out)) // 2
    return f"{line[:first]}{left_out}{line[first + len(left_out) - most :]}"


def check_choice(name: str, given: Any, choices: Collection[Any]) -> None:
    """Raises ``MistakeError``, which begins with ``name``, where ``given`` is none of ``choices``."""
    if given not in choices:
        words = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]
        shown = repr(given) if len(repr(given)) <= 200 else f"{repr(given)[:197]}..."
        raise MistakeError(f"{name} {shown}; expected {'one of ' * (len(words) > 1)}{', '.join(words)}")
