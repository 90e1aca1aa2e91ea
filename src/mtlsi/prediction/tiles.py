"""Large images in tiles: fine detail from a closer look at each part, the rest from one look at the whole image.

The network sees an image at its working size, at which a photo of 24 megapixels has lost what is smaller than a dozen
pixels. A tile is a part of the photo shown at that size, thus larger; but the network knows less of what lies around it,
and takes for nearer what looks larger. So the whole image is predicted, too. With W its outputs and T those of a tile, on
the tile's grid and in numbers that may be averaged (of metres the logarithm, of directions unit vectors), a tile gives

    T' = T + smooth(W - T),    smooth: means over a few cells of the tile, bilinear between them

which has W's large shapes and T's small ones. Overlapping tiles are averaged with weights that fall to zero towards their
borders and sum to one, and W is mixed in. ``MIXTURES`` says how for each kind, and docs/tiles.md why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.model.network import MTLSINet
from mtlsi.nn.normalise import normalise
from mtlsi.prediction.predictor import Predictor, is_pair
from mtlsi.prediction.shown import Shown, Size
from mtlsi.reading import shortened
from mtlsi.tasks import TASKS

OVERLAP = 0.25
"""Of a tile's side, that it shares with the next tile."""
CLOSEST = 2.0
"""Tiles that ``auto`` chooses show things about this many times as large as the whole image does, at most.

Choice: training shows images at up to twice their size, and so far the gain was measured.
"""
ALIGN = 8
"""Tiles begin at multiples of so many pixels of what the network sees: its grids have strides of 8 or finer."""
NO_TILES = (1, 1)
SMALLEST, MOST_TILES = 32, 256
"""A tile's shorter side is at least so many pixels of the photo; an image has at most so many tiles."""


@dataclass(frozen=True)
class Mixture:
    """How the outputs of tiles and of the whole image are put together."""

    share: float
    """Of the tiles; the rest is the whole image's. 0: no tiles."""
    cells: int = 0
    """Cells along each side of a tile in which its mean is made that of the whole image; 0: it stays as it is."""


WHOLE = Mixture(0)
MIXTURES: dict[str, Mixture] = {
    "classes": Mixture(0.5, 4),
    "distance": Mixture(0.5, 4),
    "thin": Mixture(0.5),
    "direction": WHOLE,
    "value": WHOLE,
    "strength": WHOLE,
}
"""By kind; ``thin``: a strength that is drawn as thin lines.

Choice: what scored best on NYUDv2 with the packaged model (docs/tiles.md). Tiles alone are worse at all but boundaries.
Directions gain nothing, and of other values and strengths nothing is known: they are the whole image's.
"""


def mixture_of(task: str) -> Mixture:
    """How a task is put together."""
    record = TASKS[task]
    return MIXTURES["thin" if record.thin else record.kind]


class TiledPredictor(Predictor):
    """Predicts as ``Predictor``, large images in tiles: ``TiledPredictor(model)("photo.jpg")``.

    ``tiles``: "auto", which takes as many as show the network all the pixels that the image has, but none ``CLOSEST`` times
    larger than the whole image does, and none where that is hardly larger; "none"; or how many, (rows, columns) or
    "ROWSxCOLUMNS". Everything else is ``Predictor``'s.
    Raises ``MistakeError`` for what is neither, and, when called, for more tiles than an image has room for.
    """

    def __init__(self, model: MTLSINet | str | Path, tiles: str | Size = "auto", **options: Any):
        super().__init__(model, **options)
        self.tiles = read_tiles(tiles) if isinstance(tiles, str) else check_tiles(tiles)

    @property
    def identity(self) -> str:
        """Differs where the predictions for the same image would."""
        return super().identity if self.tiles == NO_TILES else f"{super().identity} tiles {self.tiles}"

    def _raw(self, pixels: np.ndarray, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The raw outputs of the tiles and the whole image, put together on the tiles' grid."""
        raw, size_hw = super()._raw(pixels, names), (pixels.shape[0], pixels.shape[1])
        tiled = tuple(task for task in names if mixture_of(task).share)
        grid = grid_of(size_hw, self.shown, self.tiles) if tiled else None
        if grid is None:
            return raw
        height, width = grid.canvas_hw
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        canvas = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]

        def look(rows: slice, columns: slice) -> dict[str, Tensor]:
            return self._run(normalise(canvas[..., rows, columns].to(self.device)), tiled)

        return raw | compose({task: raw[task] for task in tiled}, grid, look)


@dataclass(frozen=True)
class Grid:
    """Tiles of one size in rows and columns, in pixels of the image as large as they show it: the canvas."""

    tile_hw: Size
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    closer: float = 1.0
    """How many times as large as in the whole image they show things."""

    @property
    def canvas_hw(self) -> Size:
        """The size of the whole image."""
        return self.tops[-1] + self.tile_hw[0], self.lefts[-1] + self.tile_hw[1]


def grid_of(size_hw: Size, shown: Shown, tiles: Size | None) -> Grid | None:
    """The tiles of an image; None where the whole image is enough. ``tiles``: rows and columns, None chooses."""
    rows, columns = fitting_tiles(size_hw, shown) if tiles is None else tiles
    if (rows, columns) == NO_TILES:
        return None
    part = [side / spanned(count) for side, count in zip(size_hw, (rows, columns), strict=True)]
    if min(part) < SMALLEST:
        most = "x".join(str(max(1, int((side / SMALLEST - OVERLAP) / (1 - OVERLAP)))) for side in size_hw)
        allowed = f"at most {most} of them" if min(size_hw) >= SMALLEST else "none of them"
        raise MistakeError(
            f"{rows}x{columns} tiles of an image of {size_hw[0]}x{size_hw[1]}; expected {allowed}, so that each has "
            f"{SMALLEST} pixels: give fewer, or auto"
        )
    seen = shown.fit([max(1, round(side)) for side in part])
    height, width = (ALIGN * max(1, round(side / ALIGN)) for side in seen)
    grid = Grid((height, width), _starts(height, rows), _starts(width, columns))
    return replace(grid, closer=math.sqrt(math.prod(grid.canvas_hw) / math.prod(shown.fit(size_hw))))


def fitting_tiles(size_hw: Size, shown: Shown) -> Size:
    """Rows and columns of tiles that show the network what the image has; (1, 1) where the whole image shows it.

    A tile has the working size's shape, or that turned by 90 degrees for a portrait image.
    """
    if min(size_hw) < SMALLEST:
        return NO_TILES
    whole = shown.fit(size_hw)
    scale = min(1.0, CLOSEST * math.sqrt(math.prod(whole) / math.prod(size_hw)))
    working_size = shown.working_size
    upright = (size_hw[0] > size_hw[1]) != (working_size[0] > working_size[1])
    seen = working_size[::-1] if upright else working_size
    rows, columns = (
        max(1, round((side * scale / tile - OVERLAP) / (1 - OVERLAP))) for side, tile in zip(size_hw, seen, strict=True)
    )
    while rows * columns > MOST_TILES:
        rows, columns = math.ceil(rows * 0.9), math.ceil(columns * 0.9)
    return rows, columns


def spanned(count: int) -> float:
    """Sides of a tile that ``count`` tiles in a row span."""
    return count - (count - 1) * OVERLAP


def _starts(side: int, count: int) -> tuple[int, ...]:
    """Where the tiles along one axis begin."""
    return tuple(ALIGN * round(i * side * (1 - OVERLAP) / ALIGN) for i in range(count))


def weights(starts: tuple[int, ...], side: int) -> Tensor:
    """The weights ``(tiles, positions)`` of tiles along one axis: they sum to one at each position.

    A tile's grows in proportion to the distance from its nearer end, and is divided by the sum over all tiles.
    """
    positions = torch.arange(starts[-1] + side) + 0.5
    first = torch.tensor(starts)[:, None]
    hats = torch.minimum(positions - first, first + side - positions).clamp_min(0)
    return hats / hats.sum(0)


def compose(
    whole: Mapping[str, Tensor], grid: Grid, look: Callable[[slice, slice], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The raw outputs ``(1 c h w)`` of every task for the whole image, on the grid of its tiles.

    ``whole``: those of the whole image; ``look`` gives a tile's from its rows and columns on the canvas.
    """
    (height, width), mosaics = grid.tile_hw, dict[str, Mosaic]()
    for row, top in enumerate(grid.tops):
        for column, left in enumerate(grid.lefts):
            for task, raw in look(slice(top, top + height), slice(left, left + width)).items():
                if task not in mosaics:
                    mosaics[task] = Mosaic(task, whole[task], grid, _stride(task, raw, grid.tile_hw))
                mosaics[task].add(row, column, raw)
    return {task: mosaic.raw() for task, mosaic in mosaics.items()}


class Mosaic:
    """One task's raw outputs from those of its tiles, added one by one."""

    def __init__(self, task: str, whole: Tensor, grid: Grid, stride: int):
        self.kind, self.mixture, self.stride, self.grid = kinds.of(task), mixture_of(task), stride, grid
        height, width = (side // stride for side in grid.canvas_hw)
        self.whole = self.kind.to_average(F.interpolate(whole, (height, width), mode="bilinear", antialias=True))
        self.sum = torch.zeros_like(self.whole)
        self.down, self.across = (
            weights(tuple(start // stride for start in starts), side // stride).to(whole)
            for starts, side in ((grid.tops, grid.tile_hw[0]), (grid.lefts, grid.tile_hw[1]))
        )

    def add(self, row: int, column: int, raw: Tensor) -> None:
        """Add the outputs ``(1 c h w)`` of the tile in this row and column."""
        top, left = self.grid.tops[row] // self.stride, self.grid.lefts[column] // self.stride
        rows, columns = slice(top, top + raw.shape[2]), slice(left, left + raw.shape[3])
        values = self.kind.to_average(self.kind.zoom(raw, 1 / self.grid.closer))
        if cells := self.mixture.cells:
            values = values + smooth(self.whole[..., rows, columns] - values, cells)
        self.sum[..., rows, columns] += self.down[row, rows, None] * self.across[column, columns] * values

    def raw(self) -> Tensor:
        """The raw outputs of all tiles and the whole image."""
        return self.kind.from_average(torch.lerp(self.whole, self.sum, self.mixture.share))


def smooth(values: Tensor, cells: int) -> Tensor:
    """The means of ``values (1 c h w)`` in ``cells`` times ``cells`` parts, bilinear between their middles."""
    means = F.adaptive_avg_pool2d(values, min(cells, *values.shape[2:]))
    return F.interpolate(means, values.shape[2:], mode="bilinear")


def _stride(task: str, raw: Tensor, tile_hw: Size) -> int:
    """How many pixels of what the network sees are one of its output's."""
    stride = tile_hw[0] // raw.shape[2]
    if ALIGN % stride or raw.shape[2:] != (tile_hw[0] // stride, tile_hw[1] // stride):
        seen = "x".join(map(str, raw.shape[2:]))
        raise MistakeError(
            f"{task}: {seen} outputs of {tile_hw[0]}x{tile_hw[1]} pixels; tiles need a stride of 1 to {ALIGN}"
        )
    return stride


def read_tiles(text: str) -> Size | None:
    """``4x6`` as rows and columns, ``none`` as 1x1, ``auto`` as None; ``MistakeError`` for anything else."""
    if text in ("auto", "none"):
        return None if text == "auto" else NO_TILES
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.strip())
    if not found:
        raise MistakeError(f"tiles {shortened(text)}; expected auto, none, or rows and columns such as 4x6")
    return check_tiles((int(found[1]), int(found[2])))


def check_tiles(tiles: Size) -> Size:
    """Rows and columns, or ``MistakeError`` for anything else, none or too many."""
    if not is_pair(tiles) or math.prod(tiles) > MOST_TILES:
        raise MistakeError(
            f"tiles {shortened(tiles)}; expected rows and columns, from (1, 1) to {MOST_TILES} tiles in all, "
            "such as (4, 6), on the command line 4x6"
        )
    return tiles
