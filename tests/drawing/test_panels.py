from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mtlsi import kinds
from mtlsi.drawing.panels import _font, _shorten, compare_panel, draw_task, panel, rows_panel
from mtlsi.errors import MistakeError
from mtlsi.kinds.colouring import UNKNOWN
from mtlsi.kinds.palette import palette
from mtlsi.tasks import TASK_SETS

CLASSES = TASK_SETS["pascal"].classes


def scene(height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(height, width, 3)).astype(np.float32)
    return {
        "semseg": rng.integers(0, 21, (height, width)).astype(np.uint8),
        "parsing": rng.integers(0, 7, (height, width)).astype(np.uint8),
        "saliency": rng.random((height, width)).astype(np.float32),
        "depth": rng.uniform(1, 9, (height, width)).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "boundary": rng.random((height, width)).astype(np.float32),
    }


def labels(height: int, width: int) -> dict[str, np.ndarray]:
    maps = scene(height, width)
    whole = {task: (maps[task] > 0.5).astype(np.uint8) for task in ("saliency", "boundary")}
    truth = {**maps, **whole, "normals": maps["normals"].transpose(2, 0, 1).copy()}
    for task, invalid in {"semseg": 255, "parsing": 255, "saliency": 255, "depth": 0, "boundary": 255}.items():
        truth[task][0, 0] = invalid
    truth["normals"][:, 0, 0] = 0
    return truth


def holds(sheet: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((sheet == np.asarray(colour)).all(-1).any())


def test_classes_take_the_palettes_colours():
    maps = np.array([[0, 5], [20, 255]], np.uint8)
    table = palette(21)
    np.testing.assert_array_equal(kinds.of("semseg").colours(maps), [[table[0], table[5]], [table[20], UNKNOWN]])


def test_normals_become_red_green_blue_in_either_layout():
    axes = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, 0, 0]]], np.float32)
    expected = [[[255, 128, 128], [128, 255, 128], [128, 128, 255], [0, 128, 128], list(UNKNOWN)]]
    np.testing.assert_array_equal(kinds.of("normals").colours(axes), expected)
    np.testing.assert_array_equal(kinds.of("normals").colours(axes.transpose(2, 0, 1)), expected)


def test_strength_is_white_on_black_for_predictions_and_labels():
    np.testing.assert_array_equal(
        kinds.of("boundary").colours(np.array([[0, 0.5, 1]], np.float32))[0, :, 0], [0, 128, 255]
    )
    seen = kinds.of("saliency").colours(np.array([[0, 1, 255]], np.uint8))
    np.testing.assert_array_equal(seen, [[[0, 0, 0], [255, 255, 255], UNKNOWN]])


def test_depth_runs_from_blue_to_red_and_missing_metres_stay_out_of_the_scale():
    metres = np.linspace(2, 6, 1000, dtype=np.float32)[None]
    holes = np.concatenate([metres, np.array([[0, np.nan]], np.float32)], 1)
    assert kinds.of("depth").limits(holes) == pytest.approx((2.02, 5.98), abs=0.01)
    seen = kinds.of("depth").colours(holes).astype(int)
    assert seen[0, 150, 2] > seen[0, 150, 0] + 50
    assert seen[0, 850, 0] > seen[0, 850, 2] + 50
    np.testing.assert_array_equal(seen[0, 1000:], [UNKNOWN, UNKNOWN])


@pytest.mark.parametrize("values", [[3.0], [0.0], [np.nan]])
def test_depth_without_a_range_still_has_limits(values):
    low, high = kinds.of("depth").limits(np.array([values], np.float32))
    assert 0 <= low < high


def test_a_legend_names_the_classes_present_and_no_others():
    maps = np.full((60, 80), 15, np.uint8)
    maps[:20] = 7
    plain, table = draw_task("semseg", maps, CLASSES["semseg"]), palette(21)
    below = plain[-40:]  # lower than the map itself
    assert holds(below, table[15])
    assert holds(below, table[7])
    assert not any(holds(below, table[i]) for i in range(1, 21) if i not in (7, 15))
    renamed = [*CLASSES["semseg"][:15], "another name", *CLASSES["semseg"][16:]]
    other = draw_task("semseg", maps, renamed)
    height = len(plain) - 40 if plain.shape == other.shape else 0
    assert height
    np.testing.assert_array_equal(plain[:height], other[:height])
    assert (plain[height:] != other[height:]).any()


def test_long_legends_unknown_indices_and_missing_names_are_drawn():
    many = np.arange(250, dtype=np.uint8).repeat(40).reshape(100, 100)
    for names in (None, (), ["a name that goes on " * 20] * 200):
        assert draw_task("semseg", many, names).shape[0] < 1000


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (7, 5), (300, 40), (1700, 900)])
def test_sheets_of_any_image_are_drawn_and_legible(size):
    image = np.zeros((*size, 3), np.uint8)
    maps = scene(*size)
    for sheet in (panel(image, maps, CLASSES), compare_panel(image, maps, labels(*size), CLASSES)):
        assert sheet.dtype == np.uint8
        assert sheet.shape[1] >= 300
        assert max(sheet.shape[:2]) < 4500
    for task, array in maps.items():
        assert 300 <= max(draw_task(task, array, CLASSES.get(task)).shape[:2]) <= 1800


def test_a_panel_shows_the_image_itself():
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, :, 0] = np.arange(640) // 4
    sheet = panel(image, {"depth": scene(480, 640)["depth"]})
    small = np.asarray(Image.fromarray(image).resize((480, 360), Image.Resampling.BILINEAR))
    found = np.lib.stride_tricks.sliding_window_view(sheet[60:75, 100:180], (4, 40, 3))
    assert (np.abs(found.astype(int) - small[100:104, 100:140]).max((-3, -2, -1)) <= 1).any()


def test_both_rows_of_a_comparison_share_the_truths_metres():
    truth = np.linspace(1, 2, 4800, dtype=np.float32).reshape(60, 80)
    image = np.zeros((60, 80, 3), np.uint8)
    equal = compare_panel(image, {"depth": truth}, {"depth": truth})
    wrong = compare_panel(image, {"depth": truth * 3}, {"depth": truth})
    half = equal.shape[0] // 2
    assert equal.shape == wrong.shape
    np.testing.assert_array_equal(equal[half + 60 :], wrong[half + 60 :])
    assert (equal[:half] != wrong[:half]).any()
    with pytest.raises(MistakeError, match="nothing to compare"):
        compare_panel(image, {"depth": truth}, {"semseg": np.zeros((60, 80), np.uint8)})


def test_a_row_without_a_task_is_blank_there_and_all_rows_share_the_scale():
    image = np.zeros((48, 64, 3), np.uint8)
    depth = np.linspace(1, 5, 48 * 64, dtype=np.float32).reshape(48, 64)
    truth = {"depth": depth, "boundary": np.zeros((48, 64), np.float32)}
    rows = {
        "truth": truth,
        "one": {"depth": depth},
        "two": {"boundary": truth["boundary"], "depth": np.full_like(depth, 5)},
    }
    sheet = rows_panel(image, rows, scale_of="truth")
    height, width = sheet.shape[0] // 3, sheet.shape[1] // 3
    cells = [[sheet[r * height : (r + 1) * height, c * width : (c + 1) * width] for c in range(3)] for r in range(3)]
    blank = [[bool((cell[60:-60, 60:-60] == 255).all()) for cell in row] for row in cells]
    assert blank == [[False, False, False], [True, False, True], [True, False, False]]
    far = cells[2][1][height // 3, width // 2]  # the colour of the truth's largest depth, everywhere
    first = cells[0][1][60:-60, 60:-60].reshape(-1, 3)
    assert (np.abs(first.astype(int) - far).max(-1) < 12).any()


@pytest.mark.parametrize("width", [-5, 0, 12, 40, 250, 10_000])
def test_a_long_text_keeps_as_many_letters_as_fit(width):
    for text in ("", "wall", "a name that goes on " * 10, "i" * 200):
        fitting = [text[:count] + "…" for count in range(len(text)) if _font(13).getlength(text[:count] + "…") <= width]
        whole = _font(13).getlength(text) <= width
        assert _shorten(text, 13, width) == (text if whole else fitting[-1] if fitting else "…")


def test_a_very_long_text_is_shortened_at_once(monkeypatch):
    class Counting:
        letters = 0

        def getlength(self, text):
            Counting.letters += len(text)
            return 8 * len(text)

    monkeypatch.setattr("mtlsi.drawing.panels._font", lambda *_: Counting())
    assert _shorten("w" * 20_000, 13, 250) == "w" * 30 + "…"
    assert Counting.letters < 100_000  # one letter after the other: 200 million
