"""One process at a time for a piece of work: a file that says who has it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlsi.errors import MistakeError
from mtlsi.reading import parse_json, read_content

SIGN_OF_LIFE_S = 30.0
"""The holder touches its lock this often."""
SILENT_S = 600.0
"""A lock that was not touched for so long is stale: its holder was killed, maybe on another machine."""


MOST_TEXT = 2**16
"""Bytes of a lock."""


class HeldError(Exception):
    """Another process has the lock; the message says which."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock ``path`` within the context; ``HeldError`` where another process has it.

    A lock whose process is gone from this machine, or that was not touched for ten minutes, is taken over. Raises
    ``MistakeError`` where its folder is something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise MistakeError(f"{path.parent}: is no folder; remove it, or write to another place") from error
    own = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
    if not _create(path, own):
        text = _text_of(path)
        if text is not None:
            if not _is_stale(path, text):
                raise HeldError(_holder(text))
            _remove(path, text)
        if not _create(path, own):
            raise HeldError(_holder(_text_of(path) or ""))
    over = threading.Event()
    pulse = threading.Thread(target=_keep_alive, args=(path, over), daemon=True)
    pulse.start()
    try:
        yield
    finally:
        over.set()
        pulse.join()
        _remove(path, own)


def _create(path: Path, text: str) -> bool:
    """Whether the lock was free and is ours now."""
    try:
        file = path.open("x")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError as error:  # a full disk; a lock that says nothing would be respected
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def _keep_alive(path: Path, over: threading.Event) -> None:
    while not over.wait(SIGN_OF_LIFE_S):
        try:
            os.utime(path)
        except OSError:  # a file system that is away for a moment, or a lock that somebody removed by hand
            continue


def _text_of(path: Path) -> str | None:
    """What the lock says; None where it is gone. Raises ``MistakeError`` for what is no file of its size."""
    try:
        return read_content(path, MOST_TEXT).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _is_stale(path: Path, text: str) -> bool:
    try:
        silent_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    if abs(silent_s) > SILENT_S:  # a time to come: the clock of another machine was wrong, and would be waited for
        return True
    holder = _read(text)
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    # this process holds no lock twice: its number in a lock is that of an earlier process
    return holder["pid"] == os.getpid() or not _is_alive(holder["pid"])


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _remove(path: Path, text: str) -> None:
    """Remove the lock that says ``text``, and no other that came in its place meanwhile."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _text_of(aside) == text:
        aside.unlink(missing_ok=True)
    else:
        os.rename(aside, path)


def _read(text: str) -> dict:
    """The fields of a lock; {} while its holder is still writing them."""
    try:
        fields = parse_json(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _holder(text: str) -> str:
    """The holder in words."""
    fields = _read(text)
    if not fields:
        return "another process"
    return f"process {fields.get('pid')} on {fields.get('host')} since {_when(fields.get('since'))}"


def _when(since: Any) -> str:
    """A time in seconds, in words; whoever wrote the lock may have written anything."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(since + 0.0))
    except (TypeError, ValueError, OverflowError, OSError):
        return "an unknown time"
