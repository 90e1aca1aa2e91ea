"""``manifest.jsonl``: one line for each image whose results are written, from which a later run knows what is done.

Several processes append to one file, on one machine or several: each line is written by one call, at the file's end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtlsi.errors import MistakeError, message_of
from mtlsi.images import FilePath
from mtlsi.io import number_of
from mtlsi.reading import check_plain, parse_json

MANIFEST = "manifest.jsonl"
MOST_LINE = 2**20
"""Bytes of a line: a path and the names of some files."""
RECENT = 20_000
"""Lines kept as Python objects before they join the arrays of 40 bytes a line."""


def holds_results(folder: FilePath) -> bool:
    """Whether ``mtlsi predict`` wrote results into a folder, by the first line of its manifest."""
    path = os.path.join(folder, MANIFEST)
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            line = parse_json(file.readline(MOST_LINE))
    except (OSError, ValueError, MistakeError):
        return False
    return isinstance(line, dict) and {"state", "image"} <= line.keys()


class Line(NamedTuple):
    """What a line says of an image file, in numbers of 64 bits."""

    state: int
    """Stands for the file's name, size and time of change, and for the settings."""
    path: int
    """Stands for its path."""
    changed: int
    """When the file system last saw it change, in nanoseconds; a copy that keeps the time of change does not keep this."""
    content: int
    """Stands for all its bytes; 0 in a line of a version that did not look at them."""


@dataclass(frozen=True)
class Source:
    """An image file as it is now."""

    place: str
    """Its path, absolute and without links."""
    state: int
    changed: int

    @property
    def path(self) -> int:
        """A number that stands for the path."""
        return number_of(self.place)

    def is_of(self, line: Line) -> bool:
        """Whether a line is about this image: the same file, unchanged, or one with the same bytes. Raises ``OSError``.

        The bytes are read only of a file of the same name, size and time of change that is elsewhere than it was.
        """
        if line.state != self.state:
            return False
        if not line.content:
            return line.path == self.path
        return (line.path, line.changed) == (self.path, self.changed) or line.content == content_of(self.place)

    def replaces(self, line: Line, content: int) -> bool:
        """Whether a line is about another file, with other bytes than ``content`` stands for."""
        return line.path != self.path and line.content != content


class Manifest:
    """What is done in a folder of results; with ``ignore_lines`` only what is done from now on.

    Raises ``MistakeError`` where the file cannot be read or written.
    """

    def __init__(self, folder: Path, *, ignore_lines: bool = False):
        self.path, self.lock = folder / MANIFEST, threading.Lock()
        if self.path.exists():
            check_plain(self.path, sys.maxsize)
        self.read_to = self.path.stat().st_size if ignore_lines and self.path.exists() else 0
        self.names, self.lines = np.zeros(0, np.uint64), np.zeros((0, len(Line._fields)), np.uint64)
        self.recent: dict[int, Line] = {}

    def last(self, name: str) -> Line | None:
        """What the last line about the results ``name`` says; None where there is no line."""
        self._catch_up()
        key = number_of(name)
        if key in self.recent:
            return self.recent[key]
        place = int(np.searchsorted(self.names, np.uint64(key)))
        found = place < len(self.names) and int(self.names[place]) == key
        return Line(*map(int, self.lines[place])) if found else None

    def append(self, name: str, source: Source, content: int, facts: dict[str, Any]) -> None:
        """Add the line about the results ``name``, made of the file ``source`` with this ``content``."""
        fields = {
            "results": name,
            "state": f"{source.state:016x}",
            "image": source.place,
            "changed": f"{source.changed:016x}",
            "content": f"{content:016x}",
            **facts,
        }
        line = json.dumps(fields, ensure_ascii=True) + "\n"
        try:
            with self.lock:
                file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    size = os.fstat(file).st_size
                    whole = not size or _last_byte(file) == b"\n"  # else a process was killed while it wrote
                    _write_all(file, line.encode() if whole else b"\n" + line.encode())
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
            name, path = number_of(fields["results"]), number_of(fields["image"])
            changed, content = (int(fields.get(word, "0"), 16) for word in ("changed", "content"))
            said = Line(int(fields["state"], 16), path, changed, content)
        except (ValueError, KeyError, TypeError, AttributeError):  # cut short when its process was killed
            return
        if not all(0 <= number < 2**64 for number in said):
            return
        self.recent[name] = said
        if len(self.recent) >= RECENT:
            names = np.concatenate([np.array([*self.recent], np.uint64), self.names])
            lines = np.concatenate([np.array([*self.recent.values()], np.uint64), self.lines])
            self.names, first = np.unique(names, return_index=True)  # the first is the latest
            self.lines = lines[first]
            self.recent.clear()


def source_of(image: Path, settings: str) -> Source:
    """An image file as it is now, to be predicted with ``settings``. Raises ``OSError``."""
    facts = image.stat()
    state = number_of(json.dumps([image.name, facts.st_size, facts.st_mtime_ns, settings]))
    return Source(os.path.realpath(image), state, facts.st_ctime_ns % 2**64)


def content_of(image: FilePath) -> int:
    """A number of 64 bits that stands for all bytes of a file. Raises ``OSError``."""
    with open(image, "rb") as file:
        return int.from_bytes(file_digest(file, partial(blake2b, digest_size=8)).digest(), "little")


def _write_all(file: int, content: bytes) -> None:
    """A disk that fills up takes a part; what is left then raises ``OSError``."""
    while content:
        content = content[os.write(file, content) :]


def _last_byte(file: int) -> bytes:
    os.lseek(file, -1, os.SEEK_END)
    return os.read(file, 1)
