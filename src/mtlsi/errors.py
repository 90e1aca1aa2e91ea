"""The one exception for a person's mistake."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class MistakeError(ValueError):
    """Something the caller can put right: the message is one line with what was given, what was expected, what to do.

    The command line prints the message alone and leaves with exit code 2; any other exception is a fault of ours.
    """


def message_of(error: BaseException) -> str:
    """What another exception says, in one line; of a file that the system refuses only why, for ours names it already."""
    if isinstance(error, FileNotFoundError):
        return "no such file or directory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())


def check_choice(name: str, given: Any, choices: Collection[Any]) -> None:
    """Raises ``MistakeError``, which begins with ``name``, where ``given`` is none of ``choices``."""
    if given not in choices:
        words = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]
        shown = repr(given) if len(repr(given)) <= 200 else f"{repr(given)[:197]}..."
        raise MistakeError(f"{name} {shown}; expected {'one of ' * (len(words) > 1)}{', '.join(words)}")
