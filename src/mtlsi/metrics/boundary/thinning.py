"""Morphological thinning to convergence, as MATLAB's ``bwmorph(mask, 'thin', Inf)`` does it.

Paper: Guo and Hall 1989 (algorithm A1); Lam, Lee and Suen 1992, whose conditions G1, G2, G3 and G3' MATLAB documents.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mtlsi.metrics.boundary.compiling import compiled


def _removable() -> np.ndarray:
    """For each neighbourhood code (256): bit 0 is set if the first half-step removes the pixel, bit 1 if the second.

    Bit i of the code is neighbour i, counted from the right one, counter-clockwise.
    """
    on = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(bool).T
    sides = (0, 2, 4, 6)
    branches = sum((~on[i] & (on[i + 1] | on[(i + 2) % 8])).astype(int) for i in sides)
    pairs = sum((on[i] | on[i + 1]).astype(int) for i in sides)
    other_pairs = sum((on[i + 1] | on[(i + 2) % 8]).astype(int) for i in sides)
    thickness = np.minimum(pairs, other_pairs)
    on_the_rim = (branches == 1) & (thickness >= 2) & (thickness <= 3)
    upper_right = on_the_rim & ~((on[1] | on[2] | ~on[7]) & on[0])
    lower_left = on_the_rim & ~((on[5] | on[6] | ~on[3]) & on[4])
    return (upper_right + 2 * lower_left).astype(np.uint8)


REMOVABLE = _removable()


def thin(mask: np.ndarray) -> np.ndarray:
    """``mask`` (H W) bool thinned to lines one pixel wide that keep its pieces connected and apart."""
    padded = np.ascontiguousarray(np.pad(mask, 1))  # a MATLAB file holds columns, and padding keeps their order
    grid = padded.reshape(-1).view(np.uint8)
    pixels = np.flatnonzero(grid).astype(np.int32)
    thin_grid(grid, pixels, _around(padded.shape[1]))
    return padded[1:-1, 1:-1]


def thin_levels(
    values: np.ndarray, thresholds: np.ndarray, margin: int, thinned: bool
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The pixels of ``values >= threshold``, thinned, for every threshold, the highest first.

    ``values`` (H W) float, ``thresholds`` (k,) rising, ``margin`` >= 1 (pixels) the empty rim that is put around the
    image. Gives all pixels of the lowest threshold before thinning, rising, and the pixels of each threshold one after
    the other, as int32 flat indices into the image with its rim. With ``thinned`` off nothing is thinned.
    """
    stride = values.shape[1] + 2 * margin
    inside = np.flatnonzero(values >= thresholds[0])
    chosen = values.reshape(-1)[inside]
    candidates = inside.astype(np.int32)
    candidates += candidates // values.shape[1] * np.int32(2 * margin) + np.int32(margin * stride + margin)
    grid = np.zeros((values.shape[0] + 2 * margin) * stride, dtype=np.uint8)
    return candidates, _levels(grid, candidates, chosen, thresholds, _around(stride), thinned)


def _levels(
    grid: np.ndarray,
    candidates: np.ndarray,
    values: np.ndarray,
    thresholds: np.ndarray,
    around: np.ndarray,
    thinned: bool,
) -> Iterator[np.ndarray]:
    for threshold in thresholds[::-1]:
        pixels = candidates[values >= threshold]  # in the order of memory, which thinning walks through much faster
        yield _thin_pixels(grid, pixels, around) if thinned else pixels


def _around(stride: int) -> np.ndarray:
    """The flat steps to the eight neighbours."""
    return np.array([1, 1 - stride, -stride, -1 - stride, -1, stride - 1, stride, stride + 1], dtype=np.int32)


@compiled
def _thin_pixels(grid: np.ndarray, pixels: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Those of ``pixels`` that thinning leaves; ``grid`` is empty before and after."""
    for pixel in pixels:
        grid[pixel] = 1
    thin_grid(grid, pixels, around)
    kept = np.empty(len(pixels), dtype=np.int32)
    num_kept = 0
    for pixel in pixels:
        if grid[pixel]:
            kept[num_kept] = pixel
            num_kept += 1
            grid[pixel] = 0
    return kept[:num_kept].copy()


@compiled
def thin_grid(grid: np.ndarray, pixels: np.ndarray, around: np.ndarray) -> None:
    """Thin ``grid`` (flat, uint8, with an empty rim) in place; ``pixels`` are its set pixels, ``around`` the steps.

    A pixel is looked at again in a half-step only if a neighbour has gone since that half-step last looked at it.
    """
    waiting = np.empty((2, len(pixels)), dtype=np.int32)
    waiting[0] = pixels
    waiting[1] = pixels
    num_waiting = np.array([len(pixels), len(pixels)])
    for pixel in pixels:
        grid[pixel] = 7  # bit 0: set; bits 1 and 2: waits for the first, the second half-step
    removed = np.empty(len(pixels), dtype=np.int32)
    half = 0
    while num_waiting[0] + num_waiting[1] > 0:
        num_removed = 0
        bit = np.uint8(1 << half)
        for i in range(num_waiting[half]):
            pixel = waiting[half, i]
            if grid[pixel] == 0:
                continue
            grid[pixel] &= ~np.uint8(2 << half)
            code = 0
            for n in range(8):
                code |= (grid[pixel + around[n]] & 1) << n
            if REMOVABLE[code] & bit:
                removed[num_removed] = pixel
                num_removed += 1
        num_waiting[half] = 0
        for i in range(num_removed):
            grid[removed[i]] = 0
        for i in range(num_removed):
            for n in range(8):
                near = removed[i] + around[n]
                for other in range(2):
                    if grid[near] and not grid[near] & (2 << other):
                        grid[near] |= 2 << other
                        waiting[other, num_waiting[other]] = near
                        num_waiting[other] += 1
        half = 1 - half
    for pixel in pixels:
        grid[pixel] &= 1
