from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from mtlsi import kinds
from mtlsi.data.scenes.dataset import render_scene, scene_intrinsics
from mtlsi.data.scenes.geometry import gather
from mtlsi.data.scenes.layout import build
from mtlsi.data.scenes.moves import MOTIONS, Step, moved
from mtlsi.data.scenes.path import CLEARANCE, ScenePath, clearance, seen_from, visible_in
from mtlsi.data.scenes.shapes import Dice
from mtlsi.errors import MistakeError
from mtlsi.tasks import TASKS

SIZE = (60, 80)


def digest(sample):
    return hashlib.sha256(b"".join(sample[name].tobytes() for name in sorted(sample))).hexdigest()[:16]


@pytest.mark.parametrize(
    ("index", "seed", "size_hw", "label_set", "expected"),
    [
        (0, 0, (48, 64), "all", "29a6a21c20ac9ab1"),
        (1, 0, (48, 64), "pascal", "e35787a311d6cff8"),
        (7, 3, (60, 45), "all", "44c47e264eb11618"),
        (11, 0, (120, 160), "nyud", "2fdb64c693b65453"),
        (23, 5, (33, 21), "all", "cc7d9447668a778e"),
    ],
)
def test_scenes_look_as_they_did_before_cameras_moved(index, seed, size_hw, label_set, expected):
    assert digest(render_scene(index, seed=seed, size_hw=size_hw, label_set=label_set)) == expected


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_path_begins_with_the_scene(motion):
    path = ScenePath(5, motion=motion, seed=2, size_hw=SIZE, label_set="all")
    scene = render_scene(5, seed=2, size_hw=SIZE, label_set="all")
    assert digest(path.frame(0)) == digest(scene)
    assert path.intrinsics == scene_intrinsics(5, seed=2, size_hw=SIZE)


def test_a_frame_depends_on_its_number_alone():
    path, again = (ScenePath(5, motion="hand", size_hw=SIZE) for _ in range(2))
    later = path.frame(9)
    for number in (0, 4):
        path.frame(number)
    assert digest(later) == digest(path.frame(9)) == digest(again.frame(9))
    assert np.array_equal(path.pose(9), again.pose(9))
    others = [
        ScenePath(5, motion="hand", size_hw=SIZE, seed=1).frame(9),
        ScenePath(6, motion="hand", size_hw=SIZE).frame(9),
        ScenePath(5, motion="pan", size_hw=SIZE).frame(9),
        path.frame(10),
    ]
    assert len({digest(sample) for sample in [later, *others]}) == 5


def rotation(axis, angle):
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k


def test_a_step_turns_and_carries_the_camera_as_rotation_matrices_do():
    camera = build(Dice(0, 4)).camera
    step = Step(right=0.2, up=-0.1, ahead=0.3, yaw=0.4, pitch=-0.2, roll=0.1)
    start = np.array((camera.right, camera.up, camera.back)).T
    level = -start[:, 2] * (1, 0, 1)
    level /= np.linalg.norm(level)
    side = np.cross(level, (0, 1, 0))
    turned = rotation(np.array([0.0, 1.0, 0.0]), 0.4) @ start
    turned = rotation(turned[:, 0], -0.2) @ turned
    turned = rotation(turned[:, 2], 0.1) @ turned
    found = moved(camera, step)
    np.testing.assert_allclose(np.array((found.right, found.up, found.back)).T, turned, atol=1e-6)
    expected = np.array(camera.position) + 0.2 * side - 0.1 * np.eye(3)[1] + 0.3 * level
    np.testing.assert_allclose(found.position, expected, atol=1e-6)
    left = moved(camera, Step(yaw=0.1))
    assert np.dot(np.array(left.back) - camera.back, camera.right) > 0  # what lies ahead is now further to the left
    assert moved(camera, Step(pitch=0.1)).back[1] < camera.back[1]


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_smooth_and_keep_clear_of_everything(motion):
    for index in range(6):
        path = ScenePath(index, motion=motion)
        poses = np.array([path.pose(frame) for frame in range(0, 120)])
        assert np.allclose(poses[:, :3, :3].transpose(0, 2, 1) @ poses[:, :3, :3], np.eye(3), atol=1e-6)
        assert np.allclose(np.linalg.det(poses), 1, atol=1e-6)
        between = np.einsum("nji,njk->nik", poses[:-1, :3, :3], poses[1:, :3, :3])
        degrees = np.degrees(np.arccos(np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1)))
        steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        assert degrees.max() < 1
        assert steps.max() < 0.02
        assert max(degrees.max(), 50 * steps.max()) > 0.05  # it does move
        assert np.abs(np.diff(degrees)).max() < 0.3
        scene = build(Dice(0, index))
        geometry = gather(scene)
        keeps = [clearance(scene, geometry, tuple(place)) for place in poses[:, :3, 3]]
        assert min(keeps) > 0.9 * CLEARANCE


def test_clearance_equals_a_search_through_points_of_the_solids():
    scene = build(Dice(0, 3))
    geometry = gather(scene)
    place = (scene.size[0] / 2, 1.0, scene.size[2] / 2)
    grid = np.stack(np.meshgrid(*3 * [np.linspace(-1, 1, 41)], indexing="ij"), -1).reshape(-1, 3)
    nearest = min(min(x, size - x) for x, size in zip(place, scene.size, strict=True))
    for item in scene.items:
        for solid in item.solids:
            half = np.array(solid.half) * (1, 1 + solid.stretch, 1)
            points = np.array(solid.centre) + (grid * half) @ np.array(solid.axes)
            nearest = min(nearest, np.linalg.norm(points - place, axis=1).min())
    assert clearance(scene, geometry, place) == pytest.approx(nearest, abs=0.03)
    assert clearance(scene, geometry, scene.items[-1].solids[0].centre) == 0


def naive_pixel(path, u, v, depth, frame, other):
    """One pixel's point, by hand: into the room, into the other camera, onto its image."""
    fx, fy, cx, cy = path.intrinsics
    pose, other_pose = path.pose(frame), path.pose(other)
    ray = (u - cx) / fx * pose[:3, 0] + (cy - v) / fy * pose[:3, 1] - pose[:3, 2]
    offset = pose[:3, 3] + float(depth) * ray - other_pose[:3, 3]
    x, y, ahead = offset @ other_pose[:3, 0], offset @ other_pose[:3, 1], -offset @ other_pose[:3, 2]
    return cx + fx * x / ahead, cy - fy * y / ahead, ahead


@pytest.mark.parametrize("motion", MOTIONS)
def test_one_frame_warped_by_the_poses_is_the_other(motion):
    """Every label and the colours, point by point: naive reprojection, float64."""
    path = ScenePath(5, motion=motion, label_set="all")
    first, second = path.frame(2), path.frame(12)
    height, width = first["depth"].shape
    turn = path.pose(2)[:3, :3].T @ path.pose(12)[:3, :3]
    same = {task: [] for task in ("visible", "semseg", "parsing", "normals", "image", "still")}
    for v, u in np.random.default_rng(0).integers((0, 0), (height, width), (1500, 2)):
        x, y, depth = naive_pixel(path, u, v, second["depth"][v, u], 12, 2)
        column, row = round(x), round(y)
        if not (0 <= column < width and 0 <= row < height):
            continue
        same["visible"].append(abs(first["depth"][row, column] - depth) < 0.03 * depth)
        if not same["visible"][-1]:
            continue
        for task in ("semseg", "parsing"):
            same[task].append(first[task][row, column] == second[task][v, u])
        cosine = first["normals"][:, row, column] @ (turn @ second["normals"][:, v, u])
        same["normals"].append(cosine > math.cos(math.radians(5)))  # of round things they change within a pixel
        colours = second["image"][v, u].astype(float)
        same["image"].append(np.abs(first["image"][row, column] - colours).mean())
        same["still"].append(np.abs(first["image"][v, u] - colours).mean())
    assert len(same["visible"]) > 1000
    assert np.mean(same["visible"]) > 0.9
    assert min(np.mean(same[task]) for task in ("semseg", "parsing")) > 0.97
    assert np.mean(same["normals"]) > 0.9
    assert np.mean(same["image"]) < 8  # noise, light that falls off towards the corners, half pixels
    if motion != "dolly":
        assert np.mean(same["image"]) < 0.8 * np.mean(same["still"])


def test_seen_from_and_visible_in_equal_a_naive_loop():
    path = ScenePath(8, motion="orbit", size_hw=(18, 24))
    here, there = path.frame(30), path.frame(0)
    columns, rows, depths = seen_from(here["depth"], path.pose(30), path.pose(0), path.intrinsics)
    visible = visible_in(columns, rows, depths, there["depth"])
    expected = np.zeros((18, 24), bool)
    for v in range(18):
        for u in range(24):
            x, y, depth = naive_pixel(path, u, v, here["depth"][v, u], 30, 0)
            np.testing.assert_allclose((columns[v, u], rows[v, u], depths[v, u]), (x, y, depth), atol=1e-5)
            if 0 <= x <= 23 and 0 <= y <= 17:
                near = 0.0
                for row in {math.floor(y), math.ceil(y)}:
                    for column in {math.floor(x), math.ceil(x)}:
                        near += (1 - abs(y - row)) * (1 - abs(x - column)) / there["depth"][row, column]
                expected[v, u] = abs(depth * near - 1) < 0.02
    np.testing.assert_array_equal(visible, expected)
    assert 0.4 < visible.mean() < 1


def test_what_lies_behind_the_other_camera_is_not_visible():
    behind = np.eye(4)
    behind[:3, 3] = (0, 0, -5.0)  # five metres ahead, past the wall two metres away
    columns, rows, depths = seen_from(np.full((4, 6), 2.0), np.eye(4), behind, (5.0, 5.0, 2.5, 1.5))
    np.testing.assert_allclose(depths, -3)
    assert not visible_in(columns, rows, depths, np.full((4, 6), 3.0)).any()


def test_labels_are_valid_on_the_way():
    for motion in MOTIONS:
        sample = ScenePath(1, motion=motion, size_hw=SIZE, label_set="all").frame(40)
        assert sample["image"].shape == (*SIZE, 3)
        for task in TASKS:
            assert kinds.of(task).valid(sample[task]).all()
        assert 30 < sample["image"].mean() < 220


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"motion": "leap"}, "leap"),
        ({"label_set": "coco"}, "coco"),
        ({"size_hw": (1, 9)}, "size"),
        ({"seed": -1}, "-1"),
    ],
)
def test_mistakes_are_named(arguments, word):
    with pytest.raises(MistakeError, match=word):
        ScenePath(0, **arguments)
    with pytest.raises(MistakeError, match="frame given: -1"):
        ScenePath(0, size_hw=SIZE).frame(-1)
