from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.kinds.palette import palette
from mtlsi.page import results
from mtlsi.page.results import DOWNLOADS, Result, Results, shown_size

NAMES = ("wall", "floor", "<b>lamp</b>")


def result(height=30, width=40):
    numbers = np.random.default_rng(0)
    normals = numbers.normal(size=(height, width, 3)).astype(np.float32)
    prediction = {
        "semseg": numbers.integers(0, 3, (height, width), np.uint8),
        "depth": numbers.uniform(1, 5, (height, width)).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=2, keepdims=True),
        "boundary": numbers.uniform(0, 1, (height, width)).astype(np.float32),
    }
    image = numbers.integers(0, 256, (height, width, 3), np.uint8)
    return Result(image, prediction, "holiday", 35.0, {"semseg": NAMES})


def described(one, task):
    return next(entry for entry in one.description()["tasks"] if entry["name"] == task)


def values_of(one, task):
    """What the page reads from the bytes that it is sent."""
    entry = described(one, task)
    raw = np.frombuffer(one.values(task), np.dtype(entry["type"]).newbyteorder("<"))
    columns, rows = one.description()["grid"]
    return raw.reshape(rows, columns, entry["channels"]) / (entry["steps"] or 1)


def test_the_values_sent_are_the_predictions():
    one = result()
    np.testing.assert_array_equal(values_of(one, "semseg")[..., 0], one.prediction["semseg"])
    np.testing.assert_array_equal(values_of(one, "depth")[..., 0], one.prediction["depth"])
    np.testing.assert_allclose(values_of(one, "normals"), one.prediction["normals"], atol=5.1e-5)
    np.testing.assert_allclose(values_of(one, "boundary")[..., 0], one.prediction["boundary"], atol=5.1e-5)


def test_a_large_result_is_shown_at_some_of_its_pixels(monkeypatch):
    monkeypatch.setattr(results, "SHOWN_PIXELS", 500)
    one = result(30, 80)
    columns, rows = one.description()["grid"]
    assert (rows, columns) == shown_size((30, 80))
    assert rows * columns <= 500 < 1.2 * rows * columns
    values = values_of(one, "depth")[..., 0]
    for row in range(rows):
        for column in range(columns):  # the pixel at the middle of each cell
            y, x = int((row + 0.5) * 30 / rows), int((column + 0.5) * 80 / columns)
            assert values[row, column] == one.prediction["depth"][y, x]


def test_drawings_and_legends_have_the_colours_of_every_other_drawing():
    one = result()
    drawn = np.asarray(Image.open(io.BytesIO(one.drawing("semseg"))))
    np.testing.assert_array_equal(drawn, np.asarray(palette(3), np.uint8)[one.prediction["semseg"]])
    by_name = {name: colour for colour, name in described(one, "semseg")["swatches"]}
    assert set(by_name) == set(NAMES)
    assert by_name["floor"] == "#{:02x}{:02x}{:02x}".format(*palette(3)[1])
    depth = np.asarray(Image.open(io.BytesIO(one.drawing("depth"))))
    np.testing.assert_array_equal(depth, kinds.of("depth").colours(one.prediction["depth"]))
    assert [mark[-2:] for mark in described(one, "depth")["marks"]] == [" m"] * 5
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(one.photo()))), one.image)


def test_downloads_are_exact():
    one = result()
    assert set(DOWNLOADS) == {"arrays.npz", "panel.png", "points.ply", "points.glb"}
    with np.load(io.BytesIO(one.arrays())) as arrays:
        assert list(arrays) == list(one.prediction)
        for task, array in one.prediction.items():
            np.testing.assert_array_equal(arrays[task], array)
            assert arrays[task].dtype == array.dtype
    assert Image.open(io.BytesIO(one.panel())).width > 1000
    ply = DOWNLOADS["points.ply"][2](one)
    assert ply.startswith(b"ply\n")
    count = int(ply.split(b"element vertex ")[1].split(b"\n")[0])
    assert len(ply.split(b"end_header\n", 1)[1]) == 15 * count > 0
    assert struct.unpack("<4sII", DOWNLOADS["points.glb"][2](one)[:12])[0] == b"glTF"


def test_the_cloud_that_turns_is_bounded(monkeypatch):
    monkeypatch.setattr(results, "CLOUD_POINTS", 100)
    one = result()
    prediction = {"depth": np.full((30, 40), 2, np.float32)}
    flat = Result(one.image, prediction, "flat", 35.0)
    content = flat.turning_cloud()
    assert content.count(b'"count": ') == 2
    assert 0 < int(content.split(b'"count": ')[1].split(b",")[0]) <= 100
    # the same field of view, whatever the number of points
    assert flat.cloud_focal_px(100) * flat.step(100) == pytest.approx(35)
    assert flat.cloud_focal_px() == 35


def test_without_depth_there_is_no_cloud_and_it_says_why():
    one = result()
    without = Result(one.image, {"semseg": one.prediction["semseg"]}, "x", 35.0, one.classes)
    with pytest.raises(MistakeError, match="no depth was predicted"):
        without.turning_cloud()


def test_results_are_kept_by_names_that_cannot_be_guessed_and_the_oldest_go():
    kept, one = Results(most=3), result()
    names = [kept.keep(one) for _ in range(4)]
    assert len(set(names)) == 4
    assert all(len(name) >= 20 for name in names)
    assert kept.find(names[1]) is one
    with pytest.raises(MistakeError, match="no longer kept"):
        kept.find(names[0])
    kept.keep(one)  # names[1] was asked for last
    assert kept.find(names[1]) is one
    with pytest.raises(MistakeError, match="no longer kept"):
        kept.find(names[2])


def test_results_are_kept_within_bounds_of_memory():
    one = result()
    kept = Results(most=100, most_bytes=int(2.5 * one.num_bytes))
    names = [kept.keep(one) for _ in range(3)]
    assert [name for name in names if name in found(kept, names)] == names[1:]
    small = Results(most_bytes=1)
    assert small.find(small.keep(one)) is one  # the newest stays


def found(kept, names):
    there = []
    for name in names:
        try:
            kept.find(name)
        except MistakeError:
            continue
        there.append(name)
    return there
