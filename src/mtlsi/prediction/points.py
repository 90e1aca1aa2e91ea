"""A depth map as coloured points or as a surface of triangles, and the files that viewers of them read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from mtlsi.io import replace_bytes

CUT_ABOVE, STEEP, JUMP = 0.5, 6.0, 12.0
"""A pixel is cut where it is more likely a boundary than the first, and the surface there recedes by more than the second
for each metre across: its depth lies between that of two objects. Choice: a boundary alone, as between two colours of one
wall, cuts nothing; without a boundary a jump of the third does, a surface seen under less than 5 degrees."""
GLTF_POINTS, GLTF_TRIANGLES = 0, 4
GLTF_FLOAT, GLTF_USHORT, GLTF_UINT = 5126, 5123, 5125
GLTF_ARRAY, GLTF_INDICES = 34962, 34963


def points(
    depth_m: np.ndarray, rgb: np.ndarray, focal_px: float, boundary: np.ndarray | None = None, *, step: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The points ``(n 3) float32`` in metres that the pixels show, row by row, and their colours ``(n 3) uint8``.

    ``depth_m (H W)`` along the optical axis; ``rgb (H W 3) uint8``; ``boundary (H W)`` in 0..1; of every ``step``-th row
    and column. A pinhole camera at the origin whose axis meets the middle of the image; x right, y up, z towards the
    camera, as normals:

        x = (u - (W - 1) / 2) depth / focal,  y = ((H - 1) / 2 - v) depth / focal,  z = -depth

    Pixels without a depth are left out, and those between objects at different depths.
    """
    valid = _has_depth(depth_m)
    steepness, limit = _steepness(np.where(valid, depth_m, np.nan), focal_px), np.float32(JUMP)
    if boundary is not None:
        limit = np.where(boundary > CUT_ABOVE, np.float32(STEEP), limit)
    return _seen(depth_m, rgb, focal_px, valid & ~(steepness > limit), step)


def surface(
    depth_m: np.ndarray, rgb: np.ndarray, focal_px: float, boundary: np.ndarray | None = None, *, step: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points and colours as ``points`` gives them, and triangles ``(m 3) uint32`` between neighbours.

    Three points each, counter-clockwise as the camera sees them. No triangle spans two objects: it is left out where its
    points recede from one another too steeply, and no point is there that no triangle has.
    """
    valid = _has_depth(depth_m)
    vertices, colours = _seen(depth_m, rgb, focal_px, valid, step)
    number = np.full(valid[::step, ::step].shape, -1, np.int64)
    number[valid[::step, ::step]] = np.arange(len(vertices))
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    triangles = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], 2).reshape(-1, 3)
    cell_limit = np.full(a.shape, JUMP, np.float32)
    if boundary is not None:
        cell_limit[_largest_in_cells(boundary, step) > CUT_ABOVE] = STEEP
    whole = (triangles >= 0).all(1)
    triangles, limit = triangles[whole], np.repeat(cell_limit.ravel(), 2)[whole]
    depth = -vertices[:, 2][triangles]
    near = depth.min(1)
    triangles = triangles[(depth.max(1) - near) * focal_px <= limit * near * step]
    used = np.zeros(len(vertices), bool)
    used[triangles] = True
    renumbered = np.cumsum(used) - 1
    return vertices[used], colours[used], renumbered[triangles].astype(np.uint32)


def _has_depth(depth_m: np.ndarray) -> np.ndarray:
    return np.isfinite(depth_m) & (depth_m > 0)


def _seen(
    depth_m: np.ndarray, rgb: np.ndarray, focal_px: float, kept: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """The points and colours of every ``step``-th row and column, where ``kept``."""
    height, width = depth_m.shape
    rows, columns = (step * places for places in np.nonzero(kept[::step, ::step]))
    depth = depth_m[rows, columns].astype(np.float64)
    right, up = columns - (width - 1) / 2, (height - 1) / 2 - rows
    vertices = np.stack([right * depth / focal_px, up * depth / focal_px, -depth], 1).astype(np.float32)
    return vertices, rgb[rows, columns]


def _largest_in_cells(values: np.ndarray, step: int) -> np.ndarray:
    """The largest value between every ``step``-th row and column and the next, all four sides included."""
    for axis in (0, 1):
        kept = np.arange(0, values.shape[axis], step)
        ends = np.take(values, kept[1:], axis)
        values = np.maximum(np.maximum.reduceat(values, kept, axis).take(np.arange(len(kept) - 1), axis), ends)
    return values


def _steepness(depth_m: np.ndarray, focal_px: float) -> np.ndarray:
    """Metres by which the depth changes for each metre across the image plane, ``(H W)``."""
    down, across = (np.gradient(depth_m, axis=axis) if depth_m.shape[axis] > 1 else 0 * depth_m for axis in (0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.hypot(down, across) * focal_px / depth_m


def write_ply(path: Path, vertices: np.ndarray, colours: np.ndarray) -> None:
    """A binary PLY file of points ``(n 3) float32`` with colours ``(n 3) uint8``, written atomically."""
    fields = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    table = np.empty(len(vertices), fields)
    for number, (name, _) in enumerate(fields):
        table[name] = vertices[:, number] if number < 3 else colours[:, number - 3]
    types = {"<f4": "float", "u1": "uchar"}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property {types[kind]} {name}" for name, kind in fields]
    replace_bytes(path, "\n".join([*lines, "end_header\n"]).encode() + table.tobytes())


def write_glb(path: Path, vertices: np.ndarray, colours: np.ndarray, triangles: np.ndarray | None = None) -> None:
    """A binary glTF 2.0 file of points ``(n 3) float32`` with colours ``(n 3) uint8``, written atomically.

    With ``triangles (m 3) uint32`` it is a surface, seen from both sides: what every viewer shows, for many show points of
    glTF one pixel large, without their colours or not at all.
    glTF's axes are ours. Its colours are linear light, in 16 bits here, and shown as they are, without a lamp.
    """
    count = len(vertices)
    linear = np.full((count, 4), 65535, "<u2")
    linear[:, :3] = _LINEAR[colours]
    chunks = [vertices.astype("<f4").tobytes(), linear.tobytes()]
    low, high = (vertices.min(0), vertices.max(0)) if count else (np.zeros(3), np.zeros(3))
    position = {"bufferView": 0, "componentType": GLTF_FLOAT, "count": count, "type": "VEC3"}
    position |= {"min": [float(x) for x in low], "max": [float(x) for x in high]}
    colour = {"bufferView": 1, "componentType": GLTF_USHORT, "count": count, "type": "VEC4", "normalized": True}
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": GLTF_POINTS, "material": 0}
    accessors, targets = [position, colour], [GLTF_ARRAY, GLTF_ARRAY]
    if triangles is not None and len(triangles):
        chunks.append(triangles.astype("<u4").tobytes())
        accessors.append({"bufferView": 2, "componentType": GLTF_UINT, "count": triangles.size, "type": "SCALAR"})
        targets.append(GLTF_INDICES)
        primitive |= {"mode": GLTF_TRIANGLES, "indices": 2}
    starts = [sum(map(len, chunks[:number])) for number in range(len(chunks))]
    material = {"extensions": {"KHR_materials_unlit": {}}, "pbrMetallicRoughness": {"metallicFactor": 0}}
    scene = {
        "asset": {"version": "2.0", "generator": "mtlsi"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [material | {"doubleSided": True}],
        "accessors": accessors,
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(chunk), "target": target}
            for start, chunk, target in zip(starts, chunks, targets, strict=True)
        ],
        "buffers": [{"byteLength": sum(map(len, chunks))}],
    }
    if not count:  # glTF has no empty buffers
        scene = {"asset": scene["asset"], "scene": 0, "scenes": [{}]}
    head, body = _chunk(b"JSON", json.dumps(scene).encode(), b" "), _chunk(b"BIN\0", b"".join(chunks), b"\0")
    content = head + (body if count else b"")
    replace_bytes(path, struct.pack("<4sII", b"glTF", 2, 12 + len(content)) + content)


def _chunk(kind: bytes, content: bytes, filler: bytes) -> bytes:
    """One chunk of a GLB file, filled up to a multiple of 4 bytes."""
    content += filler * (-len(content) % 4)
    return struct.pack("<I4s", len(content), kind) + content


def _linear_light() -> np.ndarray:
    """The 16-bit linear light of each 8-bit sRGB value, ``(256) uint16`` (IEC 61966-2-1)."""
    srgb = np.arange(256) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.rint(linear * 65535).astype(np.uint16)


_LINEAR = _linear_light()
