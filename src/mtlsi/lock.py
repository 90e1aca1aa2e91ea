"""One process at a time for a piece of work: a file that says who has it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

if sys.platform != "win32":
    import fcntl

from mtlsi.errors import MistakeError
from mtlsi.reading import parse_json, read_content

SIGN_OF_LIFE_S = 30.0
"""The holder touches its lock this often."""
SILENT_S = 600.0
"""A lock that was not touched for so long is stale: its holder was killed, maybe on another machine."""
OF_FOLDER = ".lock"
"""The lock of a folder as a whole, in it."""
MOST_TEXT = 2**16
"""Bytes of a lock."""
MOST_TRIES, BETWEEN_TRIES_S = 100, 0.01
"""How often a process asks to be the only one here that removes locks, before it goes on without; and how often it makes
the folder of locks."""


class HeldError(Exception):
    """Another process has the lock; the message says which."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock ``path`` within the context; ``HeldError`` where another process has it.

    A lock whose process is gone from this machine is taken over, and one that was not touched for ten minutes, unless the
    very process that wrote it is seen to live here: it may have been stopped, or the clock may have jumped. A process from
    before this machine's last start is gone; of one of another container only the ten minutes are known. Raises
    ``MistakeError`` where its folder is something else.
    """
    pid = os.getpid()
    who = {"pid": pid, "host": socket.gethostname(), "since": time.time(), "began": _beginning_of(pid)}
    own = json.dumps({**who, **_place()})
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
    """Whether the lock was free and is ours now. It comes with its text or not at all: an empty one is respected."""
    whole = _beside(path)
    try:
        _write_new(whole, text)
        try:
            os.link(whole, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _create_in_place(path, text)
        return True
    except OSError as error:  # a full disk
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            whole.unlink()


def _create_in_place(path: Path, text: str) -> bool:
    """Whether the lock was free and is ours now."""
    try:
        _write_new(path, text)
    except FileExistsError:
        return False
    return True


def _write_new(path: Path, text: str) -> None:
    """The file, with ``text``; ``FileExistsError`` where there is one. Where that fails there is none."""
    file = _open_new(path)
    try:
        with file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _beside(path: Path) -> Path:
    """A hidden file in the lock's folder that nobody else names."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _open_new(path: Path) -> TextIO:
    """The file, which must not be there; its folder is made, again where another process removes it as empty just then."""
    for _ in range(MOST_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            if os.path.lexists(path.parent) and not path.parent.is_dir():
                raise MistakeError(f"{path.parent}: is no folder; remove it, or write to another place") from error
        with suppress(FileNotFoundError):
            return path.open("x")
    raise MistakeError(f"{path.parent}: is removed as often as it is made; write to another place")


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
    holder = _read(text)
    pid, began = holder.get("pid"), holder.get("began")
    is_here, place = holder.get("host") == socket.gethostname(), _place()
    is_this_machine = is_here and None not in place.values() and holder.get("machine") == place["machine"]
    if is_this_machine and _differ(holder, place, "boot"):
        return True  # it was running before this machine was started
    is_here = is_here and not any(_differ(holder, place, name) for name in place)
    if is_here and isinstance(pid, int) and 0 < pid < 2**31:
        # this process holds no lock twice: its number in a lock is that of an earlier process
        if pid == os.getpid() or not _is_alive(pid):
            return True
        if began is not None and (begins := _beginning_of(pid)) is not None:
            return began != begins  # else another process has its number now
    try:
        silent_s = _time_in(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return True
    return abs(silent_s) > SILENT_S  # a time to come: the clock of another machine was wrong, and would be waited for


def _differ(holder: dict, place: dict[str, str | None], name: str) -> bool:
    """Whether the lock says another ``name`` than ours; one of an earlier version says none."""
    return holder.get(name) is not None and holder[name] != place[name]


def _place() -> dict[str, str | None]:
    """Where a process's number is its own: this machine, this start of it and, of its containers, this one; None: not said.

    Machines may have one host name, and the containers of one often have.
    """
    place: dict[str, str | None] = {"machine": None, "boot": None, "pids": None}
    with suppress(OSError):  # its own words for it ask not to be shown to others
        if name := Path("/etc/machine-id").read_bytes().strip():
            place["machine"] = hashlib.sha256(b"mtlsi lock " + name).hexdigest()[:16]
    with suppress(OSError):
        place["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place["pids"] = os.readlink("/proc/self/ns/pid")
    return place


def _time_in(folder: Path) -> float:
    """The time now by the clock that dates the files of ``folder``: where others share it, maybe that of another machine."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _beginning_of(pid: int) -> int | None:
    """When the process began, in ticks since the machine did; None where the system does not say."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_bytes()
        return int(facts.rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


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
    with _alone_here(path.parent):
        if _text_of(path) != text:
            return
        # processes of other machines are not kept out: what they did in this moment shows afterwards
        aside = _beside(path)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        if _text_of(aside) == text:
            aside.unlink(missing_ok=True)
        else:
            os.rename(aside, path)


@contextmanager
def _alone_here(folder: Path) -> Iterator[None]:
    """No other process of this machine removes a lock in ``folder`` within the context, where the system can see to it.

    Of three that find a stale lock, one could else bring back the lock that it removed by mistake over that of a third.
    """
    if sys.platform == "win32":
        yield
        return
    handle = None
    try:
        with suppress(OSError):  # a file system without such locks
            handle = os.open(folder, os.O_RDONLY)
            _ask_for(handle)
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile would keep it
            os.close(handle)


def _ask_for(handle: int) -> None:
    for _ in range(MOST_TRIES):  # not for ever: the one that has it may be stopped
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(BETWEEN_TRIES_S)


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
