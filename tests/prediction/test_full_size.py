"""Predictions at the image's size, against the whole map resized in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mtlsi import kinds
from mtlsi.prediction import full_size

SIZES = [(37, 41), (13, 300), (14, 18), (90, 16)]
"""Each of more pixels than the map of 13x17 has places, the last narrower than it."""


def scores(smooth: bool, channels: int = 5) -> torch.Tensor:
    """(1 c 13 17): as many regions as places, or few."""
    generator = torch.Generator().manual_seed(0)
    if not smooth:
        return torch.randn(1, channels, 13, 17, generator=generator)
    return F.interpolate(torch.randn(1, channels, 2, 3, generator=generator), (13, 17), mode="bicubic")


def whole(task: str, raw: torch.Tensor, size_hw: tuple[int, int]) -> np.ndarray:
    return np.concatenate(list(full_size.bands(task, raw, size_hw)))


@pytest.mark.parametrize("band", [1, 7 * 5 * 41, 10**9])
@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("smooth", [True, False])
def test_bands_equal_one_resize_of_all_scores(band, size_hw, smooth, monkeypatch):
    monkeypatch.setattr(full_size, "BAND_VALUES", band)
    raw = scores(smooth)
    changes = [(raw.argmax(1).diff(dim=axis) != 0).double().mean() for axis in (1, 2)]
    assert (sum(changes) < full_size.MOST_CHANGES) == smooth
    exact = F.interpolate(raw.double(), size_hw, mode="bilinear")
    np.testing.assert_array_equal(whole("semseg", raw, size_hw), exact.argmax(1)[0].numpy())
    unit = exact[:, :3] / exact[:, :3].norm(dim=1, keepdim=True)
    np.testing.assert_allclose(whole("normals", raw[:, :3], size_hw), unit[0].permute(1, 2, 0), atol=1e-4)


@pytest.mark.parametrize("smooth", [True, False])
def test_fewer_pixels_than_places_are_antialiased(smooth):
    raw = scores(smooth)
    exact = F.interpolate(raw.double(), (6, 9), mode="bilinear", antialias=True)
    np.testing.assert_array_equal(whole("semseg", raw, (6, 9)), exact.argmax(1)[0].numpy())


@pytest.mark.parametrize(("shape", "size_hw"), [((1, 1), (7, 9)), ((1, 6), (5, 40)), ((6, 1), (40, 5))])
def test_a_map_of_one_row_or_column(shape, size_hw):
    raw = torch.randn(1, 5, *shape, generator=torch.Generator().manual_seed(0))
    exact = F.interpolate(raw.double(), size_hw, mode="bilinear")
    np.testing.assert_array_equal(whole("semseg", raw, size_hw), exact.argmax(1)[0].numpy())


@pytest.mark.parametrize("smooth", [True, False])
def test_no_more_values_are_decoded_at_a_time_than_a_band_has(smooth, monkeypatch):
    monkeypatch.setattr(full_size, "BAND_VALUES", 7 * 5 * 41)
    decoded, plain = [], kinds.decode
    monkeypatch.setattr(kinds, "decode", lambda task, part: (decoded.append(part.numel()), plain(task, part))[1])
    raw = scores(smooth)
    whole("semseg", raw, (37, 41))
    assert max(decoded) <= max(7 * 5 * 41, raw.numel())


def test_only_scores_between_places_of_different_classes_are_worked_out(monkeypatch):
    raw = torch.zeros(1, 5, 40, 60)
    raw[:, 2, :, :30], raw[:, 4, :, 30:] = 1, 1  # two halves
    decoded, plain = [], kinds.decode
    monkeypatch.setattr(kinds, "decode", lambda task, part: (decoded.append(part.numel()), plain(task, part))[1])
    found = whole("semseg", raw, (400, 600))
    assert (found[:, :300] == 2).all()
    assert (found[:, 300:] == 4).all()
    assert sum(decoded) < 2 * raw.numel() + 400 * 11 * 5
