"""Raw predictions resized to the image's own size and decoded, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlsi import kinds

BAND_VALUES = 2**24
"""Values of one task's raw output made at full size at a time (64 MB), of which two are held for classes."""
MOST_CHANGES = 0.3
"""The share of a map's places whose class differs from the next row's, plus that for columns; from here on scores are worked
out everywhere.

Choice: here both ways take as long. A trained network's maps have about a third of it.
"""


def bands(task: str, raw: Tensor, size_hw: tuple[int, int]) -> Iterator[np.ndarray]:
    """``raw (1 c h w)`` resized to ``size_hw`` (H W), then decoded: bands of rows ``(. W)`` or ``(. W 3)``.

    Bilinear, antialiased where the image is smaller than the map. In bands, so that forty maps never stand at full size.
    """
    channels, (height, width) = raw.shape[1], size_hw
    if height * width <= raw.shape[2] * raw.shape[3]:
        with torch.inference_mode():
            small = kinds.decode(task, F.interpolate(raw, size_hw, mode="bilinear", antialias=True))
        yield _to_numpy(small)
        return
    rows = max(1, BAND_VALUES // (channels * width))
    with torch.inference_mode():
        best = _of_few_regions(task, raw)
        enlarged = _Enlarged(task, raw, size_hw) if best is None else _Best(task, raw, best, size_hw)
    for top in range(0, height, rows):
        with torch.inference_mode():  # not while whoever asked does something else
            band = enlarged.rows(top, min(top + rows, height))
        yield _to_numpy(band)


def _of_few_regions(task: str, raw: Tensor) -> Tensor | None:
    """The map's best classes (h w), if it is one of classes and these seldom change from one place to the next."""
    if kinds.of(task).task.kind != "classes" or min(raw.shape[2:]) < 2:
        return None
    best = kinds.decode(task, raw)[0]
    changes = [(best.diff(dim=axis) != 0).float().mean() for axis in (0, 1)]
    return best if sum(changes) < MOST_CHANGES else None


class _Line(NamedTuple):
    """For places of an image along one axis, the two of the map that each lies between."""

    low: Tensor
    high: Tensor
    weight: Tensor
    """Of ``high``; that of ``low`` is what is missing from one."""


def _between(first: int, stop: int, length: int, map_length: int, raw: Tensor) -> _Line:
    """Places ``first`` to ``stop`` of ``length`` that span ``map_length``, as ``F.interpolate`` lays them."""
    source = (torch.arange(first, stop, device=raw.device) + 0.5) * (map_length / length) - 0.5
    source = source.clamp(0, map_length - 1)
    low = source.long()
    return _Line(low, (low + 1).clamp(max=map_length - 1), (source - low).to(raw))


class _Enlarged:
    """A map of any kind."""

    def __init__(self, task: str, raw: Tensor, size_hw: tuple[int, int]):
        self.task, self.size_hw = task, size_hw
        self.raw = raw.contiguous(memory_format=torch.channels_last)  # resized more than twice as fast

    def rows(self, top: int, bottom: int) -> Tensor:
        """These rows, decoded: (1 . W) or (1 3 . W)."""
        height, width = self.size_hw
        if bottom - top == height:
            return kinds.decode(self.task, F.interpolate(self.raw, self.size_hw, mode="bilinear"))
        line = _between(top, bottom, height, self.raw.shape[2], self.raw)
        mixed = torch.lerp(self.raw[:, :, line.low], self.raw[:, :, line.high], line.weight[:, None])
        return kinds.decode(self.task, F.interpolate(mixed, (bottom - top, width), mode="bilinear"))


class _Best:
    """A map of class scores, of which only the best one's class is wanted.

    A score between four is their weighted mean. Where one class is the best at all four it is so between them, too, and no
    score need be worked out: in photographs of rooms that is six sevenths of the pixels.
    """

    def __init__(self, task: str, raw: Tensor, best: Tensor, size_hw: tuple[int, int]):
        self.task, self.height = task, size_hw[0]
        self.scores = raw[0].permute(1, 2, 0).contiguous()  # (h w c): a place's scores lie side by side
        self.columns = _between(0, size_hw[1], size_hw[1], raw.shape[3], raw)
        self.left = best[:, self.columns.low]
        self.differs = self.left != best[:, self.columns.high]

    def rows(self, top: int, bottom: int) -> Tensor:
        """These rows (1 . W)."""
        line = _between(top, bottom, self.height, self.scores.shape[0], self.scores)
        best, below = self.left[line.low], self.left[line.high]
        row, column = ((best != below) | self.differs[line.low] | self.differs[line.high]).nonzero(as_tuple=True)
        first = int(line.low[0])
        scores = self.scores[first : int(line.high[-1]) + 1]
        wide = torch.lerp(scores[:, self.columns.low], scores[:, self.columns.high], self.columns.weight[:, None])
        low, high = wide[line.low[row] - first, column], wide[line.high[row] - first, column]
        best[row, column] = kinds.decode(self.task, low.lerp_(high, line.weight[row, None]))
        return best[None]


def _to_numpy(decoded: Tensor) -> np.ndarray:
    """``(1 H W)`` or ``(1 3 H W)`` as ``(H W)`` or ``(H W 3)``."""
    array = decoded[0].cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0)) if array.ndim == 3 else array
