"""benchmarks/flicker.py: what its columns are."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mtlsi.data.scenes.path import ScenePath

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "flicker.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flicker", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flicker"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def maps(size_hw, seed=0):
    draw = np.random.default_rng(seed)
    normals = draw.normal(size=(*size_hw, 3))
    return {
        "semseg": draw.integers(0, 3, size_hw).astype(np.uint8),
        "depth": draw.uniform(1, 4, size_hw),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def test_flicker_equals_a_naive_loop(script):
    now, then, draw = maps((5, 7)), maps((5, 7), seed=1), np.random.default_rng(2)
    columns, rows = draw.uniform(0, 6, (5, 7)), draw.uniform(0, 4, (5, 7))
    visible, ratio = draw.random((5, 7)) < 0.7, draw.uniform(0.8, 1.2, (5, 7))
    cosine, sine = math.cos(0.3), math.sin(0.3)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    found = script.flicker(now, then, script.Before(columns, rows, visible, ratio, turn))
    expected = {task: [] for task in now}
    for v, u in zip(*np.nonzero(visible), strict=True):
        x, y = float(columns[v, u]), float(rows[v, u])
        corners = [
            (row, column, (1 - abs(y - row)) * (1 - abs(x - column)))
            for row in {math.floor(y), math.ceil(y)}
            for column in {math.floor(x), math.ceil(x)}
        ]
        depth = sum(weight * then["depth"][row, column] for row, column, weight in corners) * ratio[v, u]
        expected["depth"].append(abs(now["depth"][v, u] - depth) / ((now["depth"][v, u] + depth) / 2))
        normal = turn @ sum(weight * then["normals"][row, column] for row, column, weight in corners)
        cosine = now["normals"][v, u] @ normal / np.linalg.norm(normal)
        expected["normals"].append(math.degrees(math.acos(cosine)))
        expected["semseg"].append(now["semseg"][v, u] != then["semseg"][round(y), round(x)])
    for task, values in expected.items():
        np.testing.assert_allclose(found[task], values, atol=1e-4, err_msg=task)


@pytest.mark.parametrize("motion", ["pan", "dolly"])
def test_exact_labels_hardly_flicker_and_are_not_wrong(script, motion):
    clip = script.scene_clip(ScenePath(5, motion=motion, size_hw=(60, 80)), 4)
    sums = script.Sums()
    script.measure(clip, lambda frame: frame.labels, sums)
    assert script.mean(sums.changes["depth"]) < 0.001
    assert script.mean(sums.changes["normals"]) < 4
    assert sums.row().endswith("| 0.00 % | 0.000 | 100.00 | 0.00")
    assert 0.8 < np.mean([frame.before.visible.mean() for frame in clip[1:]]) < 1


def test_what_stands_still_while_the_camera_turns_flickers(script):
    clip = script.scene_clip(ScenePath(5, motion="pan", size_hw=(60, 80)), 4)
    sums = script.Sums()
    script.measure(clip, lambda _: clip[0].labels, sums)
    assert script.mean(sums.changes["depth"]) > 0.003
    assert script.mean(sums.changes["semseg"]) > 0.01


def test_depth_that_breathes_flickers_by_as_much(script):
    clip = script.scene_clip(ScenePath(5, motion="dolly", size_hw=(60, 80)), 4)
    scale = iter((1.0, 1.1, 1.0, 1.1))

    def predict(frame):
        return {**frame.labels, "depth": frame.labels["depth"] * next(scale)}

    sums = script.Sums()
    script.measure(clip, predict, sums)
    assert script.mean(sums.changes["depth"]) == pytest.approx(0.1 / 1.05, rel=0.01)
    truth = np.concatenate([frame.labels["depth"].ravel() for frame in clip[1::2]]).astype(float)
    assert script.mean(sums.squares) == pytest.approx(0.01 * (truth**2).mean() / 2, rel=1e-4)


def test_a_photo_is_panned_under_a_window(script):
    labels = maps((6, 20))
    image = np.random.default_rng(3).integers(0, 256, (6, 20, 3), dtype=np.uint8)
    clip = script.photo_clip(image, labels, 4)
    assert [frame.image.shape for frame in clip] == [(6, 14, 3)] * 4
    np.testing.assert_array_equal(clip[3].image, image[:, 6:])
    sums = script.Sums()
    script.measure(clip, lambda frame: frame.labels, sums)
    assert sums.row().startswith("0.00 % | 0.00° | 0.00 % | 0.000 | 100.00")
    assert clip[1].before.visible.mean() == pytest.approx(12 / 14)
