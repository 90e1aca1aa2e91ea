"""Shared by every data set on disk: split lists, labels by task, size checks, a cache for slow labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from mtlsi.data.readers.decoding import decode_image, decode_normals, decode_rgb, encode_normals
from mtlsi.data.readers.derive import DERIVE_VERSION
from mtlsi.errors import MistakeError
from mtlsi.images import turned_label
from mtlsi.io import default_cache_dir, replace_array
from mtlsi.parallel import for_each
from mtlsi.reading import read_content, read_text
from mtlsi.tasks import BUILT_IN, TASKS, check_tasks, own_records, register_records

IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files that hold the label of one task, or the images: ``folder``/NAME``suffix``."""

    folder: str
    suffix: str
    decode: Callable[..., np.ndarray] = decode_rgb
    """A ``Decoder``; where there is a file ``beside``, that one's path and content follow."""
    beside: tuple[str, str] | None = None
    """Folder and suffix of a second file that the label needs: without both there is no label."""
    keep: bool = False
    """Decoding is slow: the result is kept in the cache."""
    derived: bool = False
    """The label is worked out from another one and is not a benchmark's own; tables say so."""
    version: str = ""
    """What else a kept label follows from than its files: the settings of ``decode``."""
    files: Mapping[str, str] | None = field(default=None, compare=False)
    """By name the file, relative to the root, where it is not ``folder``/NAME``suffix``."""

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Folder and suffix of each file that a label takes."""
        return ((self.folder, self.suffix), *([self.beside] if self.beside else []))


class FileDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """One split of a data set on disk: item i holds "image" (3 H W) uint8 and the labels that the image has.

    ``sources`` gives, for "image" and for each task, where its files may be; the first that is there for an image is
    taken. ``tasks`` None: every task with at least one label; ``left_out`` says why the others are not there. Tasks that
    are asked for by name must be there. With ``may_lack`` an image may lack labels, else a missing file is a mistake.
    Nothing is ever written into ``root``: what is slow to decode is kept in ``cache_dir``.
    """

    layout: str
    """Name of the layout, for messages."""
    labels_may_lack = True
    """Images without some label are expected."""

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        layout: str,
        names: Sequence[str],
        sources: Mapping[str, Sequence[Source]],
        classes: Mapping[str, tuple[str, ...]],
        boundary_tolerance: float,
        tasks: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        may_lack: bool = False,
    ):
        self.root, self.split, self.layout, self.names = Path(root), split, layout, list(names)
        self.sources, self.boundary_tolerance = sources, boundary_tolerance
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        own = tuple(task for task in sources if task not in (*BUILT_IN, IMAGE))
        known = (*(task for task in BUILT_IN if task in sources), *own)
        self._listings: dict[str, set[str]] = {}
        if not may_lack:
            self._demand(IMAGE)
        self.left_out: dict[str, str] = {}
        tasks = check_tasks(tasks, among=known) if tasks else ()
        for task in tasks or known:
            if not any(self._path(task, name) for name in self.names):
                self.left_out[task] = self._absent(task)
            elif not may_lack:
                self._demand(task)
        if tasks and self.left_out:
            raise MistakeError(next(iter(self.left_out.values())))
        self.tasks = tuple(task for task in tasks or known if task not in self.left_out)
        if not self.tasks:
            raise MistakeError(f"{self.root}: no labels for the split {split} ({next(iter(self.left_out.values()))})")
        self.classes = {task: tuple(names) for task, names in classes.items() if task in self.tasks}
        self.derived = tuple(task for task in self.tasks if any(s.derived for s in self._used(task)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"own_tasks": own_records(self.tasks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        register_records(state.pop("own_tasks"))  # a spawned process knows the built-in tasks only
        self.__dict__ |= state

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.read(IMAGE, index)
        item = {IMAGE: torch.from_numpy(image.transpose(2, 0, 1).copy())}
        for task in self.tasks:
            if self.path(task, index) is None:
                continue
            label = self.read(task, index)
            if label.shape[-2:] != image.shape[:2]:
                raise MistakeError(
                    turned_label(self.path(IMAGE, index), label.shape[-2:], image.shape[:2])
                    or f"{self.path(task, index)}: {_size(label.shape)}, but {self.path(IMAGE, index)} has "
                    f"{_size(image.shape[:2])}; give both the same size"
                )
            item[task] = torch.from_numpy(label)
        return item

    def name(self, index: int) -> str:
        """The name of item ``index`` in the split's list, such as "0003"."""
        return self.names[index]

    def path(self, what: str, index: int) -> Path | None:
        """The file that holds the image ("image") or the label of a task of item ``index``; None: it has none."""
        return self._path(what, self.names[index])

    def stems(self, what: str) -> set[str]:
        """The names of all files of "image" or of a task, listed in a split or not."""
        found = {name for source in self.sources[what] for name in source.files or ()}
        return found | {
            name[: -len(source.suffix)]
            for source in self.sources[what]
            if source.files is None
            for name in self._listing(source.folder)
            if name.endswith(source.suffix)
        }

    def read(self, what: str, index: int) -> np.ndarray:
        """The image (H W 3) uint8 or a label, laid out as ``tasks.py`` says. Raises ``MistakeError`` naming the file."""
        name = self.names[index]
        found = self._find(what, name)
        if found is None:
            raise MistakeError(f"{name}: no {what}; {self._absent(what, [name])}")
        source = found[1]
        paths = [found[0], *(self.root / folder / (name + suffix) for folder, suffix in source.places[1:])]
        files = [(path, _content(path)) for path in paths]
        if not source.keep:
            return _decode(files, source)
        key = hashlib.sha256(b"".join(content for _, content in files)).hexdigest()[:32]
        return self._kept(what, key, partial(_decode, files, source), source.version)

    def prepare(self, num_workers: int = 0) -> None:
        """Fill the cache with every slow label of ``tasks``, in ``num_workers`` processes (0: in this one)."""
        title = f"Preparing labels, {self.split}"
        console = Console(stderr=True)
        for _ in for_each(self._prepare_one, len(self), title=title, num_workers=num_workers, console=console):
            pass

    def _prepare_one(self, index: int) -> None:
        for task in self.tasks:
            found = self._find(task, self.names[index])
            if found is not None and found[1].keep:
                self.read(task, index)

    def _kept(self, task: str, key: str, decode: Callable[[], np.ndarray], version: str = "") -> np.ndarray:
        """The label that ``decode`` gives, from the cache if it is there whole. Its ``key`` tells what it follows from."""
        vectors = TASKS[task].kind == "direction"
        kept = self.cache_dir / "-".join(filter(None, (task, str(DERIVE_VERSION), version))) / f"{key}.png"
        try:
            pixels = np.array(decode_image(kept, kept.read_bytes()))
        except (FileNotFoundError, NotADirectoryError, MistakeError):
            # not looked for first: somebody may empty the cache meanwhile; a damaged one, which only repeats, is replaced
            label = decode()
            pixels = encode_normals(label) if vectors else label
            _keep(kept, pixels)
        return decode_normals(pixels) if vectors else pixels

    def _find(self, what: str, name: str) -> tuple[Path, Source] | None:
        for source in self.sources[what]:
            if source.files is not None:
                if name in source.files:
                    return self.root / source.files[name], source
            elif all(name + suffix in self._listing(folder) for folder, suffix in source.places):
                return self.root / source.folder / (name + source.suffix), source
        return None

    def _path(self, what: str, name: str) -> Path | None:
        found = self._find(what, name)
        return None if found is None else found[0]

    def _used(self, task: str) -> set[Source]:
        return {found[1] for found in (self._find(task, name) for name in self.names) if found is not None}

    def _listing(self, folder: str) -> set[str]:
        if folder not in self._listings:
            place = self.root / folder
            self._listings[folder] = {entry.name for entry in os.scandir(place)} if place.is_dir() else set()
        return self._listings[folder]

    def _demand(self, what: str) -> None:
        missing = [name for name in self.names if self._path(what, name) is None]
        if missing:
            raise MistakeError(self._absent(what, missing))

    def _absent(self, what: str, missing: Sequence[str] = ()) -> str:
        """One line about missing files of ``what``."""
        places, missing = self.sources[what][0].places, missing or self.names
        place, suffix = next((p for p in places if missing[0] + p[1] not in self._listing(p[0])), places[0])
        folder = self.root / place
        if not folder.is_dir():
            return f"{folder}: no such folder; expected one file {missing[0]}{suffix} for each name of {self.split}"
        if self.sources[what][0].files:
            return (
                f"{folder}: no file for {missing[0]}, nor for {len(missing) - 1} more that the split {self.split} lists; "
                "restore the files or take the names off the list"
            )
        kinds = ", ".join(sorted({Path(name).suffix or name for name in self._listing(place)})[:4]) or "nothing"
        return (
            f"{folder / (missing[0] + suffix)}: missing, and so are {len(missing) - 1} more that the split "
            f"{self.split} lists (the folder holds {kinds}); restore the files or take the names off the list"
        )


def read_names(path: Path, expected: str) -> list[str]:
    """The names in a split list, one per line. Raises ``MistakeError`` if there are none; ``expected`` shows one."""
    try:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MistakeError(f"{path}: cannot be read as text; expected one name per line, such as {expected}") from error
    if not names:
        raise MistakeError(f"{path}: empty; expected one name per line, such as {expected}")
    return names


def check_split(split: str, known: Iterable[str], what: str) -> None:
    """Raises ``MistakeError`` where ``split`` is none of ``known``."""
    known = list(known)
    if split not in known:
        raise MistakeError(f"split {split!r}: unknown to {what}; expected one of {', '.join(known)}")


def _content(path: Path) -> bytes:
    try:
        return read_content(path)
    except OSError as error:
        raise MistakeError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


def _decode(files: Sequence[tuple[Path, bytes]], source: Source) -> np.ndarray:
    return source.decode(*(part for file in files for part in file))


def _keep(path: Path, pixels: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_array(path, Image.fromarray(pixels))
    except OSError as error:
        raise MistakeError(
            f"{path.parent}: labels cannot be kept there ({error.strerror}); set MTLSI_CACHE to a folder that can be written"
        ) from error


def _size(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]} pixels"
