"""Which images a command names: files, folders and what lies below them, one after the other and never all at once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mtlsi.errors import MistakeError, message_of
from mtlsi.images import IMAGE_ENDINGS, FilePath
from mtlsi.prediction.images import VIDEO_ENDINGS, check_file
from mtlsi.prediction.manifest import MANIFEST, holds_results

SORTED = 50_000
"""Files of a folder that are put in order at a time, which bounds the memory; a folder of more is read in such blocks."""

FEW = 3
"""Videos that are named."""


@dataclass(frozen=True)
class Found:
    """An image to predict."""

    path: Path
    below: str = ""
    """Its folder as seen from the one that was given, with slashes; the results have the same tree."""


@dataclass
class Notes:
    """What a walk passed over."""

    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that cannot be read, each with the reason."""
    links: list[tuple[Path, str]] = field(default_factory=list)
    """Links to folders that are not followed, each with the reason."""
    others: Counter[str] = field(default_factory=Counter)
    """How many files that are no images, by the end of their names."""
    videos: list[Path] = field(default_factory=list)
    """The first videos among them."""
    num_subfolders: int = 0
    """Subfolders of a walk that is not recursive."""
    results: list[Path] = field(default_factory=list)
    """Subfolders of results of an earlier command."""


class Walk:
    """The images that ``paths`` name, in the order given, each once; a folder's in natural order (2 before 10).

    ``recursive``: subfolders, too. Links to folders are followed unless they lead to what is walked anyway. The folder
    ``out`` is left out, hidden files and folders, and subfolders of results of other commands.
    Raises ``MistakeError`` for no path, and for one that is not there or is no file or folder.
    """

    def __init__(self, paths: FilePath | Iterable[FilePath], out: FilePath, *, recursive: bool = False):
        self.recursive, self.out = recursive, os.path.realpath(out)
        given = dict.fromkeys(map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths))
        folders = {os.path.realpath(path): path for path in reversed(given) if path.is_dir()}
        self.roots = {
            real: path
            for real, path in folders.items()
            if not (recursive and any(_is_below(real, other) for other in folders if other != real))
        }
        self.files = {os.path.realpath(path): path for path in reversed(given) if not path.is_dir()}
        for path in self.files.values():
            check_file(path)
        walked = set(self.roots.values())
        self.given = [
            path for path in given if path in walked or (path in set(self.files.values()) and not self._is_found(path))
        ]
        if not self.given:
            raise MistakeError("no images given; expected image files or folders of them")
        if self.out in self.roots:
            raise MistakeError(f"{out}: the results would lie among the images of this folder; write to another folder")

    def images(self, notes: Notes | None = None) -> Iterator[Found]:
        """Every image. ``notes`` take what was passed over; a folder given that cannot be read raises ``MistakeError``."""
        notes, entered = Notes() if notes is None else notes, list(self.roots)
        roots = set(self.roots.values())
        for path in self.given:
            if path in roots:
                yield from self.images_of(path, notes, entered)
            else:
                yield Found(path)

    def images_of(self, root: Path, notes: Notes, entered: list[str] | None = None) -> Iterator[Found]:
        """Those of one of the folders given."""
        yield from self._below(root, notes, list(self.roots) if entered is None else entered)
        if any(path == root for path, _ in notes.failed):
            raise MistakeError(f"{root}: cannot be read ({notes.failed[-1][1]}); expected a folder of images")

    def is_below_out(self, path: str) -> bool:
        """Whether an absolute path without links lies in the folder of results."""
        return _is_below(path, self.out)

    def photo_in_out(self) -> Path | None:
        """An image in the folder of results that no command wrote there, where it lies below a folder that was given."""
        inside = any(_is_below(self.out, root) for root in self.roots)
        if not inside or not os.path.isdir(self.out) or os.path.exists(os.path.join(self.out, MANIFEST)):
            return None
        found = Walk(self.out, os.path.join(self.out, MANIFEST), recursive=True)
        return next((image.path for image in found.images()), None)

    def is_walked(self, folder: str) -> bool:
        """Whether the images of a folder, an absolute path without links, are among those walked."""
        if not self.recursive:
            return folder in self.roots
        return any(_is_below(folder, root) and not _is_below(self.out, root) for root in self.roots)

    def _below(self, root: Path, notes: Notes, entered: list[str]) -> Iterator[Found]:
        waiting = [(root, "")]
        while waiting:
            folder, below = waiting.pop()
            if below and not self._is_to_enter(folder, notes, entered):
                continue
            if below and holds_results(folder):
                notes.results.append(folder)
                continue
            subfolders: list[str] = []
            try:
                yield from _files_of(folder, below, subfolders, notes)
            except OSError as error:
                notes.failed.append((folder, message_of(error)))
            if self.recursive:
                subfolders.sort(key=_natural, reverse=True)
                waiting += [(folder / name, f"{below}{name}/") for name in subfolders]
            else:
                notes.num_subfolders += sum(os.path.realpath(folder / name) != self.out for name in subfolders)

    def _is_to_enter(self, folder: Path, notes: Notes, entered: list[str]) -> bool:
        """Whether a folder found is to be walked. ``entered``: what is walked whole, as absolute paths without links."""
        real = os.path.realpath(folder)
        if real == self.out:
            return False
        if not folder.is_symlink():
            return True
        for other in entered:
            if _is_below(real, other) or _is_below(other, real):
                notes.links.append((folder, f"leads to {real}, which is walked itself; not followed"))
                return False
        entered.append(real)
        return True

    def _is_found(self, file: Path) -> bool:
        """Whether a file that was given is found in a folder that was given, too."""
        if file.suffix.lower() not in IMAGE_ENDINGS or file.name.startswith("."):
            return False
        holder = os.path.realpath(file.parent)
        return holder in self.roots or (self.recursive and any(_is_below(holder, root) for root in self.roots))


def _files_of(folder: Path, below: str, subfolders: list[str], notes: Notes) -> Iterator[Found]:
    """The images of one folder; ``subfolders`` takes their names, ``notes`` the rest. Raises ``OSError``."""
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if _leads_to_folder(entry):
                subfolders.append(entry.name)
            elif ending in IMAGE_ENDINGS:
                files.append(entry.name)
            else:
                notes.others[ending or "without an ending"] += 1
                if ending in VIDEO_ENDINGS and len(notes.videos) < FEW:
                    notes.videos.append(folder / entry.name)
            if len(files) == SORTED:
                yield from (Found(folder / name, below) for name in sorted(files, key=_natural))
                files.clear()
    yield from (Found(folder / name, below) for name in sorted(files, key=_natural))


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_below(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it; both absolute, without links."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that reads numbers as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)]
