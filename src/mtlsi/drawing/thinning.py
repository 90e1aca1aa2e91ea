"""Of a huge map, the rows and columns that a drawing looks at."""

from __future__ import annotations

import numpy as np

Box = tuple[int, int]
"""Height and width at which a map is drawn, in pixels."""


def thin_out(array: np.ndarray, box: Box) -> np.ndarray:
    """Every n-th row and column, still at least twice ``box``: what a huge image costs stays small.

    Done twice it is the same: what is left has less than four times the rows and columns of ``box``.
    """
    rows, columns = _steps(array.shape[:2], box)
    return array[::rows, ::columns]


def _steps(size_hw: tuple[int, ...], box: Box) -> tuple[int, int]:
    rows, columns = (max(1, own // (2 * drawn)) for own, drawn in zip(size_hw, box, strict=True))
    return rows, columns


class Thinned:
    """``thin_out`` of a map of ``size_hw`` that comes in bands of rows, from top to bottom."""

    def __init__(self, size_hw: tuple[int, int], box: Box):
        self.rows, self.columns = _steps(size_hw, box)
        self.height, self.top, self.kept = size_hw[0], 0, np.empty(0)

    def add(self, band: np.ndarray) -> None:
        """Take what belongs to it of the next rows."""
        part = band[-self.top % self.rows :: self.rows, :: self.columns]
        if self.top == 0:
            self.kept = np.empty((-(-self.height // self.rows), *part.shape[1:]), part.dtype)
        filled = -(-self.top // self.rows)
        self.kept[filled : filled + len(part)] = part
        self.top += len(band)

    def array(self) -> np.ndarray:
        """What was taken."""
        return self.kept
