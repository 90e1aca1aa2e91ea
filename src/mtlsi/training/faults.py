"""What may happen to a training from outside, in one line each: another process, the disk, a loader process."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlsi import processes, run_folder
from mtlsi.errors import OF_THE_SYSTEM, MistakeError, refusal
from mtlsi.lock import OF_FOLDER, HeldError, held


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """No other process trains in the run folder ``out`` within the context; ``MistakeError`` where one does.

    The lock of a process that is gone is taken over.
    """
    try:
        with held(out / OF_FOLDER):
            yield
    except HeldError as holder:
        raise MistakeError(
            f"{out} is being trained by {holder}; wait for it, or give another --out (a lock whose process is gone is taken "
            f"over, here at once and from another machine or container after ten minutes)"
        ) from holder


@contextmanager
def told_plainly(out: Path, how: str) -> Iterator[None]:
    """Turns what the system refuses, such as room on the disk, and a loader process that was killed into a ``MistakeError``.

    Of what lies in the run folder ``out`` also what is gone or of another kind: somebody else has changed it. The message
    says ``how`` the run goes on.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM and not _lies_in(out, error.filename):
            raise
        raise MistakeError(f"{refusal(error)}; {whole_state(out, how)}") from error
    except RuntimeError as error:
        if (lost := processes.lost_loader(error)) is None:
            raise
        raise MistakeError(f"{lost}; {whole_state(out, how)}") from error


def _lies_in(folder: Path, path: object) -> bool:
    return isinstance(path, str | Path) and Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def how_to_go_on(out: Path, own: Collection[str]) -> str:
    """How a person goes on with the run in ``out``; ``own``: the arguments of ``train`` that no command can give."""
    if own:
        return f"from Python: mtlsi.train with resume=True and the same {' and '.join(own)}"
    return f"with mtlsi train --resume {out}"


def whole_state(out: Path, how: str) -> str:
    """What is left in ``out`` after a fault, and ``how`` to go on."""
    steps = run_folder.saved_steps(out)
    saved = f"the checkpoint of step {steps[0]} is whole" if steps else "no checkpoint was written yet"
    return f"{saved}; put that right and go on {how}"
