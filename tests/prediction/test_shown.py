from __future__ import annotations

import pytest

from mtlsi.config import RESIZES
from mtlsi.data.transforms import scales
from mtlsi.model.backbone import STRIDES
from mtlsi.prediction.shown import MULTIPLE, Shown


def test_a_photo_is_shown_at_the_working_sizes_area_in_its_own_shape():
    for height, width in [(480, 640), (640, 480), (4000, 6000), (50, 50)]:
        h, w = Shown((448, 576)).fit((height, width))
        assert h * w == pytest.approx(448 * 576, rel=0.01)
        assert h / w == pytest.approx(height / width, rel=0.01)
    assert Shown((448, 576)).fit((1, 10_000)) == (1, 4 * 576)
    assert Shown((448, 576)).fit((3, 2)) == (624, 416)
    assert STRIDES[0] == MULTIPLE


@pytest.mark.parametrize("size_hw", [(480, 640), (640, 480), (240, 640), (90, 90)])
def test_a_photo_is_shown_as_large_as_training_shows_it(size_hw):
    """One factor for both sides where the shape is kept; where it is not, the geometric mean of training's two."""
    for resize in RESIZES:
        down, right = scales(size_hw, (336, 448), resize)
        assert Shown((336, 448), resize).scale(size_hw) == pytest.approx((down * right) ** 0.5)
    height, width = Shown((336, 448), "keep_ratio").fit(size_hw)
    assert max(height / 336, width / 448) == 1


def test_the_share_of_the_size_seen_in_training():
    assert Shown((168, 224)).share((480, 640), (336, 448)) == pytest.approx(0.5)
    assert Shown((336, 448)).share((500, 70), (336, 448)) == 1
    assert Shown((64, 128)).share((500, 700), (64, 32)) == pytest.approx(2)  # by the areas
    for working_size in ((100, 100), (72, 200)):  # in which a photo of 72x100 is shown as it is
        assert Shown(working_size, "keep_ratio").share((72, 100), (36, 50)) == pytest.approx(2)
    assert Shown((100, 100), "keep_ratio").share((100, 72), (36, 50)) == pytest.approx(1 / 0.36)
