from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from mtlsi.prediction.points import points, write_glb, write_ply


def wall(height=3, width=5, depth_m=2.0):
    rgb = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    return np.full((height, width), depth_m, np.float32), rgb


def test_points_are_those_of_a_pinhole_camera():
    depth_m, rgb = wall()
    depth_m[1, 4] = 3
    vertices, colours = points(depth_m, rgb, focal_px=10)
    expected = []
    for row in range(3):
        for column in range(5):
            z = float(depth_m[row, column])
            expected.append(((column - 2) * z / 10, (1 - row) * z / 10, -z))
    np.testing.assert_allclose(vertices, expected, atol=1e-6)
    np.testing.assert_array_equal(colours, rgb.reshape(-1, 3))
    assert (vertices.dtype, colours.dtype) == (np.float32, np.uint8)


@pytest.mark.parametrize("unknown", [0, np.nan, np.inf, -1])
def test_pixels_without_a_depth_are_left_out(unknown):
    depth_m, rgb = wall()
    depth_m[0, 0] = unknown
    vertices, colours = points(depth_m, rgb, focal_px=10)
    assert len(vertices) == 14
    np.testing.assert_array_equal(colours, rgb.reshape(-1, 3)[1:])


def test_boundaries_between_depths_are_cut_and_those_on_a_wall_are_not():
    depth_m, rgb = wall(4, 9)
    depth_m[:, 5:] = 6
    boundary = np.zeros((4, 9), np.float32)
    boundary[:, 1] = boundary[:, 4:6] = 0.9
    vertices, _ = points(depth_m, rgb, focal_px=100, boundary=boundary)
    kept = sorted({round(float(x / -z * 100 + 4)) for x, _, z in vertices})
    assert kept == [0, 1, 2, 3, 6, 7, 8]


def test_ply_holds_what_was_given(tmp_path):
    depth_m, rgb = wall()
    vertices, colours = points(depth_m, rgb, focal_px=10)
    write_ply(tmp_path / "cloud.ply", vertices, colours)
    head, body = (tmp_path / "cloud.ply").read_bytes().split(b"end_header\n", 1)
    assert head.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 15\nproperty float x\n")
    rows = list(struct.iter_unpack("<fffBBB", body))
    np.testing.assert_array_equal([row[:3] for row in rows], vertices)
    np.testing.assert_array_equal([row[3:] for row in rows], colours)


def test_glb_holds_the_points_and_their_colours_as_linear_light(tmp_path):
    vertices = np.array([[0, 1, -2], [3, -4, -5]], np.float32)
    colours = np.array([[0, 255, 128], [10, 20, 30]], np.uint8)
    write_glb(tmp_path / "cloud.glb", vertices, colours)
    content = (tmp_path / "cloud.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    json_length, kind = struct.unpack("<I4s", content[12:20])
    assert kind == b"JSON"
    assert json_length % 4 == 0
    scene = json.loads(content[20 : 20 + json_length])
    binary = content[20 + json_length + 8 :]
    position, colour = scene["accessors"]
    views = scene["bufferViews"]
    stored = np.frombuffer(binary, "<f4", 6, views[position["bufferView"]]["byteOffset"]).reshape(2, 3)
    np.testing.assert_array_equal(stored, vertices)
    assert (position["min"], position["max"]) == ([0, -4, -5], [3, 1, -2])
    light = np.frombuffer(binary, "<u2", 8, views[colour["bufferView"]]["byteOffset"]).reshape(2, 4) / 65535
    # the table of IEC 61966-2-1: sRGB 128 is 21.586 % of the light
    np.testing.assert_allclose(light[0], [0, 1, 0.21586, 1], atol=1e-4)
    assert scene["meshes"][0]["primitives"][0]["mode"] == 0  # points
    assert scene["buffers"][0]["byteLength"] == len(binary)


def test_an_empty_cloud_is_a_file_too(tmp_path):
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    write_ply(tmp_path / "cloud.ply", *nothing)
    write_glb(tmp_path / "cloud.glb", *nothing)
    assert b"element vertex 0\n" in (tmp_path / "cloud.ply").read_bytes()
    content = (tmp_path / "cloud.glb").read_bytes()
    assert json.loads(content[20:])["scenes"] == [{}]
