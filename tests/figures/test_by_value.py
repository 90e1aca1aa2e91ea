"""Errors in bins of the label, against every number taken by itself."""

from __future__ import annotations

import numpy as np
import pytest

from mtlsi.figures.by_value import MOST_SHOWN, ErrorsByValue


def pairs(num, low, high, seed=0):
    draw = np.random.default_rng(seed)
    labelled = draw.uniform(low, high, num).astype(np.float32)
    return (labelled + draw.normal(0, 0.3, num)).astype(np.float32), labelled


def assert_as_one_by_one(bins, predicted, labelled):
    """Every figure of every bin from the numbers that lie in it; the bins at the ends hold all beyond."""
    predicted, labelled = predicted.astype(np.float64), labelled.astype(np.float64)
    where = np.clip(np.searchsorted(bins.edges, labelled, side="right") - 1, 0, len(bins.pixels) - 1)
    assert bins.pixels.sum() == len(labelled)
    for i in range(len(bins.pixels)):
        p, y = predicted[where == i], labelled[where == i]
        assert bins.pixels[i] == len(y)
        if not len(y):
            assert np.isnan([bins.rmse[i], bins.mae[i], bins.abs_rel[i]]).all()
            continue
        np.testing.assert_allclose(bins.rmse[i], np.sqrt(np.mean((p - y) ** 2)), rtol=1e-9)
        np.testing.assert_allclose(bins.mae[i], np.abs(p - y).mean(), rtol=1e-9)
        if (y != 0).any():
            relative = np.abs(p - y)[y != 0] / np.abs(y[y != 0])
            np.testing.assert_allclose(bins.abs_rel[i], relative.mean(), rtol=1e-9)


@pytest.mark.parametrize(
    ("exponent", "ranges"),
    [
        (-7, [(0.5, 10)]),
        (-7, [(1, 1.1), (50, 80), (0.4, 3)]),
        (None, [(0, 1), (-700, 20), (1e4, 1.1e4)]),
        (None, [(-3, -2)]),
    ],
    ids=["a room", "images of other ranges", "numbers of any range", "below zero"],
)
def test_bins_hold_what_lies_in_them(exponent, ranges):
    errors, seen = ErrorsByValue(exponent), []
    for seed, (low, high) in enumerate(ranges):
        seen.append(pairs(3000, low, high, seed))
        errors.update(*seen[-1])
    bins = errors.bins()
    assert 8 <= len(bins.pixels) <= MOST_SHOWN
    widths = np.diff(bins.edges)
    assert (widths == widths[0]).all()
    assert np.log2(widths[0]) == round(np.log2(widths[0]))
    assert_as_one_by_one(bins, *(np.concatenate(part) for part in zip(*seen, strict=True)))


def test_one_number_far_away_leaves_the_bins_as_they_are():
    predicted, labelled = pairs(5000, 1, 9)
    errors = ErrorsByValue(-7)
    errors.update(predicted, labelled)
    before = errors.bins()
    errors.update(np.array([1.0]), np.array([1e30]))
    after = errors.bins()
    np.testing.assert_array_equal(after.edges, before.edges)
    np.testing.assert_array_equal(after.pixels[:-1], before.pixels[:-1])
    assert after.pixels[-1] == before.pixels[-1] + 1


def test_the_order_of_images_does_not_matter():
    images = [pairs(500, low, high, seed) for seed, (low, high) in enumerate([(0.5, 4), (2, 60), (30, 900)])]
    found = []
    for order in (images, images[::-1]):
        errors = ErrorsByValue(-7)
        for image in order:
            errors.update(*image)
        found.append(errors.bins().record())
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=1e-9)


def test_no_label_no_bins_and_one_label_one_bin():
    errors = ErrorsByValue()
    assert errors.bins() is None
    errors.update(np.empty(0), np.empty(0))
    assert errors.bins() is None
    errors.update(np.full(4, 3.5), np.full(4, 2.0))
    bins = errors.bins()
    assert (bins.pixels.tolist(), bins.rmse.tolist(), bins.abs_rel.tolist()) == ([4], [1.5], [0.75])
    assert bins.edges[0] <= 2 < bins.edges[1]
    zero = ErrorsByValue()
    zero.update(np.ones(3), np.zeros(3))
    assert np.isnan(zero.bins().abs_rel).all()
