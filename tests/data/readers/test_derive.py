from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.data.scenes.dataset import render_scene, scene_intrinsics

SIZE_HW = (240, 320)
STEP_M = 1 / 25.5


def ray_maps(
    size_hw: tuple[int, int], focal_xy: tuple[float, float], centre_xy: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.indices(size_hw)
    return (columns - centre_xy[0]) / focal_xy[0], (centre_xy[1] - rows) / focal_xy[1]


def in_steps(depth: np.ndarray) -> np.ndarray:
    """Depth as an 8-bit file gives it back."""
    return ((np.floor(depth / STEP_M) + 0.5) * STEP_M).astype(np.float32)


def naive_normals(depth: np.ndarray, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """One least-squares plane of inverse depth in one window around each pixel."""
    inverse = 1 / depth.astype(np.float64)

    def cov(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return uniform_filter(p * q, size) - uniform_filter(p, size) * uniform_filter(q, size)

    a, b = cov(x, inverse) / cov(x, x), cov(y, inverse) / cov(y, y)
    c = uniform_filter(inverse, size) - a * uniform_filter(x, size) - b * uniform_filter(y, size)
    normals = np.stack([-a, -b, c])
    return normals / np.linalg.norm(normals, axis=0)


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(0), -1, 1)))


def test_normals_of_depth_in_steps_are_near_the_true_ones() -> None:
    errors: dict[str, list[np.ndarray]] = {"derived": [], "naive, 5 pixels": [], "naive, 9": [], "naive, 17": []}
    for index in range(3):
        scene = render_scene(index, size_hw=SIZE_HW)
        fx, fy, cx, cy = scene_intrinsics(index, size_hw=SIZE_HW)
        stored = in_steps(scene["depth"])
        derived = normals_from_depth(stored, focal_xy=(fx, fy), centre_xy=(cx, cy), step_m=STEP_M)
        errors["derived"].append(degrees(derived, scene["normals"]))
        rays = ray_maps(SIZE_HW, (fx, fy), (cx, cy))
        for size, found in zip((5, 9, 17), list(errors.values())[1:], strict=True):
            found.append(degrees(naive_normals(stored, *rays, size), scene["normals"]))
    means, medians = ({name: float(f(maps)) for name, maps in errors.items()} for f in (np.mean, np.median))
    for name in errors:
        print(f"{name}: mean {means[name]:.2f}, median {medians[name]:.2f} degrees")
    assert medians["derived"] < 3
    assert means["derived"] < 12
    assert medians["derived"] < min(value for name, value in medians.items() if name != "derived") / 2
    assert means["derived"] < min(value for name, value in means.items() if name != "derived") * 0.7


def test_normals_of_exact_planes_are_exact_in_their_frame() -> None:
    focal_xy, centre_xy = (260.0, 250.0), (150.0, 110.0)
    _, y = ray_maps(SIZE_HW, focal_xy, centre_xy)
    below = y < -0.1
    floor = np.where(below, 1.2 / np.maximum(-y, 0.1), np.nan)  # the plane 1.2 m below the camera; nothing above it
    derived = normals_from_depth(floor, focal_xy=focal_xy, centre_xy=centre_xy, step_m=None)
    np.testing.assert_allclose(derived[:, below], np.array([[0, 1, 0]]).T.repeat(below.sum(), 1), atol=1e-3)
    assert not derived[:, ~below].any()
    assert derived.dtype == np.float32

    facing = normals_from_depth(np.full((60, 81), 2.0), focal_xy=(60, 60), centre_xy=(40, 30))
    np.testing.assert_allclose(facing, np.broadcast_to(np.array([0, 0, 1])[:, None, None], (3, 60, 81)), atol=1e-4)


def test_a_slanted_plane_thinned_from_a_large_map_keeps_its_direction_and_size() -> None:
    focal_xy, centre_xy = (520.0, 520.0), (319.5, 239.5)
    x, y = ray_maps((481, 641), focal_xy, centre_xy)
    normal = np.array([0.6, 0.64, 0.48])
    depth = 3 / (normal[2] - normal[0] * x - normal[1] * y)  # normal . (x z, y z, -z) = -3
    depth = np.where(depth > 0, depth, 0)
    derived = normals_from_depth(depth, focal_xy=focal_xy, centre_xy=centre_xy, step_m=None)
    assert derived.shape == (3, 481, 641)
    assert degrees(derived, normal[:, None, None])[depth > 0].max() < 0.2


def test_depth_without_a_valid_pixel_has_no_normals() -> None:
    holes = np.zeros((20, 30), np.float32)
    holes[3, 4] = np.inf
    assert not normals_from_depth(holes).any()


def test_boundaries_follow_their_definition_pixel_by_pixel() -> None:
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], (13, 17)).astype(np.uint8)
    expected = np.zeros((13, 17), np.uint8)
    for row in range(13):
        for column in range(17):
            here = labels[row, column]
            pairs = [labels[r, c] for r, c in ((row, column + 1), (row + 1, column)) if r < 13 and c < 17]
            if any(here != there and 255 not in (here, there) for there in pairs):
                expected[row, column] = 1
            elif 255 in (here, *pairs):
                expected[row, column] = 255
    derived = boundaries_from_labels(labels, max_crack=0)
    np.testing.assert_array_equal(derived, expected)
    assert derived.dtype == np.uint8


@pytest.mark.parametrize("width", [1, 4, 10])
def test_a_crack_between_two_labels_becomes_one_line_down_its_middle(width: int) -> None:
    labels = np.full((60, 80), 255, np.uint8)
    labels[15:-15, 15:-15] = 3
    labels[15:-15, 40:-15] = 7
    labels[15:-15, 40 : 40 + width] = 255
    derived = boundaries_from_labels(labels)
    inside = derived[30]
    (line,) = np.flatnonzero(inside == 1)
    assert abs(line - (39 + width / 2)) <= 0.5
    assert set(inside[15:64].tolist()) == {0, 1}
    assert (derived[:14] == 255).all()  # the frame is no crack
    assert (derived[:, -15:] == 255).all()


def test_wide_unlabelled_areas_stay_unknown() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 30:41] = 255
    derived = boundaries_from_labels(labels)
    assert (derived[20:40, 30:41] == 255).all()
    assert not (derived == 1).any()
    assert (boundaries_from_labels(np.full((5, 6), 255)) == 255).all()
