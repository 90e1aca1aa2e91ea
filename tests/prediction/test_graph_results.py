from __future__ import annotations

import re

import numpy as np
import pytest

from mtlsi.errors import MistakeError
from mtlsi.prediction.graph_results import checked_result
from mtlsi.tasks import Task, register_task

CLASSES = {"semseg": ("wall", "floor", "lamp")}
SIZE = (4, 6)


def full(value, dtype=np.float32, shape=(1, *SIZE)):
    return np.full(shape, value, dtype)


def test_what_export_writes_is_let_through_unchanged():
    register_task(Task("albedo_rgb", kind="value", channels=3))
    for task, result in {
        "semseg": full(2, np.uint8),
        "depth": full(-1.5),
        "boundary": full(1.0),
        "normals": full(-1.0, shape=(1, *SIZE, 3)),
        "albedo_rgb": full(1e9, shape=(1, *SIZE, 3)),
    }.items():
        checked = checked_result(task, result, SIZE, CLASSES)
        assert checked.dtype == result.dtype
        np.testing.assert_array_equal(checked, result[0])


def test_other_floating_types_become_float32():
    for dtype in (np.float16, np.float64):
        assert checked_result("depth", full(2, dtype), SIZE, CLASSES).dtype == np.float32


def test_pixels_without_a_class_are_let_through():
    for value, dtype in ((255, np.uint8), (65535, np.int32)):
        assert (checked_result("semseg", full(value, dtype), SIZE, CLASSES) == value).all()


@pytest.mark.parametrize("task", ["depth", "semseg", "normals", "boundary"])
@pytest.mark.parametrize(
    "shape",
    [(), (0,), (1,), (1, 4), (1, 4, 6, 1), (1, 3, 4, 6), (1, 5, 6), (2, 4, 6), (0, 4, 6), (1, 0, 0), (1, 4, 6, 4)],
)
def test_other_shapes_are_refused(task, shape):
    dtype = np.uint8 if task == "semseg" else np.float32
    with pytest.raises(MistakeError, match=rf"{task} came as \w+ {re.escape(str(shape))}; expected \w+ \(1, 4, 6"):
        checked_result(task, full(0, dtype, shape), SIZE, CLASSES)


@pytest.mark.parametrize(
    ("task", "result", "message"),
    [
        ("depth", full(1, np.int8), r"depth came as int8 \(1, 4, 6\); expected float32 \(1, 4, 6\)"),
        ("depth", full(True, np.bool_), "depth came as bool"),
        ("depth", full("x", object), "depth came as object"),
        ("depth", [full(1.0)], "depth came as a list; expected float32"),
        ("depth", [{1: 2.0}], "depth came as a list"),
        ("depth", None, "depth came as a NoneType"),
        ("semseg", full(1.0), "semseg came as float32 .*; expected uint8"),
        ("semseg", full(-3, np.int8), "semseg came as int8"),
        ("semseg", full(1, np.int64), "semseg came as int64"),
        ("semseg", full(-1, np.int32), r"semseg came as classes -1\.\.0; expected 0\.\.2"),
        ("semseg", full(3, np.uint8), r"semseg came as classes 0\.\.3; expected 0\.\.2"),
        ("semseg", full(2**31 - 1, np.int32), "semseg came as classes"),
        ("depth", full(np.nan), "depth is not finite"),
        ("depth", full(-np.inf), "depth is not finite"),
        ("depth", full(3e38), r"depth came as 3e\+38\.\.3e\+38; expected -1e\+06\.\.1e\+06"),
        ("depth", full(1e308, np.float64), "depth came as 1e"),
        ("boundary", full(2.0), r"boundary came as 2\.\.2; expected 0\.\.1"),
        ("boundary", full(-0.5), "boundary came as -0.5"),
        ("normals", full(7.0, shape=(1, 4, 6, 3)), r"normals came as 7\.\.7; expected -1\.\.1"),
    ],
)
def test_other_types_and_numbers_are_refused(task, result, message):
    with pytest.raises(MistakeError, match=message):
        checked_result(task, result, SIZE, CLASSES)
