"""Transforming the labels of a scene gives the labels of the transformed scene."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from mtlsi import kinds
from mtlsi.data.labels import as_tensors, as_tv_tensors, label_type
from mtlsi.data.scenes.dataset import Scenes, scene_intrinsics
from mtlsi.data.transforms import TrainTransform, cut, flip, resize
from mtlsi.tasks import TASKS

SIZE_HW = (120, 160)
INDICES = [3, 11]


@cache
def scene(index, size_hw=SIZE_HW):
    return Scenes(1, size_hw=size_hw, label_set="all", first_index=index)[0]


def points(depth, focal_xy, centre_xy):
    """The point (3 H W) in the camera's frame that each pixel shows, float64."""
    rows, columns = np.indices(depth.shape)
    x, y = (columns - centre_xy[0]) / focal_xy[0], (centre_xy[1] - rows) / focal_xy[1]
    return np.stack([x * depth, y * depth, -depth.astype(np.float64)])


def facing(depth, focal_xy, centre_xy):
    """Unit normals (3 H-2 W-2) by central differences of the points, turned towards the camera."""
    at = points(depth, focal_xy, centre_xy)
    across, down = at[:, 1:-1, 2:] - at[:, 1:-1, :-2], at[:, 2:, 1:-1] - at[:, :-2, 1:-1]
    normal = np.cross(across, down, axis=0)
    normal /= np.linalg.norm(normal, axis=0)
    return np.where((normal * at[:, 1:-1, 1:-1]).sum(0) > 0, -normal, normal)


def angles_deg(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(0), -1, 1)))


@pytest.mark.parametrize("index", INDICES)
def test_a_flipped_depth_map_has_the_flipped_normals(index):
    fx, fy, cx, cy = scene_intrinsics(index, size_hw=SIZE_HW)
    depth = scene(index)["depth"].numpy()
    before = facing(depth, (fx, fy), (cx, cy))
    mirrored = flip(scene(index))
    after = facing(mirrored["depth"].numpy(), (fx, fy), (SIZE_HW[1] - 1 - cx, cy))
    expected = flip({"normals": torch.from_numpy(before)})["normals"].numpy()
    np.testing.assert_allclose(after, expected, atol=1e-9)
    # and the stored normals are those of the depth, flipped or not, wherever the surface is flat
    for room, computed in ((scene(index), before), (mirrored, after)):
        assert np.median(angles_deg(room["normals"].numpy()[:, 1:-1, 1:-1], computed)) < 1


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("zoom", [0.5, 1.7])
def test_the_normals_of_a_zoomed_depth_map_are_those_of_the_zoomed_camera(index, zoom):
    fx, fy, cx, cy = scene_intrinsics(index, size_hw=SIZE_HW)
    size = (round(SIZE_HW[0] * zoom), round(SIZE_HW[1] * zoom))
    zoomed = resize(scene(index), size, zoom=zoom)
    scale_y, scale_x = size[0] / SIZE_HW[0], size[1] / SIZE_HW[1]
    centre = ((cx + 0.5) * scale_x - 0.5, (cy + 0.5) * scale_y - 0.5)
    # metres are divided and the focal length multiplied: the room as a whole is smaller, its directions are the same
    step = 3 if zoom > 1 else 1  # nearest pixels are repeated: differences are taken over more than one
    depth = zoomed["depth"].numpy()[::step, ::step]
    focal = (fx * scale_x / step, fy * scale_y / step)
    computed = facing(depth, focal, (centre[0] / step, centre[1] / step))
    stored = zoomed["normals"].numpy()[:, ::step, ::step][:, 1:-1, 1:-1]
    assert np.median(angles_deg(stored, computed)) < 8
    np.testing.assert_allclose(np.linalg.norm(zoomed["normals"], axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("index", INDICES)
def test_labels_of_a_shrunk_scene_are_those_of_the_scene_drawn_small(index):
    """Half the size: the pixels' centres fall between four pixels, so edges may move by half a pixel and no more."""
    small = scene(index, (60, 80))
    shrunk = resize(scene(index), (60, 80))
    for task in ("semseg", "parsing", "saliency"):
        window = np.lib.stride_tricks.sliding_window_view(np.pad(small[task].numpy(), 1, mode="edge"), (3, 3))
        near = (window == shrunk[task].numpy()[..., None, None]).any((-1, -2))
        assert near.mean() > 0.995, task
        assert (small[task] == shrunk[task]).float().mean() > 0.93, task
    inside = small["boundary"].numpy() == 0
    relative = np.abs(shrunk["depth"] / small["depth"] - 1).numpy()[inside]
    assert np.median(relative) < 0.01
    assert np.median(angles_deg(small["normals"].numpy(), shrunk["normals"].numpy())[inside]) < 1


@settings(deadline=None, max_examples=25)
@given(top=st.integers(0, 60), left=st.integers(0, 80), height=st.integers(1, 60), width=st.integers(1, 80))
def test_cutting_commutes_with_flipping(top, left, height, width):
    room = scene(3)
    one = flip(cut(room, (top, left, height, width)))
    other = cut(flip(room), (top, 160 - left - width, height, width))
    for name in room:
        assert torch.equal(one[name], other[name]), name


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), zoom=st.floats(0.4, 2.2))
def test_whatever_is_drawn_labels_keep_their_promises(seed, zoom):
    room = scene(3)
    transform = TrainTransform((96, 128), None, (zoom, zoom))
    sample = transform(room, torch.Generator().manual_seed(seed))
    image_padding = (sample["image"] == 0).all(0)
    length = sample["normals"].norm(dim=0)
    assert (((length - 1).abs() < 1e-4) | (length == 0)).all()
    for name, task in TASKS.items():
        assert sample[name].shape[-2:] == (96, 128)
        valid = kinds.of(task).valid(sample[name])
        assert not valid[image_padding].any(), name
        if kinds.of(task).discrete:
            known = set(room[name].unique().tolist()) | {255}
            assert set(sample[name].unique().tolist()) <= known
    depths = sample["depth"][sample["depth"] > 0] * zoom
    assert torch.isin((depths * 1e4).round(), (room["depth"] * 1e4).round()).float().mean() > 0.99


def test_torchvision_transforms_move_labels_by_the_tasks_rules():
    room = scene(3)
    sample = as_tv_tensors(room)
    assert all(type(sample[name]) is label_type(TASKS[name]) for name in TASKS)
    upside = as_tensors(v2.RandomVerticalFlip(p=1.0)(sample))
    assert torch.equal(upside["normals"][1], -room["normals"][1].flip(-2))
    assert torch.equal(upside["normals"][0], room["normals"][0].flip(-2))
    padded = as_tensors(v2.Pad([4, 6, 0, 2])(sample))
    for name, task in TASKS.items():
        valid = kinds.of(task).valid(padded[name])
        assert valid.shape == (128, 164)
        assert not valid[:6].any()
        assert not valid[:, :4].any()
        assert torch.equal(valid[6:-2, 4:], kinds.of(task).valid(room[name]))
    small = as_tensors(v2.Resize([30, 40])(sample))
    assert small["boundary"].dtype == torch.uint8
    naive = room["boundary"].unfold(0, 4, 4).unfold(1, 4, 4).amax((-1, -2))
    assert torch.equal(small["boundary"], naive)
    assert set(small["semseg"].unique().tolist()) <= set(room["semseg"].unique().tolist())
