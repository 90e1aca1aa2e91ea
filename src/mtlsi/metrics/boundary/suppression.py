"""Non-maximum suppression of soft boundary maps, as the field's benchmark applies it before thresholds."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

TRIANGLE = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1], dtype=np.float32) / 25
FADE = 5
"""Over how many pixels the map fades out towards the edge of the image."""


def suppress_non_maxima(probability: np.ndarray, lowest: float) -> np.ndarray:
    """The soft map (H W) with only its ridges left, float32; all else, and pixels below ``lowest``, become 0.

    A pixel stays if 1.01 times its value reaches the (interpolated) values one pixel away on either side, across the
    ridge; plateaus therefore stay. Towards the edge of the image the last five pixels fade out.
    Paper: Dollar and Zitnick, Fast Edge Detection Using Structured Forests (2015), and the toolbox of that name: across
    the ridge is atan(-sign(yx) yy / xx) of the second derivatives of the map smoothed by a triangle of radius 4. That
    only approximates the direction, and fails for a ridge exactly along the rows, whose yx is 0; kept, for its numbers
    are the field's.
    Choice: the map itself is not smoothed first, nor the result rounded to 8 bits, as some of the field's tools do.
    """
    probability = probability.astype(np.float32)
    smooth = ndimage.correlate1d(ndimage.correlate1d(probability, TRIANGLE, axis=0), TRIANGLE, axis=1)
    slope_y, slope_x = (_slope(smooth, axis) for axis in (0, 1))
    rows, columns = np.nonzero(probability >= lowest)
    yy, yx, xx = (_slope(s, a)[rows, columns] for s, a in ((slope_y, 0), (slope_x, 0), (slope_x, 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        across = np.nan_to_num(np.arctan(yy * np.sign(-yx) / (xx + np.float32(1e-5))))
    step_y, step_x = np.sin(across), np.cos(across)
    for side in (-1, 1):
        beside = _interpolate(probability, rows + side * step_y, columns + side * step_x)
        stays = probability[rows, columns] * np.float32(1.01) >= beside
        rows, columns, step_y, step_x = (a[stays] for a in (rows, columns, step_y, step_x))

    ridges = np.zeros_like(probability)
    ridges[rows, columns] = probability[rows, columns]
    for axis, side in enumerate(probability.shape):
        fade = min(FADE, side // 2)
        if fade:
            from_edge = np.minimum(np.arange(side), np.arange(side)[::-1])
            ridges *= np.expand_dims(np.minimum(from_edge / fade, 1).astype(np.float32), 1 - axis)
    return ridges


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """Central differences; 0 along an axis of a single pixel."""
    return np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values)


def _interpolate(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear, with places outside moved to the edge."""
    return ndimage.map_coordinates(values, (rows, columns), order=1, mode="nearest", output=np.float32)
