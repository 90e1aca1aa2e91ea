"""Files that may come from strangers: only plain files are opened, and nothing is read that no sensible file holds.

A few bytes can stand for gigabytes, in YAML, in JSON and in a header. What a file says of its own size is checked before
memory is taken for it; what it says at all is checked where it is used.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlsi.errors import MistakeError, message_of

MOST_BYTES = 512 * 2**20
"""Of one image or label: a map of 89 megapixels in float32 takes 356 MB."""
MOST_TEXT = 64 * 2**20
"""Bytes of a list of names or of an index in JSON: a million names."""
MOST_VALUES = 4_000_000
"""In JSON: a list of two bytes takes fifty in memory."""
MOST_IN_LINES = 8_000_000
"""In a file of JSON lines, where a line itself counts four more: of the 19 of a training step 400,000 lines."""
DEEPEST = 40
"""How deep lists and mappings may lie in one another."""


def check_plain(path: Path, most_bytes: int = MOST_BYTES) -> None:
    """Raises ``MistakeError`` for what is no plain file, such as a pipe, which would hang, and for a larger one.

    Raises ``OSError`` where there is nothing.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise MistakeError(f"{path}: {kind}; expected a plain file")
    if found.st_size > most_bytes:
        raise MistakeError(f"{path}: {found.st_size / 2**20:.0f} MB; expected {most_bytes // 2**20} MB at most")


def read_content(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a file; raises as ``check_plain`` does."""
    check_plain(path, most_bytes)
    return path.read_bytes()


def read_text(path: Path, most_bytes: int = MOST_TEXT) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; raises as ``check_plain``, and ``UnicodeError``."""
    return read_content(path, most_bytes).decode("utf-8-sig")


def read_json(path: Path, expected: str, *, finite: bool = True) -> dict[str, Any]:
    """The JSON object in a file, as ``parse_json`` reads it.

    Raises ``MistakeError``, which ends in what was ``expected``, for anything else, also where there is no such file.
    """
    try:
        found = parse_json(read_text(path), finite=finite)
    except MistakeError as error:
        raise MistakeError(f"{error}; expected {expected}" if "expected" not in str(error) else str(error)) from error
    except (OSError, ValueError) as error:
        raise MistakeError(f"{path}: cannot be read ({message_of(error, 200)}); expected {expected}") from error
    if not isinstance(found, dict):
        raise MistakeError(f"{path}: holds {type(found).__name__}; expected {expected}")
    return found


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """What JSON says.

    Raises ``ValueError`` where it is none, says a name of one object twice, has more than ``MOST_VALUES`` values or lies
    deeper than ``DEEPEST``, and, where it is to be ``finite``, for NaN, for infinity and for numbers that become it.
    """
    marks = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    if sum(map(text.count, marks)) > MOST_VALUES:  # type: ignore[arg-type]  # marks are of the text's type
        raise ValueError(f"more than {MOST_VALUES} values")
    try:
        found = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant if finite else None,
            parse_float=_finite if finite else None,
        )
    except RecursionError as error:
        raise ValueError(f"deeper than {DEEPEST} levels") from error
    level, depth = [found], 0
    while level := [item for value in level for item in _items(value)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"deeper than {DEEPEST} levels")
    return found


def json_lines(path: Path, *, finite: bool = True) -> Iterator[tuple[Any, bool]]:
    """What each line of a file says, as ``parse_json`` reads it, None where it is no JSON, and whether the line has ended.

    Raises as ``check_plain`` does, and ``MistakeError`` for more than ``MOST_IN_LINES`` values.
    """
    check_plain(path)
    count = 0
    with path.open("rb") as file:
        for line in file:
            count += 4 + sum(map(line.count, (b",", b"[", b"{")))
            if count > MOST_IN_LINES:
                raise MistakeError(f"{path}: more than {MOST_IN_LINES} values; expected the lines of one run")
            try:
                found = parse_json(line.decode("utf-8-sig", "replace"), finite=finite)
            except ValueError:
                found = None
            yield found, line.endswith(b"\n")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{shortened(twice)} stands twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} in place of a number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{shortened(text)} is more than a number can be")
    return number


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def check_inside(folder: Path, path: Path) -> None:
    """Raises ``MistakeError`` where ``path``, links followed, does not lie in ``folder``."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise MistakeError(f"{path}: lies outside {folder}; expected a file in that folder: copy it there")


def check_relative(name: str) -> None:
    """Raises ``MistakeError`` for a name that, taken as a path below a folder, could lead out of it or is no file's."""
    if not name or "\0" in name or name.startswith(("/", "\\")) or ":" in name[:2]:
        raise MistakeError(f"name {shortened(name)}; expected one below a folder, such as kitchen/0003")
    if ".." in re.split(r"[/\\]", name):
        raise MistakeError(f"name {shortened(name)} leads out of its folder; expected one without ..")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise MistakeError(f"name {shortened(name)}: no file can have it; expected one such as kitchen/0003") from error


def shortened(value: Any, most: int = 60) -> str:
    """A value in one line of at most ``most`` characters, for messages."""
    shown = " ".join(repr(value)[: 4 * most].split())
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
