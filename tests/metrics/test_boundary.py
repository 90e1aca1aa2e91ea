import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from mtlsi.metrics.boundary import Nearness, ToleranceBoundaryF, suppress_non_maxima, thin

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


@given(mask=masks, seed=st.integers(0, 3), distance=st.floats(0, 9))
@settings(max_examples=80, deadline=None)
def test_nearness_equals_a_distance_transform(mask, seed, distance):
    points = np.nonzero(np.random.default_rng(seed).random(mask.shape) < 0.5)
    squared = np.full(mask.shape, np.inf)
    for i, j in zip(*np.nonzero(mask), strict=True):
        rows, columns = np.indices(mask.shape)
        squared = np.minimum(squared, (rows - i) ** 2 + (columns - j) ** 2)
    assert np.array_equal(Nearness(mask, distance)(points), squared[points] <= distance**2)


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 135, 160])
def test_suppression_leaves_the_crest_of_a_ridge(degrees):
    rows, columns = np.indices((61, 61)) - 30
    away = np.abs(np.cos(np.radians(degrees)) * rows + np.sin(np.radians(degrees)) * columns)
    soft = np.exp(-((away / 3) ** 2)).astype(np.float32)
    ridges = suppress_non_maxima(soft, 0.1)
    inner = np.hypot(rows, columns) < 22
    assert away[inner & (ridges > 0)].max() <= 1
    assert len(away[inner & (ridges > 0)]) >= 30
    assert np.all((ridges == soft)[inner & (ridges > 0)])
    assert (soft[inner] > 0.1).sum() > 4 * (ridges[inner] > 0).sum()


def test_suppression_fades_out_at_the_edge_and_below_the_lowest_threshold():
    flat = np.full((20, 20), 0.5, dtype=np.float32)
    fading = np.minimum(np.minimum(np.arange(20), np.arange(20)[::-1]) / 5, 1)
    expected = 0.5 * np.minimum.outer(fading, fading)
    np.testing.assert_allclose(suppress_non_maxima(flat, 0.3), expected, rtol=1e-6)
    assert not suppress_non_maxima(flat, 0.6).any()


def line(column, size=(40, 60)):
    mask = np.zeros(size, dtype=np.uint8)
    mask[6:-6, column] = 1  # clear of the edges, where predictions fade out
    return mask


def score(metric, prediction, label, valid=None):
    prediction, label = np.asarray(prediction, dtype=np.float32)[None], np.asarray(label)[None]
    valid = label != 255 if valid is None else valid[None]
    metric.update(torch.as_tensor(prediction), torch.as_tensor(label), torch.as_tensor(valid))
    return {key: value.item() for key, value in metric.compute().items()}


def test_a_line_counts_within_the_tolerance_and_not_beyond():
    diagonal = np.hypot(40, 60)
    for shift, expected in ((0, 100), (3, 100), (4, 0)):
        metric = ToleranceBoundaryF(tolerance=3.5 / diagonal)
        assert score(metric, line(30 + shift), line(30))["tolF"] == pytest.approx(expected)


def test_scores_equal_a_plain_calculation():
    draw = np.random.default_rng(3)
    label = (ndimage.gaussian_filter(draw.standard_normal((40, 60)), 4) > 0).astype(np.uint8)
    label = (ndimage.morphological_gradient(label, size=2) > 0).astype(np.uint8)
    noise = ndimage.gaussian_filter(draw.standard_normal((40, 60)), 1.5)
    prediction = np.clip(ndimage.gaussian_filter(label * 2.0, 1.5) * 0.6 + noise, 0, 1).astype(np.float32)
    distance = 0.02 * np.hypot(40, 60)
    thinned = loop_thin(label == 1)
    ridges = suppress_non_maxima(prediction, 0.1)
    curve = {}
    for step in range(1, 10):
        predicted = loop_thin(ridges >= np.float32(step / 10))
        if not predicted.any():
            continue
        precision = (ndimage.distance_transform_edt(~thinned)[predicted] <= distance).mean()
        recall = (ndimage.distance_transform_edt(~predicted)[thinned] <= distance).mean()
        curve[step / 10] = (2 * precision * recall / (precision + recall), precision, recall)
    best = max(curve, key=lambda threshold: curve[threshold][0])
    result = score(ToleranceBoundaryF(0.02, num_thresholds=9), prediction, label)
    assert 20 < result["tolF"] < 95
    assert [result[key] for key in ("tolF", "precision", "recall")] == pytest.approx([100 * v for v in curve[best]])
    assert result["threshold"] == pytest.approx(best)
    assert result["tolF_own"] == pytest.approx(result["tolF"])  # of a single picture


def test_each_picture_may_choose_its_own_threshold_for_ois():
    metric = ToleranceBoundaryF(tolerance=0.02)
    score(metric, 0.9 * line(30) + 0.4 * line(10), line(30))  # the weak line is false
    result = score(metric, 0.4 * line(30), line(30))  # the weak line is true
    assert result["tolF_own"] == pytest.approx(100)
    assert result["tolF"] == pytest.approx(80, abs=2)  # two true lines and a false one, or one true line of two


def test_a_picture_without_labels_counts_its_false_pixels():
    metric = ToleranceBoundaryF(tolerance=0.02)
    assert np.isnan(score(metric, 0.3 * line(20), 0 * line(20))["tolF"])
    result = score(metric, 0.9 * line(30), line(30))
    assert result["tolF"] == pytest.approx(100)
    assert result["threshold"] > 0.3
    assert result["tolF_own"] == pytest.approx(100)


def test_predictions_on_invalid_pixels_do_not_count():
    label = line(30)
    label[:, :20] = 255
    result = score(ToleranceBoundaryF(tolerance=0.02), np.maximum(line(30), line(10)), label)
    assert result["precision"] == pytest.approx(100)


@given(cut=st.integers(0, 4))
@settings(max_examples=5, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(cut):
    draw = np.random.default_rng(1)
    prediction = torch.tensor(np.stack([ndimage.gaussian_filter(draw.random((30, 30)), 1) for _ in range(4)]))
    label = torch.tensor(draw.random((4, 30, 30)) < 0.05)
    valid = torch.tensor(draw.random((4, 30, 30)) < 0.9)
    whole, parts = ToleranceBoundaryF(0.03), ToleranceBoundaryF(0.03)
    whole.update(prediction, label, valid)
    parts.update(prediction[:cut], label[:cut], valid[:cut])
    parts.update(prediction[cut:], label[cut:], valid[cut:])
    assert parts.compute() == whole.compute()
