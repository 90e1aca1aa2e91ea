from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from by_colour import ByColour, predictor
from mtlsi.errors import MistakeError
from mtlsi.options.using import PredictOptions
from mtlsi.prediction import tiles
from mtlsi.prediction.files import predict_paths
from mtlsi.prediction.graph import predictor_from_command
from mtlsi.prediction.shown import Shown
from mtlsi.prediction.tiles import Grid, Mixture, TiledPredictor, compose, fitting_tiles, grid_of, smooth, weights


def tiled(given: Any = "auto", **options: Any) -> TiledPredictor:
    return TiledPredictor(ByColour(), given, device="cpu", **options)  # type: ignore[arg-type]


@pytest.fixture
def large() -> np.ndarray:
    """A smooth image with a sharp frame in it, several times the working size of ``ByColour``."""
    rows, columns = np.mgrid[:300, :400] / np.array([300, 400])[:, None, None]
    image = np.stack([255 * columns, 255 * rows, 60 + 150 * rows * columns], -1)
    image[100:130, 150:260] = (240, 20, 90)
    return image.astype(np.uint8)


# ---- where tiles are and what they weigh


@pytest.mark.parametrize(("starts", "side"), [((0,), 7), ((0, 5), 10), ((0, 3, 7, 10), 8), ((0, 2, 4, 6, 8), 6)])
def test_weights_are_those_of_a_plain_loop_and_sum_to_one(starts, side):
    found = weights(starts, side)
    for position in range(starts[-1] + side):
        reach = [max(0.0, min(position + 0.5 - start, start + side - position - 0.5)) for start in starts]
        np.testing.assert_allclose(found[:, position], np.array(reach) / sum(reach), atol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("size_hw", [(480, 640), (640, 480), (4000, 6000), (1000, 20_000), (333, 777), (3000, 40)])
def test_chosen_tiles_cover_the_image_and_fit_the_network(size_hw):
    grid = grid_of(size_hw, Shown((336, 448)), None)
    assert grid is not None
    height, width = grid.canvas_hw
    assert height / size_hw[0] == pytest.approx(width / size_hw[1], rel=0.12)  # to whole grid cells
    covered = np.zeros((height, width), bool)
    for top in grid.tops:
        for left in grid.lefts:
            covered[top : top + grid.tile_hw[0], left : left + grid.tile_hw[1]] = True
    assert covered.all()
    assert np.prod(grid.tile_hw) <= 1.1 * 336 * 448


def test_no_tiles_where_the_network_sees_all_there_is():
    for size_hw in [(336, 448), (448, 336), (100, 100), (1, 6000), (1, 1), (360, 480)]:
        assert fitting_tiles(size_hw, Shown((336, 448))) == (1, 1)


def test_huge_images_have_a_bounded_number_of_tiles():
    rows, columns = fitting_tiles((1000, 1_000_000), Shown((336, 448)))
    assert 1 < rows * columns <= tiles.MOST_TILES


# ---- what comes out


def test_a_network_that_sees_single_pixels_predicts_the_same_in_tiles(large, monkeypatch):
    """Its predictions at a working size as large as the tiles' canvas are what tiles must give."""
    monkeypatch.setattr(tiles, "MIXTURES", dict.fromkeys(tiles.MIXTURES, Mixture(1)))
    found = tiled("3x3")(large)
    canvas = grid_of((300, 400), Shown((48, 64)), (3, 3)).canvas_hw  # type: ignore[union-attr]
    expected = predictor(working_size=canvas)(large)
    assert canvas == (120, 160)
    for task, array in expected.items():
        assert found[task].dtype == array.dtype
        if task == "semseg":
            assert (found[task] == array).mean() > 0.9999
        elif task == "depth":  # both take what looks 2.5 times as large for 2.5 times as near, and multiply
            np.testing.assert_allclose(found[task], array, rtol=1e-4)
        else:  # unit vectors are averaged, not raw ones
            np.testing.assert_allclose(found[task], array, atol=0.02 if task == "normals" else 1e-4)


def test_none_is_todays_prediction_exactly(large):
    for given in ("none", "1x1", (1, 1)):
        for task, array in predictor()(large).items():
            np.testing.assert_array_equal(tiled(given)(large)[task], array)
    assert tiled("none").identity == predictor().identity


def test_small_images_are_predicted_whole(photo):
    small = photo[:40, :60]
    for task, array in predictor()(small).items():
        np.testing.assert_array_equal(tiled()(small)[task], array)


def test_predictions_of_different_tiles_have_different_identities():
    assert len({tiled(given).identity for given in ("none", "auto", "2x2", "2x3")}) == 4


@pytest.mark.parametrize("size_hw", [(1, 300), (200, 3), (37, 700), (33, 33)])
def test_odd_shapes_have_their_own_size(size_hw):
    found = tiled()(np.full((*size_hw, 3), 100, np.uint8))
    assert {task: array.shape[:2] for task, array in found.items()} == dict.fromkeys(found, size_hw)
    np.testing.assert_allclose(found["depth"], 1000 / 255, rtol=1e-4)


def test_only_tasks_that_gain_from_tiles_are_looked_at_closer(large):
    one = tiled("2x2")
    np.testing.assert_array_equal(one(large, "normals")["normals"], predictor()(large, "normals")["normals"])
    seen: Any = one.model
    assert seen.seen.shape[-2:] == (48, 64)  # the whole image, and nothing after it


def test_an_image_done_with_other_tiles_is_predicted_again(large, tmp_path):
    Image.fromarray(large).save(tmp_path / "a.png")
    done = [
        predict_paths(tmp_path / "a.png", tiled(given), tmp_path / "out").written for given in ("none", "2x2", "2x2")
    ]
    assert done == [1, 1, 0]


# ---- metres


class Nearer(ByColour):
    """Metres on a ramp across what the network sees, and each time another multiple of them."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = -1

    def forward(self, images: torch.Tensor, tasks: tuple[str, ...], *, full_size: bool) -> SimpleNamespace:
        found = super().forward(images, tasks, full_size=full_size).final
        self.looks += 1
        return SimpleNamespace(final={task: raw * (1 + 0.3 * (self.looks % 4)) for task, raw in found.items()})


def test_a_ramp_of_metres_is_recovered_from_tiles_of_different_scales():
    """The whole image comes first and is right; the tiles are up to 1.9 times as far, and have the law of 2.5 to follow."""
    blue = np.broadcast_to(np.linspace(100, 250, 400), (300, 400))
    image = np.stack([blue, blue, blue], -1).round().astype(np.uint8)
    found = TiledPredictor(Nearer(), "3x4", device="cpu")(image, "depth")["depth"]  # type: ignore[arg-type]
    np.testing.assert_allclose(found, blue / 25.5, rtol=0.015)


def test_smooth_is_the_mean_of_each_part():
    values = torch.arange(48.0).view(1, 1, 6, 8)
    torch.testing.assert_close(smooth(values, 1), torch.full((1, 1, 6, 8), 23.5))
    means = values.view(1, 1, 2, 3, 2, 4).mean((3, 5))
    torch.testing.assert_close(smooth(values, 2), F.interpolate(means, (6, 8), mode="bilinear"))


def test_compose_is_a_plain_loop_over_tiles(monkeypatch):
    monkeypatch.setitem(tiles.MIXTURES, "thin", Mixture(0.25, 2))
    draws = torch.Generator().manual_seed(0)
    grid = Grid((16, 24), (0, 8, 16), (0, 16))
    whole = {"boundary": torch.randn(1, 1, 6, 9, generator=draws)}
    looks: dict[tuple[int, int], torch.Tensor] = {
        (top, left): torch.randn(1, 1, 8, 12, generator=draws) for top in grid.tops for left in grid.lefts
    }
    found = compose(whole, grid, lambda rows, columns: {"boundary": looks[rows.start, columns.start]})["boundary"]
    guide = F.interpolate(whole["boundary"], (16, 20), mode="bilinear", antialias=True)
    total, weight = torch.zeros(1, 1, 16, 20), torch.zeros(16, 20)
    for (top, left), raw in looks.items():
        part = guide[..., top // 2 : top // 2 + 8, left // 2 : left // 2 + 12]
        corrected = raw + smooth(part - raw, 2)
        for y in range(8):
            for x in range(12):
                near = min(y + 0.5, 7.5 - y) * min(x + 0.5, 11.5 - x)
                total[0, 0, top // 2 + y, left // 2 + x] += near * corrected[0, 0, y, x]
                weight[top // 2 + y, left // 2 + x] += near
    torch.testing.assert_close(found, 0.25 * total / weight + 0.75 * guide)


# ---- mistakes


@pytest.mark.parametrize(
    "given",
    [
        *("some", "3", "2x", "0x4", "2x-1", "17x16", "auto ", (2, 2, 2), (2, 2.5), 4, None),
        pytest.param("9" * 5000 + "x1", id="5000 digits"),
    ],
)
def test_what_is_no_number_of_tiles_is_refused(given):
    with pytest.raises(MistakeError, match="tiles"):
        tiled(given)


def test_tiles_of_too_few_pixels_are_refused(photo):
    with pytest.raises(MistakeError, match="8x8 tiles of an image of 96x128; expected at most 3x5"):
        tiled("8x8")(photo)
    tiled("3x5")(photo)
    with pytest.raises(MistakeError, match="expected none"):
        tiled("1x2")(photo[:5])


def test_exported_models_refuse_tiles():
    with pytest.raises(MistakeError, match=r"--tiles with model.onnx"):
        predictor_from_command(PredictOptions([Path("a.jpg")], model="model.onnx", tiles="2x2"))
