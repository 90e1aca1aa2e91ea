"""The one exception for a person's mistake."""

from __future__ import annotations


class MistakeError(ValueError):
    """Something the caller can put right: the message is one line with what was given, what was expected, what to do.

    The command line prints the message alone and leaves with exit code 2; any other exception is a fault of ours.
    """
