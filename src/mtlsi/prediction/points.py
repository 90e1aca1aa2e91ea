"""A depth map as a coloured point cloud, and the files that viewers of such clouds read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from mtlsi.io import replace_bytes

CUT_ABOVE, STEEP = 0.5, 6.0
"""A pixel is cut where it is more likely a boundary than the first, and the surface there recedes by more than the second
for each metre across: its depth lies between that of two objects. Choice: a boundary alone, as between two colours of one
wall, cuts nothing."""
GLTF_POINTS, GLTF_FLOAT, GLTF_USHORT, GLTF_ARRAY = 0, 5126, 5123, 34962


def points(
    depth_m: np.ndarray, rgb: np.ndarray, focal_px: float, boundary: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The points ``(n 3) float32`` in metres that the pixels show, row by row, and their colours ``(n 3) uint8``.

    ``depth_m (H W)`` along the optical axis; ``rgb (H W 3) uint8``; ``boundary (H W)`` in 0..1. A pinhole camera at the
    origin whose axis meets the middle of the image; x right, y up, z towards the camera, as normals:

        x = (u - (W - 1) / 2) depth / focal,  y = ((H - 1) / 2 - v) depth / focal,  z = -depth

    Pixels without a depth are left out, and those of ``boundary`` between objects at different depths.
    """
    height, width = depth_m.shape
    kept = np.isfinite(depth_m) & (depth_m > 0)
    if boundary is not None:
        kept &= ~((boundary > CUT_ABOVE) & (_steepness(depth_m, focal_px) > STEEP))
    rows, columns = np.nonzero(kept)
    depth = depth_m[kept].astype(np.float64)
    right, up = columns - (width - 1) / 2, (height - 1) / 2 - rows
    return np.stack([right * depth / focal_px, up * depth / focal_px, -depth], 1).astype(np.float32), rgb[kept]


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


def write_glb(path: Path, vertices: np.ndarray, colours: np.ndarray) -> None:
    """A binary glTF 2.0 file of points ``(n 3) float32`` with colours ``(n 3) uint8``, written atomically.

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
    places = [(0, len(chunks[0])), (len(chunks[0]), len(chunks[1]))]
    attributes = {"POSITION": 0, "COLOR_0": 1}
    scene = {
        "asset": {"version": "2.0", "generator": "mtlsi"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "mode": GLTF_POINTS, "material": 0}]}],
        "materials": [{"extensions": {"KHR_materials_unlit": {}}, "pbrMetallicRoughness": {"metallicFactor": 0}}],
        "accessors": [position, colour],
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": length, "target": GLTF_ARRAY} for start, length in places
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
