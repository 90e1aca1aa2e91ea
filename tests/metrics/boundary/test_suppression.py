from math import atan, cos, sin

import numpy as np
import pytest
from scipy import ndimage

from mtlsi.metrics.boundary.suppression import suppress_non_maxima


def loop_suppress(soft):
    """The toolbox's formulas, pixel by pixel in float64, without the fading."""
    height, width = soft.shape
    weights = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    mirrored = np.pad(soft, 4, mode="symmetric")
    smooth = np.array(
        [[weights @ mirrored[i : i + 9, j : j + 9] @ weights for j in range(width)] for i in range(height)]
    )
    slope_y, slope_x = np.gradient(smooth)
    yy, xx = np.gradient(slope_y, axis=0), np.gradient(slope_x, axis=1)
    yx = np.gradient(slope_x, axis=0)
    kept = np.zeros_like(soft)
    for i in range(height):
        for j in range(width):
            direction = atan(yy[i, j] * np.sign(-yx[i, j]) / (xx[i, j] + 1e-5)) % np.pi
            stays = True
            for step in (-1, 1):
                y = min(max(i + step * sin(direction), 0), height - 1)
                x = min(max(j + step * cos(direction), 0), width - 1)
                top, left = min(int(y), height - 2), min(int(x), width - 2)
                down, right = y - top, x - left
                beside = (1 - down) * ((1 - right) * soft[top, left] + right * soft[top, left + 1]) + down * (
                    (1 - right) * soft[top + 1, left] + right * soft[top + 1, left + 1]
                )
                stays = stays and soft[i, j] * 1.01 >= beside
            kept[i, j] = soft[i, j] if stays else 0
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_suppression_equals_a_loop_over_the_formulas(seed):
    soft = ndimage.gaussian_filter(np.random.default_rng(seed).random((33, 27)), 1.5)
    soft = (soft - soft.min()) / np.ptp(soft)
    inner = (slice(5, -5), slice(5, -5))
    kept = suppress_non_maxima(soft, 0.05)[inner]
    expected = np.where(soft >= 0.05, loop_suppress(soft), 0)[inner]
    assert 0.1 < (expected > 0).mean() < 0.7
    np.testing.assert_allclose(kept, expected, atol=1e-6)


@pytest.mark.parametrize("degrees", [20, 45, 70, 90, 110, 135, 160])
def test_suppression_leaves_the_crest_of_a_ridge(degrees):
    rows, columns = np.indices((61, 61)) - 30
    away = np.abs(np.cos(np.radians(degrees)) * rows + np.sin(np.radians(degrees)) * columns)
    soft = np.exp(-((away / 3) ** 2)).astype(np.float32)
    ridges = suppress_non_maxima(soft, 0.1)
    inner = np.hypot(rows, columns) < 22
    assert away[inner & (ridges > 0)].max() <= 1.5
    assert len(away[inner & (ridges > 0)]) >= 30
    assert np.all((ridges == soft)[inner & (ridges > 0)])
    assert (soft[inner] > 0.1).sum() > 2.5 * (ridges[inner] > 0).sum()


def test_suppression_fades_out_at_the_edge_and_below_the_lowest_threshold():
    flat = np.full((20, 20), 0.5, dtype=np.float32)
    fading = np.minimum(np.minimum(np.arange(20), np.arange(20)[::-1]) / 5, 1)
    expected = 0.5 * np.outer(fading, fading)
    np.testing.assert_allclose(suppress_non_maxima(flat, 0.3), expected, rtol=1e-6)
    assert not suppress_non_maxima(flat, 0.6).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (3, 3)])
def test_suppression_takes_images_of_any_size(size):
    ridges = suppress_non_maxima(np.ones(size), 0.5)
    assert ridges.shape == size
    assert np.isfinite(ridges).all()
