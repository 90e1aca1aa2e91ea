import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from mtlsi.metrics.boundary.thinning import thin, thin_levels

EIGHT = np.ones((3, 3), dtype=int)
masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def blobs(seed, size=(40, 50)):
    noise = np.random.default_rng(seed).standard_normal(size)
    return ndimage.gaussian_filter(noise, 2.5) > 0.02


def loop_thin(mask):
    """Guo and Hall's A1 as their paper states it, one pixel after the other."""
    on = {(int(i), int(j)) for i, j in zip(*np.nonzero(mask), strict=True)}
    num_before = -1
    while len(on) != num_before:
        num_before = len(on)
        for half in (0, 1):
            gone = set()
            for i, j in on:
                # p1..p8: clockwise from the upper left
                around = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
                p1, p2, p3, p4, p5, p6, p7, p8 = ((i + a, j + b) in on for a, b in around)
                c = (
                    (not p2 and (p3 or p4))
                    + (not p4 and (p5 or p6))
                    + (not p6 and (p7 or p8))
                    + (not p8 and (p1 or p2))
                )
                n1 = (p1 or p2) + (p3 or p4) + (p5 or p6) + (p7 or p8)
                n2 = (p2 or p3) + (p4 or p5) + (p6 or p7) + (p8 or p1)
                keep = ((p2 or p3 or not p5) and p4) if half == 0 else ((p6 or p7 or not p1) and p8)
                if c == 1 and 2 <= min(n1, n2) <= 3 and not keep:
                    gone.add((i, j))
            on -= gone
    result = np.zeros_like(mask)
    for at in on:
        result[at] = True
    return result


@given(mask=masks)
@example(mask=np.ones((9, 11), dtype=bool))
@settings(max_examples=80, deadline=None)
def test_thin_equals_a_loop_over_pixels_and_keeps_pieces_and_holes(mask):
    thinned = thin(mask)
    assert np.array_equal(thinned, loop_thin(mask))
    assert not (thinned & ~mask).any()
    pieces, num_pieces = ndimage.label(mask, structure=EIGHT)
    assert ndimage.label(thinned, structure=EIGHT)[1] == num_pieces
    assert set(np.unique(pieces[thinned])) == set(range(1, num_pieces + 1))
    assert (
        ndimage.label(np.pad(~thinned, 1, constant_values=True))[1]
        == (ndimage.label(np.pad(~mask, 1, constant_values=True))[1])
    )
    assert np.array_equal(thin(thinned), thinned)


@pytest.mark.parametrize("seed", range(4))
def test_thin_leaves_lines_one_pixel_wide(seed):
    mask = blobs(seed)
    thinned = thin(mask)
    assert np.array_equal(thinned, loop_thin(mask))
    squares = thinned[1:, 1:] & thinned[1:, :-1] & thinned[:-1, 1:] & thinned[:-1, :-1]
    assert mask.sum() > 300
    assert squares.sum() == 0


def test_thin_of_a_bar_is_its_middle():
    mask = np.zeros((9, 30), dtype=bool)
    mask[2:7, 3:27] = True
    thinned = thin(mask)
    rows, columns = np.nonzero(thinned)
    assert set(rows[(columns > 6) & (columns < 23)]) == {4}
    assert thinned.sum(0).max() == 1


def test_the_order_in_memory_makes_no_difference():
    mask = blobs(1)  # MATLAB's files give columns one after the other
    assert np.array_equal(thin(np.asfortranarray(mask)), thin(mask))
    assert np.array_equal(thin(mask[::2, ::-1]), loop_thin(mask[::2, ::-1]))
    assert np.array_equal(mask, blobs(1))


def test_thin_gives_scikit_images_result():
    """The same map through ``skimage.morphology.thin``, scikit-image 0.26.0."""
    skimage = pytest.importorskip("skimage.morphology", reason="scikit-image is not installed")
    for seed in range(4):
        assert np.array_equal(thin(blobs(seed)), skimage.thin(blobs(seed)))


@pytest.mark.parametrize("margin", [1, 4])
@pytest.mark.parametrize("thinned", [True, False])
def test_levels_hold_the_thinned_map_of_every_threshold_from_the_highest(margin, thinned):
    soft = ndimage.gaussian_filter(np.random.default_rng(5).random((30, 41)), 2)
    soft = np.round((soft - soft.min()) / np.ptp(soft), 2)  # values that equal thresholds
    thresholds = np.arange(1, 10) / 10
    candidates, levels = thin_levels(soft, thresholds, margin, thinned)
    assert np.array_equal(candidates, np.flatnonzero(np.pad(soft >= 0.1, margin)))
    for threshold, pixels in zip(thresholds[::-1], levels, strict=True):
        found = np.zeros((30 + 2 * margin, 41 + 2 * margin), dtype=bool)
        found.reshape(-1)[pixels] = True
        above = soft >= threshold
        assert np.array_equal(found, np.pad(loop_thin(above) if thinned else above, margin))
        assert found.sum() == len(pixels)
