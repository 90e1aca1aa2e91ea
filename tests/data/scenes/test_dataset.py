from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from mtlsi import kinds
from mtlsi.data.scenes import raycast
from mtlsi.data.scenes.dataset import CLASS_NAMES, LABEL_SETS, Scenes, outlines, render_scene, scene_intrinsics
from mtlsi.data.scenes.geometry import gather, meet
from mtlsi.data.scenes.layout import SURFACES, build
from mtlsi.data.scenes.raycast import blocked, cast
from mtlsi.data.scenes.shapes import Dice
from mtlsi.errors import MistakeError
from mtlsi.tasks import NYUD40, PARTS7, PASCAL21, TASKS

SIZE = (120, 160)


def _digest(sample):
    return hashlib.sha256(b"".join(sample[name].tobytes() for name in sorted(sample))).hexdigest()


def _hits_of_solid(solid, origin, direction):
    """(distance, outward normal) wherever a line crosses the surface of a solid, by textbook quadratics in float64."""
    axes, half = np.array(solid.axes), np.array(solid.half)
    o, d = axes @ (origin - np.array(solid.centre)), axes @ direction
    hits = []
    if solid.shape == "box":
        for axis in range(3):
            for side in (-1.0, 1.0):
                t = (side * half[axis] - o[axis]) / d[axis]
                others = [other for other in range(3) if other != axis]
                if all(abs(o[other] + t * d[other]) <= half[other] for other in others):
                    hits.append((t, side * np.eye(3)[axis]))
    else:
        tall = half[1] * solid.stretch if solid.shape == "capsule" else half[1]
        weights = 1 / half**2
        if solid.shape != "ellipsoid":
            weights[1] = 0
        for t in _roots(o, d, weights):
            y = o[1] + t * d[1]
            if solid.shape == "ellipsoid" or abs(y) <= tall:
                hits.append((t, weights * (o + t * d)))
        for side in (-1.0, 1.0):
            top = np.array([0.0, side * tall, 0.0])
            if solid.shape == "cylinder":
                t = (top[1] - o[1]) / d[1]
                if np.sum(weights * (o + t * d) ** 2) <= 1:
                    hits.append((t, side * np.eye(3)[1]))
            elif solid.shape == "capsule":
                for t in _roots(o - top, d, 1 / half**2):
                    if side * (o[1] + t * d[1]) >= tall:
                        hits.append((t, o + t * d - top))
    return [(t, axes.T @ (n / np.linalg.norm(n))) for t, n in hits]


def _roots(o, d, weights):
    a, b, c = np.sum(weights * d * d), 2 * np.sum(weights * o * d), np.sum(weights * o * o) - 1
    root = b * b - 4 * a * c
    return [] if root < 0 else [(-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)]


def _first_hit(scene, origin, direction):
    """Depth, instance and normal of the first hit on a ray, one solid after the other."""
    hits = []
    for axis in range(3):
        for high in (0, 1):
            t = (high * scene.size[axis] - origin[axis]) / direction[axis]
            if t > 0:
                hits.append((t, 2 * axis + high, (1 - 2 * high) * np.eye(3)[axis]))
    hits = [min(hits, key=lambda hit: hit[0])]
    for instance, item in enumerate(scene.items, len(SURFACES)):
        for solid in item.solids:
            hits += [(t, instance, normal) for t, normal in _hits_of_solid(solid, origin, direction) if t > 0]
    return min(hits, key=lambda hit: hit[0])


@pytest.mark.parametrize("index", [3, 6])
def test_labels_match_a_naive_float64_ray_caster(index):
    sample = render_scene(index, size_hw=SIZE, label_set="all")
    scene = build(Dice(0, index))
    fx, fy, cx, cy = scene_intrinsics(index, size_hw=SIZE)
    axes = np.array((scene.camera.right, scene.camera.up, scene.camera.back))
    kinds = [*SURFACES, *(item.kind for item in scene.items)]
    agree, angles = [], []
    for v, u in np.random.default_rng(index).integers((0, 0), SIZE, (150, 2)):
        ray = axes.T @ np.array([(u - cx) / fx, (cy - v) / fy, -1.0])
        depth, instance, normal = _first_hit(scene, np.array(scene.camera.position), ray)
        same = NYUD40[sample["semseg"][v, u]] == CLASS_NAMES[kinds[instance]][0]
        agree.append(same and abs(sample["depth"][v, u] - depth) < 1e-4 * depth)
        angles.append(np.degrees(np.arccos(np.clip(sample["normals"][:, v, u] @ (axes @ normal), -1, 1))))
    assert np.mean(agree) > 0.98  # a ray along an outline may fall to either side
    assert np.percentile(angles, 98) < 0.1


def test_shadows_match_a_naive_float64_ray_caster():
    scene = build(Dice(0, 1))
    geometry = gather(scene)
    hits = cast(scene, geometry, SIZE)
    light = np.array(scene.lights[0].position)
    solids = [solid for item in scene.items if item.casts_shadow for solid in item.solids]
    pixels = np.random.default_rng(0).integers(0, hits.depth.size, 250)
    hidden = blocked(scene, geometry, scene.lights[0].position, hits, pixels)
    expected, facing = [], []
    for pixel in pixels:
        ray = hits.point[:, pixel] - light
        facing.append(ray @ hits.normal[:, pixel] < 0)
        crossings = [t for solid in solids for t, _ in _hits_of_solid(solid, light, ray)]
        expected.append(any(0 < t < 0.998 for t in crossings))
    facing, expected = np.array(facing), np.array(expected)
    assert expected[facing].any()
    assert (hidden == expected)[facing].mean() > 0.98


def test_normals_of_depth_agree_with_the_normals_inside_flat_surfaces():
    sample = render_scene(2, size_hw=SIZE)
    fx, fy, cx, cy = scene_intrinsics(2, size_hw=SIZE)
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    depth = sample["depth"].astype(np.float64)
    points = np.stack(((u - cx) / fx * depth, (cy - v) / fy * depth, -depth), -1)
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    normal = np.cross(down, across)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    wall = sample["semseg"] == NYUD40.index("wall")
    inside = np.all([np.roll(wall, shift, axis)[1:-1, 1:-1] for axis in (0, 1) for shift in (-1, 0, 1)], axis=0)
    inside &= sample["boundary"][1:-1, 1:-1] == 0
    cosine = (normal * sample["normals"][:, 1:-1, 1:-1].transpose(1, 2, 0)).sum(-1)[inside]
    assert inside.sum() > 1000
    assert np.degrees(np.arccos(np.clip(np.percentile(cosine, 5), -1, 1))) < 0.5


@pytest.mark.parametrize("index", range(0, 40, 4))
def test_labels_are_valid_and_agree_with_each_other(index):
    sample = render_scene(index, label_set="all")
    pascal = render_scene(index, label_set="pascal")
    assert sample["image"].shape == (*SIZE, 3)
    assert sample["image"].dtype == np.uint8
    for task in TASKS:
        label = sample[task]
        assert str(label.dtype) == str(kinds.of(task).label_dtype()).removeprefix("torch.")
        assert label.shape == ((3, *SIZE) if task == "normals" else SIZE)
        assert kinds.of(task).valid(label).all()
    assert sample["semseg"].max() < len(NYUD40)
    assert pascal["semseg"].max() < len(PASCAL21)
    assert sample["parsing"].max() < len(PARTS7)
    assert sample["depth"].min() > 0.3  # the camera is inside nothing
    assert np.array_equal(sample["parsing"] > 0, sample["semseg"] == NYUD40.index("person"))
    assert np.array_equal(sample["parsing"] > 0, pascal["semseg"] == PASCAL21.index("person"))
    for name in ("image", "normals", "boundary", "saliency"):
        assert np.array_equal(sample[name], pascal[name])

    normals = sample["normals"].astype(np.float64)
    assert np.allclose((normals**2).sum(0), 1, atol=1e-5)
    fx, fy, cx, cy = scene_intrinsics(index, size_hw=SIZE)
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    towards = (u - cx) / fx * normals[0] + (cy - v) / fy * normals[1] - normals[2]
    assert towards.max() < 1e-3  # every visible surface faces the camera

    people = (sample["parsing"] > 0).mean()
    if people > 0.15:
        assert sample["saliency"][sample["parsing"] == 0].mean() == 0
    assert 40 < sample["image"].mean() < 200
    assert (sample["image"] == 255).mean() < 0.2


def test_without_people_one_object_is_salient():
    empty = [s for s in (render_scene(i, label_set="all") for i in range(12)) if not s["parsing"].any()]
    assert empty
    for sample in empty:
        classes = {NYUD40[c] for c in np.unique(sample["semseg"][sample["saliency"] == 1])}
        assert len(classes) == 1
        assert not classes & {"wall", "floor", "ceiling", "door", "window", "curtain", "picture", "floor mat"}


def test_outlines_equal_a_naive_loop():
    instance = np.random.default_rng(0).integers(0, 3, (9, 7))
    expected = np.zeros((9, 7), np.uint8)
    for row in range(9):
        for column in range(7):
            for other_row, other_column in ((row, column + 1), (row + 1, column)):
                if other_row < 9 and other_column < 7:
                    expected[row, column] |= instance[row, column] != instance[other_row, other_column]
    assert np.array_equal(outlines(instance), expected)


def test_every_class_change_is_a_boundary():
    sample = render_scene(5)
    changes = outlines(sample["semseg"])
    assert np.all(sample["boundary"] >= changes)
    assert sample["boundary"].sum() > changes.sum()  # a corner between two walls is one too


def test_same_index_same_scene_in_any_process():
    code = (
        "import sys; from mtlsi.data.scenes import geometry, layout, raycast, shading, shapes;"
        "scene = layout.build(shapes.Dice(3, 7)); gathered = geometry.gather(scene);"
        "hits = raycast.cast(scene, gathered, (120, 160)); dice = shapes.Dice(3, 7, stream=1);"
        "sys.stdout.buffer.write(hits.depth.tobytes());"
        "sys.stdout.buffer.write(shading.photograph(scene, gathered, hits, dice, (120, 160)).tobytes())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    here, again = (render_scene(7, seed=3, label_set="all") for _ in range(2))
    assert here["depth"].tobytes() + here["image"].tobytes() == elsewhere
    assert _digest(here) == _digest(again)
    for other in (render_scene(7, seed=4), render_scene(8, seed=3)):
        assert not np.array_equal(other["depth"], here["depth"])
        assert not np.array_equal(other["image"], here["image"])


def test_size_sets_only_the_sampling():
    small, large = render_scene(4, size_hw=(60, 80)), render_scene(4, size_hw=(180, 240))
    centre = large["depth"][1::3, 1::3]  # pixel (v, u) of the small one is (3 v + 1, 3 u + 1) of the large one
    assert np.mean(np.isclose(small["depth"], centre, rtol=1e-4)) > 0.99
    assert np.mean(small["semseg"] == large["semseg"][1::3, 1::3]) > 0.99
    assert render_scene(4, size_hw=(33, 21))["depth"].shape == (33, 21)


def test_scenes_vary():
    samples = [render_scene(index, size_hw=(60, 80), label_set="all") for index in range(50)]
    seen = {NYUD40[c] for sample in samples for c in np.unique(sample["semseg"])}
    pascal = {
        PASCAL21[c]
        for i in range(50)
        for c in np.unique(render_scene(i, size_hw=(60, 80), label_set="pascal")["semseg"])
    }
    parts = {c for sample in samples for c in np.unique(sample["parsing"])}
    assert len(seen) >= 25
    assert len(pascal) >= 9
    assert parts == set(range(len(PARTS7)))
    assert np.std([sample["depth"].mean() for sample in samples]) > 0.3
    assert np.std([sample["image"].mean() for sample in samples]) > 5
    assert 0.4 < np.mean([sample["parsing"].any() for sample in samples]) < 0.95


def test_only_pairs_that_can_meet_are_intersected(monkeypatch):
    pairs = {"tried": 0, "all": 0}

    def counting_meet(geometry, origin, solid, ray, direction):
        pairs["tried"] += len(solid)
        pairs["all"] += direction.shape[1] * len(geometry.shape)
        return meet(geometry, origin, solid, ray, direction)

    monkeypatch.setattr(raycast, "meet", counting_meet)
    for index in range(200, 212):
        render_scene(index, size_hw=(60, 80), label_set="all")
    assert 0 < pairs["tried"] < 0.05 * pairs["all"]


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_data_set_gives_tensors(label_set):
    data = Scenes(3, seed=1, size_hw=(48, 64), label_set=label_set, first_index=10)
    sample = data[2]
    arrays = render_scene(12, seed=1, size_hw=(48, 64), label_set=label_set)
    assert set(sample) == {"image", *data.tasks}
    assert sample["image"].dtype == torch.uint8
    assert np.array_equal(sample["image"].numpy(), arrays["image"].transpose(2, 0, 1))
    for task in data.tasks:
        assert np.array_equal(sample[task].numpy(), arrays[task])
    assert set(data.classes) == {task for task in data.tasks if TASKS[task].channels is None}
    assert len({data.name(i) for i in range(3)}) == len(data) == 3
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            data[outside]


def test_an_item_is_rendered_at_any_zoom():
    data = Scenes(2, seed=1, size_hw=(40, 60), tasks=("depth",))
    arrays = render_scene(1, seed=1, size_hw=(50, 75))
    larger = data.at_zoom(1, 1.25)
    assert set(larger) == {"image", "depth"}
    assert np.array_equal(larger["image"].numpy(), arrays["image"].transpose(2, 0, 1))
    assert np.array_equal(larger["depth"].numpy(), arrays["depth"])  # the room's own
    assert data.camera == Scenes(2, size_hw=(40, 60)).camera
    assert data.at_zoom(0, 0.51)["depth"].shape == (20, 31)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"label_set": "coco"}, "coco"),
        ({"size_hw": (1, 9)}, "size"),
        ({"seed": -1}, "seed"),
        ({"first_index": -2}, "-2"),
    ],
)
def test_mistakes_are_named(arguments, word):
    with pytest.raises(MistakeError, match=word):
        Scenes(2, **arguments)
