"""``python -m mtlsi`` is the command ``mtlsi``."""

from __future__ import annotations

import sys

from mtlsi import interrupts


def run() -> int:
    """The command, which may be stopped while it is still being imported; gives its exit code."""
    interrupts.note()
    try:
        from mtlsi.cli import main
    except BaseException:
        if not interrupts.have_come():
            raise
        print("mtlsi: stopped", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
