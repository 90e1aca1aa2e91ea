"""The predictions of one image, made when they are asked for, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np


class Maps(Mapping[str, np.ndarray]):
    """Predictions by task that are brought to the image's size whenever they are asked for, and kept by whoever asked.

    At 88 megapixels four tasks are 1.8 GB, the largest of them 1.1 GB. ``make`` gives by task what makes its map: bands of
    rows ``(h W)`` or ``(h W 3)`` from top to bottom, together of ``height`` rows.
    """

    def __init__(self, height: int, make: Mapping[str, Callable[[], Iterator[np.ndarray]]]):
        self.height, self._make = height, dict(make)

    def bands(self, task: str) -> Iterator[np.ndarray]:
        """The map of a task, band by band."""
        return self._make[task]()

    def __getitem__(self, task: str) -> np.ndarray:
        whole, top = np.empty(0), 0
        for band in self.bands(task):
            if len(band) == self.height:
                return band
            if top == 0:
                whole = np.empty((self.height, *band.shape[1:]), band.dtype)
            whole[top : top + len(band)] = band
            top += len(band)
        return whole

    def __contains__(self, task: object) -> bool:
        return task in self._make

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)

    def changed(self, change: Callable[[str, np.ndarray], np.ndarray]) -> Maps:
        """These with ``change(task, band)``, a function of each pixel alone, made of each band."""

        def make(task: str) -> Iterator[np.ndarray]:
            return (change(task, band) for band in self.bands(task))

        return Maps(self.height, {task: partial(make, task) for task in self})
