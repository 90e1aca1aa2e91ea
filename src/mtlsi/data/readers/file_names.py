"""Which image a label file belongs to, by its name: patterns that a person gives, and suffixes that are common."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mtlsi.errors import MistakeError

MOST_ENTRIES = 5_000_000
"""Files and folders below a folder: five times as many as an index may name images."""
SEPARATORS = "_-."
IMAGE_WORDS = ("image", "img", "im", "rgb", "photo", "color", "colour")
"""What people write before or after the name of an image: ``rgb_0001.png``, ``0001-image.jpg``."""
LABEL_WORDS: Mapping[str, tuple[str, ...]] = {
    "classes": ("semseg", "seg", "segmentation", "mask", "masks", "label", "labels", "gt", "annotation", "l"),
    "strength": ("mask", "label", "gt", "sal", "saliency", "edge", "edges", "boundary", "boundaries"),
    "distance": ("depth", "dep", "gt"),
    "direction": ("normal", "normals", "norm"),
    "value": (),
}
"""The same for labels, by kind of task; the task's own name is always one."""


@dataclass(frozen=True)
class Pattern:
    """Where files lie: ``folder``/any subfolders/``start`` NAME ``end``, with ``suffix`` if that is given.

    A pattern whose ``*`` is a folder, ``data/*/mask.png``, has the rest of the path in ``end``.
    """

    folder: str
    start: str = ""
    end: str = ""
    suffix: str = ""

    @property
    def plain(self) -> bool:
        """Whether every file in the folder fits."""
        return not (self.start or self.end or self.suffix)

    def name_of(self, place: str) -> str | None:
        """The name in the path of a file, relative to ``folder``; None: the file does not fit."""
        stem, suffix = os.path.splitext(composed(place))
        if self.suffix and suffix.lower() != self.suffix.lower():
            return None
        parent, slash, base = ("", "", stem) if "/" in self.end else stem.rpartition("/")
        fits = base.startswith(self.start) and base.endswith(self.end) and len(base) > len(self.start) + len(self.end)
        return parent + slash + base[len(self.start) : len(base) - len(self.end)] if fits else None


def read_pattern(value: object) -> str:
    """A text with one ``*`` for the name. Raises ``ValueError`` for all else."""
    if not isinstance(value, str) or value.count("*") != 1 or value.startswith("/") or ".." in value.split("/"):
        raise ValueError
    return composed(value.replace("\\", "/"))


def pattern_of(text: str | None, folder: str) -> Pattern:
    """The pattern that ``text`` says, in ``folder`` where it names none; None: every file in ``folder``."""
    if text is None:
        return Pattern(folder)
    before, after = text.split("*")
    place, _, start = before.rpartition("/")
    end, suffix = os.path.splitext(after)
    if suffix[1:].isdigit():  # v1.2 is no suffix
        end, suffix = after, ""
    return Pattern(place or folder, start, end, suffix)


def composed(name: str) -> str:
    """A name in NFC: macOS hands out decomposed ones, in which an umlaut is two characters."""
    return unicodedata.normalize("NFC", name)


def name_of_file(place: str) -> str:
    """A file's path without its suffix, in NFC."""
    return composed(os.path.splitext(place)[0])


def files_below(folder: Path) -> Iterator[str]:
    """Every file below ``folder``, subfolders in, relative to it, in order; hidden ones and what systems leave are not.

    Links to folders are followed, but none to a folder that it lies in, such as to /, and none twice to the same. Raises
    ``MistakeError`` for more than ``MOST_ENTRIES``.
    """
    seen: set[str] = set()
    count = 0
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or _leads_up(parent, real):
            folders.clear()
            continue
        seen.add(real)
        count += len(folders) + len(files)
        if count > MOST_ENTRIES:
            raise MistakeError(
                f"{folder}: more than {MOST_ENTRIES} files and folders, the last in {parent}; expected those of a data set: "
                "remove a link that leads elsewhere"
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower() not in ("thumbs.db", "desktop.ini"):
                yield Path(parent, name).relative_to(folder).as_posix()


def _leads_up(path: str, real: str) -> bool:
    """Whether ``path``, a link to ``real``, lies in what it leads to."""
    return os.path.islink(path) and Path(os.path.realpath(os.path.dirname(path))).is_relative_to(real)


def without_words(name: str, words: Collection[str]) -> str | None:
    """``name`` without one of ``words`` at the start or the end of its last part; None: it has none."""
    parent, slash, base = name.rpartition("/")
    for separator in SEPARATORS:
        head, found, tail = base.rpartition(separator)
        if found and head and tail.lower() in words:
            return parent + slash + head
        head, found, tail = base.partition(separator)
        if found and tail and head.lower() in words:
            return parent + slash + tail
    return None


class Names:
    """The images of a folder by every name under which a label may call them."""

    def __init__(self, images: Collection[str]):
        self.images = set(images)
        self._bare = _unique((without_words(name, IMAGE_WORDS), name) for name in images)
        self._last = _unique((name.rpartition("/")[2], name) for name in images if "/" in name)
        self._folded = _unique((name.casefold(), name) for name in images)

    def find(self, label: str, words: Collection[str]) -> str | None:
        """The image that a label file of this name belongs to: the same name, or one without common words.

        A label that lies in no subfolder may belong to an image in one, where only one is called so.
        """
        for name in dict.fromkeys((label, without_words(label, words))):
            if name is None:
                continue
            if name in self.images:
                return name
            if found := self._bare.get(name) or self._last.get(name):
                return found
        return None

    def but_for_case(self, label: str) -> str | None:
        """The image that differs from ``label`` in upper and lower case alone."""
        return self._folded.get(label.casefold())


def words_of(task: str, kind: str) -> tuple[str, ...]:
    """What people write before or after the names of a task's files, in lower case."""
    return (task.lower(), *LABEL_WORDS[kind])


def _unique(pairs: Iterator[tuple[str | None, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    several = set()
    for key, name in pairs:
        if key is None:
            continue
        if key in found:
            several.add(key)
        found[key] = name
    return {key: name for key, name in found.items() if key not in several}
