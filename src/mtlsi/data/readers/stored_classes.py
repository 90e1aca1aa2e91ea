"""Stored numbers to classes: what each stands for, looked up for a whole map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mtlsi.errors import MistakeError
from mtlsi.tasks import class_dtype, invalid_class

WIDEST_TABLE = 2**17
"""Numbers that lie no further apart have a table of all between them: all 16 bits do. Others are searched for."""


class StoredClasses:
    """What stands for which class in the label files of a task; made once, for all of them.

    ``meanings``: by stored number its class, or what marks a pixel without one. Memory goes by how many they are, not by how
    far apart: a few bytes can name both ends of 32 bits. ``expected`` and ``advice``: of the message about another number.
    """

    def __init__(self, meanings: Mapping[int, int], num_classes: int, *, expected: str, advice: str):
        self.dtype = class_dtype(num_classes)
        self.expected, self.advice = expected, advice
        stored = np.array(sorted(meanings), np.int64)
        classes = np.array([meanings[value] for value in stored.tolist()], np.int32)
        self.low, self.stored, self.classes = int(stored[0]), stored, classes
        self.table: np.ndarray | None = None
        if (span := int(stored[-1]) - self.low + 1) <= WIDEST_TABLE:
            self.table = np.full(span + 2, -1, np.int32)  # at both ends, what all numbers beyond have
            self.table[stored - self.low + 1] = classes

    def look_up(self, path: Path, values: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        """Class indices (H W) of whole numbers, unlabelled where not ``known`` (None: known everywhere).

        Raises ``MistakeError`` for a number that stands for nothing.
        """
        values = values.astype(np.int64)
        if self.table is not None:
            classes = self.table.take(values - (self.low - 1), mode="clip")
        else:
            place = np.searchsorted(self.stored, values).clip(max=len(self.stored) - 1)
            classes = np.where(self.stored[place] == values, self.classes[place], -1)
        if known is not None:
            classes[~known] = invalid_class(self.dtype)
        if (strange := classes < 0).any():
            raise MistakeError(f"{path}: label {values[strange].max()}; expected {self.expected}; {self.advice}")
        return classes.astype(self.dtype)


def ranges_of(values: Iterable[int]) -> str:
    """Whole numbers in words: ``0..3, 255``; "none"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [
        str(low) if low == high else f"{low}..{high}" if high > low + 1 else f"{low}, {high}" for low, high in runs
    ]
    return ", ".join(shown[:8] + ["..."] * (len(shown) > 8)) or "none"
