"""Reads every file of an image and keeps what ``mtlsi data check`` asks about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtlsi import kinds
from mtlsi.data.readers.files import IMAGE, FileDataset
from mtlsi.errors import MistakeError
from mtlsi.images import UNREADABLE, UPRIGHT, noting_orientation, turned_label


@dataclass(frozen=True)
class Reading:
    """One file of an image."""

    what: str
    """A task, or "image"."""
    path: str = ""
    size_hw: tuple[int, int] = (0, 0)
    valid: float = 0.0
    """Share of valid pixels."""
    values: tuple[float, ...] = ()
    """Its lowest and highest value, or its classes."""
    counts: tuple[int, ...] = ()
    """Pixels of each of its classes."""
    z: float = 0.0
    """Of normals, the mean of z."""
    tag: int = UPRIGHT
    """Of an image, its orientation tag."""
    problem: str | None = None


@dataclass(frozen=True)
class Reader:
    """Reads every file of one image; labels derived from a file that is read anyway are not worked out."""

    dataset: FileDataset

    def __call__(self, index: int) -> list[Reading]:
        return list(self._readings(index))

    def _readings(self, index: int) -> Iterator[Reading]:
        dataset, size = self.dataset, None
        for what in (IMAGE, *dataset.tasks):
            path = dataset.path(what, index)
            if what in dataset.derived or (path is None and what != IMAGE):
                continue
            tags: list[int] = []
            try:
                with noting_orientation(tags):
                    values = dataset.read(what, index)
            except MistakeError as error:
                yield Reading(what, problem=str(error))
                continue
            except (*UNREADABLE, MemoryError) as error:  # what a decoder lets through; the rest is to be read
                yield Reading(what, problem=f"{path}: not whole ({_one_line(error)}); give an undamaged copy")
                continue
            if what == IMAGE:
                size = values.shape[:2]
                yield Reading(what, str(path), (size[0], size[1]), 1.0, tag=tags[0] if tags else UPRIGHT)
                continue
            if size is not None and values.shape[-2:] != size:
                shapes = f"{values.shape[-2]}x{values.shape[-1]} pixels, but its image has {size[0]}x{size[1]}"
                turned = turned_label(dataset.path(IMAGE, index), values.shape[-2:], size)
                yield Reading(what, problem=turned or f"{path}: {shapes}; give both the same size")
                continue
            yield _summary(what, str(path), values)


def _summary(what: str, path: str, values: np.ndarray) -> Reading:
    kind = kinds.of(what)
    valid = kind.valid(values)
    labelled = values[..., valid]
    found: np.ndarray = np.array([])
    counts: np.ndarray = np.array([])
    if kind.discrete:
        found, counts = np.unique(labelled, return_counts=True)
    elif labelled.size:
        found = np.array([labelled.min(), labelled.max()])
    z = float(labelled[2].mean()) if what == "normals" and labelled.size else 0.0
    size_hw = (int(values.shape[-2]), int(values.shape[-1]))
    return Reading(what, path, size_hw, float(valid.mean()), tuple(found.tolist()), tuple(counts.tolist()), z)


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
