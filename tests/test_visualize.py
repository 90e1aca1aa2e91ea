from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.tasks import TASK_SETS, palette
from mtlsi.visualize import UNKNOWN, colours, compare_panel, depth_limits, panel, picture, plot_curves

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
    np.testing.assert_array_equal(colours("semseg", maps), [[table[0], table[5]], [table[20], UNKNOWN]])


def test_normals_become_red_green_blue_in_either_layout():
    axes = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, 0, 0]]], np.float32)
    expected = [[[255, 128, 128], [128, 255, 128], [128, 128, 255], [0, 128, 128], list(UNKNOWN)]]
    np.testing.assert_array_equal(colours("normals", axes), expected)
    np.testing.assert_array_equal(colours("normals", axes.transpose(2, 0, 1)), expected)


def test_strength_is_white_on_black_for_predictions_and_labels():
    np.testing.assert_array_equal(colours("boundary", np.array([[0, 0.5, 1]], np.float32))[0, :, 0], [0, 128, 255])
    seen = colours("saliency", np.array([[0, 1, 255]], np.uint8))
    np.testing.assert_array_equal(seen, [[[0, 0, 0], [255, 255, 255], UNKNOWN]])


def test_depth_runs_from_blue_to_red_and_missing_metres_stay_out_of_the_scale():
    metres = np.linspace(2, 6, 1000, dtype=np.float32)[None]
    holes = np.concatenate([metres, np.array([[0, np.nan]], np.float32)], 1)
    assert depth_limits(holes) == pytest.approx((2.02, 5.98), abs=0.01)
    seen = colours("depth", holes).astype(int)
    assert seen[0, 150, 2] > seen[0, 150, 0] + 50
    assert seen[0, 850, 0] > seen[0, 850, 2] + 50
    np.testing.assert_array_equal(seen[0, 1000:], [UNKNOWN, UNKNOWN])


@pytest.mark.parametrize("values", [[3.0], [0.0], [np.nan]])
def test_depth_without_a_range_still_has_limits(values):
    low, high = depth_limits(np.array([values], np.float32))
    assert 0 <= low < high


def test_a_legend_names_the_classes_present_and_no_others():
    maps = np.full((60, 80), 15, np.uint8)
    maps[:20] = 7
    plain, table = picture("semseg", maps, CLASSES["semseg"]), palette(21)
    below = plain[-40:]  # lower than the map itself
    assert holds(below, table[15])
    assert holds(below, table[7])
    assert not any(holds(below, table[i]) for i in range(1, 21) if i not in (7, 15))
    renamed = [*CLASSES["semseg"][:15], "another name", *CLASSES["semseg"][16:]]
    other = picture("semseg", maps, renamed)
    height = len(plain) - 40 if plain.shape == other.shape else 0
    assert height
    np.testing.assert_array_equal(plain[:height], other[:height])
    assert (plain[height:] != other[height:]).any()


def test_long_legends_unknown_indices_and_missing_names_are_drawn():
    many = np.arange(250, dtype=np.uint8).repeat(40).reshape(100, 100)
    for names in (None, (), ["a name that goes on " * 20] * 200):
        assert picture("semseg", many, names).shape[0] < 1000


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (7, 5), (300, 40), (1700, 900)])
def test_sheets_of_any_picture_are_drawn_and_legible(size):
    image = np.zeros((*size, 3), np.uint8)
    maps = scene(*size)
    for sheet in (panel(image, maps, CLASSES), compare_panel(image, maps, labels(*size), CLASSES)):
        assert sheet.dtype == np.uint8
        assert sheet.shape[1] >= 300
        assert max(sheet.shape[:2]) < 4500
    for task, array in maps.items():
        assert 300 <= max(picture(task, array, CLASSES.get(task)).shape[:2]) <= 1800


def test_a_panel_shows_the_picture_itself():
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


def write_metrics(path: Path, lines: list[dict], end: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def test_curves_are_drawn_from_a_run_that_was_stopped_and_resumed(tmp_path):
    lines = [{"step": s, "loss": 5 / s, "loss/depth": 2 / s, "lr": 1e-3} for s in (1, 2, 3, 2, 3, 4)]
    scores = [{"step": 4, "val/depth/RMSE": 0.8, "val/depth/absRel": 0.2, "note": "words"}]
    drawn = plot_curves(
        write_metrics(tmp_path / "metrics.jsonl", lines + scores, '{"step": 5, "lo'), tmp_path / "a.png"
    )
    with Image.open(drawn) as image:
        seen = np.asarray(image.convert("RGB"))
    assert seen.shape[1] > 2 * seen.shape[0]  # two plots beside each other: losses, depth
    assert seen.std() > 5
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "a.png"}


def test_a_later_line_for_a_step_replaces_the_earlier(tmp_path):
    once = write_metrics(tmp_path / "once.jsonl", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}])
    again = write_metrics(
        tmp_path / "again.jsonl", [{"step": s, "loss": v} for s, v in ((1, 9.0), (2, 7.0), (1, 3.0), (2, 1.0))]
    )
    pictures = [plot_curves(path, path.with_suffix(".png")).read_bytes() for path in (once, again)]
    assert pictures[0] == pictures[1]


def test_metrics_with_nothing_to_draw_are_refused(tmp_path):
    with pytest.raises(MistakeError, match="cannot be read"):
        plot_curves(tmp_path / "missing.jsonl", tmp_path / "a.png")
    with pytest.raises(MistakeError, match="no loss and no score"):
        plot_curves(write_metrics(tmp_path / "m.jsonl", [{"step": 1, "lr": 0.1}]), tmp_path / "a.png")
