from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from by_colour import predictor
from mtlsi.data.scenes.dataset import render_scene, scene_intrinsics
from mtlsi.errors import MistakeError
from mtlsi.prediction.points import points, surface, write_glb, write_ply
from mtlsi.prediction.results import save_prediction

FOCAL = 50.0


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Point by point, as the format's description says."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(lines[2].removeprefix("element vertex "))
    assert lines[3:] == [
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {c}" for c in ("red", "green", "blue")),
    ]
    rows = [struct.unpack_from("<fffBBB", body, 15 * number) for number in range(count)]
    assert len(body) == 15 * count
    return np.array([row[:3] for row in rows]), np.array([row[3:] for row in rows])


def read_glb(path: Path) -> dict[str, np.ndarray]:
    """Positions, sRGB colours and triangles, by the text of glTF 2.0."""
    content = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    chunks, at = {}, 12
    while at < length:
        size, kind = struct.unpack_from("<I4s", content, at)
        assert size % 4 == 0
        chunks[kind] = content[at + 8 : at + 8 + size]
        at += 8 + size
    scene = json.loads(chunks[b"JSON"])
    assert sum(view["byteLength"] for view in scene["bufferViews"]) == scene["buffers"][0]["byteLength"]

    def accessor(number: int) -> np.ndarray:
        about = scene["accessors"][number]
        view = scene["bufferViews"][about["bufferView"]]
        kinds = {5126: "<f4", 5123: "<u2", 5125: "<u4"}
        wide = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[about["type"]]
        data = chunks[b"BIN\0"][view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        values = np.frombuffer(data, kinds[about["componentType"]]).reshape(about["count"], wide)
        assert view["byteOffset"] % values.itemsize == 0
        if "min" in about:
            np.testing.assert_array_equal(values.min(0), np.float32(about["min"]))
            np.testing.assert_array_equal(values.max(0), np.float32(about["max"]))
        return values

    primitive = scene["meshes"][scene["nodes"][0]["mesh"]]["primitives"][0]
    linear = accessor(primitive["attributes"]["COLOR_0"])[:, :3] / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    found = {"points": accessor(primitive["attributes"]["POSITION"]), "colours": np.rint(255 * srgb)}
    assert primitive["mode"] == (4 if "indices" in primitive else 0)
    return found | ({"triangles": accessor(primitive["indices"]).reshape(-1, 3)} if "indices" in primitive else {})


def plane(height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The depth of the plane z = -2 - x / 4 + y / 8 before the camera, ray by ray, and a colour for each pixel."""
    depth = np.zeros((height, width), np.float32)
    for v in range(height):
        for u in range(width):
            x, y = (u - (width - 1) / 2) / FOCAL, ((height - 1) / 2 - v) / FOCAL
            depth[v, u] = 2 / (1 - x / 4 + y / 8)  # -d = -2 - x d / 4 + y d / 8
    return depth, np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("step", [1, 3])
def test_the_points_of_a_plane_lie_on_it_in_both_files(tmp_path, step):
    depth, rgb = plane()
    depth[0, 0], depth[3, 3] = np.nan, 0
    write_ply(tmp_path / "a.ply", *points(depth, rgb, FOCAL, step=step))
    write_glb(tmp_path / "a.glb", *surface(depth, rgb, FOCAL, step=step))
    seen, colours = read_ply(tmp_path / "a.ply")
    mesh = read_glb(tmp_path / "a.glb")
    assert len(seen) == len(range(0, 24, step)) * len(range(0, 32, step)) - 2
    for cloud in (seen, mesh["points"]):
        np.testing.assert_allclose(cloud[:, 2], -2 - cloud[:, 0] / 4 + cloud[:, 1] / 8, atol=1e-5)
    for cloud, shades in ((seen, colours), (mesh["points"], mesh["colours"])):
        for point, shade in zip(cloud, shades, strict=True):  # back to the pixel that it is of
            u, v = point[0] * FOCAL / -point[2] + 15.5, 11.5 - point[1] * FOCAL / -point[2]
            np.testing.assert_array_equal(rgb[round(float(v)), round(float(u))], shade)


def test_triangles_face_the_camera_and_leave_no_hole(tmp_path):
    depth, rgb = plane()
    write_glb(tmp_path / "a.glb", *surface(depth, rgb, FOCAL))
    mesh = read_glb(tmp_path / "a.glb")
    assert len(mesh["triangles"]) == 2 * 23 * 31
    a, b, c = (mesh["points"][mesh["triangles"][:, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    assert (normals * -a).sum(1).min() > 0
    projected = [corner[:, :2] / -corner[:, 2:] * FOCAL for corner in (a, b, c)]
    (ux, uy), (vx, vy) = (projected[1] - projected[0]).T, (projected[2] - projected[0]).T
    np.testing.assert_allclose((ux * vy - uy * vx).sum() / 2, 23 * 31, rtol=1e-4)


def test_nothing_lies_between_two_objects():
    depth = np.full((20, 30), 4.0, np.float32)
    depth[5:15, 10:20] = 2
    rgb = np.zeros((20, 30, 3), np.uint8)
    seen, _ = points(depth, rgb, 100.0)
    vertices, _, triangles = surface(depth, rgb, 100.0)
    assert set(np.unique(seen[:, 2])) == {-4, -2}
    spans = np.ptp(vertices[triangles][..., 2], axis=1)
    assert spans.max() == 0
    ring = 11 * 11 - 9 * 9  # cells across the edge; at two of its corners a triangle lies outside
    assert len(triangles) == 2 * (19 * 29 - ring) + 2
    smooth = np.linspace(2, 4, 30, dtype=np.float32)[None].repeat(20, 0)  # as upsampled: steep by 3.4 and more
    line = np.zeros((20, 30), np.float32)
    line[:, 14:16] = 0.9
    assert len(points(smooth, rgb, 100.0)[0]) == len(points(smooth, rgb, 100.0, line)[0]) == 600
    steep = np.linspace(2, 4, 30, dtype=np.float32)[None].repeat(20, 0)
    assert len(points(steep, rgb, 350.0)[0]) == 20 * (30 - np.count_nonzero(2 / 29 * 350 / steep[0] > 12))
    assert len(points(steep, rgb, 350.0, line)[0]) == len(points(steep, rgb, 350.0)[0]) - 20 * np.count_nonzero(
        2 / 29 * 350 / steep[0, 14:16] <= 12
    )
    for step in (1, 3):
        cut = surface(steep, rgb, 330.0, line, step=step)[2]
        assert len(cut) < len(surface(steep, rgb, 330.0, step=step)[2])


def test_the_points_of_a_generated_room_lie_in_it():
    size_hw, index = (96, 128), 3
    scene = render_scene(index, size_hw=size_hw)
    fx, _, cx, cy = scene_intrinsics(index, size_hw=size_hw)
    seen, _ = points(scene["depth"], scene["image"], fx)
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    depth = scene["depth"].astype(np.float64)
    expected = np.stack([(columns - cx) * depth / fx, (cy - rows) * depth / fx, -depth], -1).reshape(-1, 3)
    known = {tuple(point) for point in expected.astype(np.float32)}
    assert len(seen) > 0.8 * depth.size
    assert all(tuple(point) in known for point in seen)


def test_an_image_without_any_depth_gives_files_without_points(tmp_path):
    nothing, rgb = np.zeros((4, 5), np.float32), np.zeros((4, 5, 3), np.uint8)
    write_ply(tmp_path / "a.ply", *points(nothing, rgb, 5.0))
    assert len(read_ply(tmp_path / "a.ply")[0]) == 0
    write_glb(tmp_path / "a.glb", *surface(nothing, rgb, 5.0))
    content = (tmp_path / "a.glb").read_bytes()
    assert json.loads(content[20:])["scenes"] == [{}]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_images_of_a_few_pixels(tmp_path, size_hw):
    depth, rgb = np.ones(size_hw, np.float32), np.zeros((*size_hw, 3), np.uint8)
    assert len(points(depth, rgb, 9.0, depth)[0]) == depth.size
    write_glb(tmp_path / "a.glb", *surface(depth, rgb, 9.0, depth))


def test_a_large_image_gives_at_most_so_many_points(tmp_path, monkeypatch):
    from mtlsi.prediction import results

    monkeypatch.setattr(results, "MOST_POINTS", 500)
    photo = np.full((100, 130, 3), 120, np.uint8)
    prediction = predictor()(photo, "depth,boundary")
    Image.fromarray(photo).save(tmp_path / "a.png")
    files = save_prediction(prediction, photo, tmp_path, "a", write="ply,glb", focal_px=100)
    assert [path.name for path in files] == ["a.ply", "a.glb"]
    count = len(read_ply(files[0])[0])
    assert 200 < count <= 500
    assert len(read_glb(files[1])["points"]) == count


def test_points_need_a_distance_and_a_focal_length(tmp_path, photo):
    with pytest.raises(MistakeError, match="no task of distances"):
        save_prediction(predictor()(photo, "semseg"), photo, tmp_path / "out", "a", write="ply", focal_px=90)
    with pytest.raises(MistakeError, match="points without a focal length"):
        save_prediction(predictor()(photo, "depth"), photo, tmp_path / "out", "a", write="glb")
    assert not (tmp_path / "out").exists()
