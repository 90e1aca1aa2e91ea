"""``manifest.jsonl``: one line for each image whose results are written, from which a later run knows what is done.

Several processes append to one file, on one machine or several: each line is written by one call, at the file's end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from array import array
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from mtlsi.errors import MistakeError, message_of
from mtlsi.reading import check_plain, parse_json

MANIFEST = "manifest.jsonl"
MOST_LINE = 2**20
"""Bytes of a line: a path and the names of some files."""
RECENT = 20_000
"""Lines kept as Python objects before they join the arrays of 16 bytes a line."""


class Manifest:
    """What is done in a folder of results; with ``ignore_lines`` only what is done from now on.

    Raises ``MistakeError`` where the file cannot be read or written.
    """

    def __init__(self, folder: Path, *, ignore_lines: bool = False):
        self.path, self.lock = folder / MANIFEST, threading.Lock()
        if self.path.exists():
            check_plain(self.path, sys.maxsize)
        self.read_to = self.path.stat().st_size if ignore_lines and self.path.exists() else 0
        self.names, self.states = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self.recent: dict[int, int] = {}

    def is_done(self, name: str, state: int) -> bool:
        """Whether the last line about the results ``name`` says that they are those of ``state``."""
        self._catch_up()
        key = number_of(name)
        if key in self.recent:
            return self.recent[key] == state
        place = int(np.searchsorted(self.names, np.uint64(key)))
        return place < len(self.names) and int(self.names[place]) == key and int(self.states[place]) == state

    def append(self, name: str, state: int, facts: dict[str, Any]) -> None:
        """Add the line about the results ``name``."""
        line = json.dumps({"results": name, "state": f"{state:016x}", **facts}, ensure_ascii=True) + "\n"
        try:
            with self.lock:
                file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    size = os.fstat(file).st_size
                    whole = not size or _last_byte(file) == b"\n"  # else a process was killed while it wrote
                    os.write(file, line.encode() if whole else b"\n" + line.encode())
                finally:
                    os.close(file)
        except OSError as error:
            raise MistakeError(f"{self.path}: cannot be written ({message_of(error)}); give another folder") from error

    def _catch_up(self) -> None:
        """Read what was appended since the last time, by this process or another."""
        try:
            if not self.path.exists() or self.path.stat().st_size <= self.read_to:
                return
            with self.path.open("rb") as file:
                file.seek(self.read_to)
                while line := file.readline(MOST_LINE):
                    if len(line) < MOST_LINE and not line.endswith(b"\n"):  # still being written
                        break
                    self.read_to += len(line)
                    self._take(line)
        except OSError as error:
            raise MistakeError(f"{self.path}: cannot be read ({message_of(error)}); give another folder") from error

    def _take(self, line: bytes) -> None:
        try:
            fields = parse_json(line)
            name, state = number_of(fields["results"]), int(fields["state"], 16)
        except (ValueError, KeyError, TypeError, AttributeError):  # cut short when its process was killed
            return
        if not 0 <= state < 2**64:
            return
        self.recent[name] = state
        if len(self.recent) >= RECENT:
            names = np.concatenate([np.frombuffer(array("Q", self.recent), np.uint64), self.names])
            states = np.concatenate([np.frombuffer(array("Q", self.recent.values()), np.uint64), self.states])
            self.names, first = np.unique(names, return_index=True)  # the first is the latest
            self.states = states[first]
            self.recent.clear()


def state_of(image: Path, settings: str) -> int:
    """A number that changes with an image file (name, size, time of change) and with ``settings``. Raises ``OSError``."""
    facts = image.stat()
    return number_of(json.dumps([image.name, facts.st_size, facts.st_mtime_ns, settings]))


def _last_byte(file: int) -> bytes:
    os.lseek(file, -1, os.SEEK_END)
    return os.read(file, 1)


def number_of(text: str) -> int:
    """A number of 64 bits that stands for a text."""
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
