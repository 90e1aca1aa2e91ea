"""The label files of a folder of one's own, decoded by kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtlsi.data.readers.class_maps import ClassMap, decode_class_map
from mtlsi.data.readers.decoding import (
    UNKNOWN,
    Decoder,
    check_strength,
    checked_depth,
    decode_npy,
    edges_npy,
    edges_png,
    is_npy,
    without_axis_of_one,
)
from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.data.readers.folder_settings import METRES, SETTINGS
from mtlsi.data.readers.folder_vectors import decode_vectors
from mtlsi.data.readers.label_pixels import label_image, strength_pixels
from mtlsi.errors import MistakeError
from mtlsi.tasks import Task

LOSSLESS = (".png", ".npy", ".tif", ".tiff", ".bmp", ".gif", ".webp")
JPEG = (".jpg", ".jpeg")
SUFFIXES = {
    "classes": (*LOSSLESS, *JPEG),
    "strength": (*LOSSLESS, *JPEG),
    "value": (".png", ".npy", ".tif", ".tiff", *JPEG),
    "distance": (".png", ".npy", ".tif", ".tiff", *JPEG),
    "direction": (".png", ".npy", ".tif", ".tiff", *JPEG),
}
"""The kinds of files that are looked for, by kind of task, in either case; in every folder they may be mixed. JPEG is found
so that the reader can say why it takes none."""

ONE_CHANNEL = ("L", "I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's modes of images with one channel of numbers."""


def decoder_of(task: Task, keys: dict[str, Any]) -> Decoder:
    """What reads the label files of ``task``, by its keys in ``dataset.yaml``."""
    if task.name == "boundary":
        return decode_edges
    if task.kind == "classes":
        return partial(decode_class_map, classes=keys["map"])
    if task.kind == "strength":
        return partial(decode_strength, task=task.name, threshold=keys["threshold"])
    if task.kind == "distance":
        return partial(decode_depth, **depth_map(keys, task.name))
    if task.kind == "direction":
        return partial(decode_vectors, axes=keys["axes"], key=f"tasks.{task.name}.axes", facing=task.name == "normals")
    return partial(
        decode_value,
        task=task.name,
        channels=task.channels or 1,
        span=task.range,
        scale=keys["scale"],
        invalid=keys["invalid"],
    )


def depth_map(keys: dict[str, Any], task: str = "depth") -> dict[str, Any]:
    """The arguments of ``decode_depth``."""
    return {"task": task, "scale": METRES[keys["unit"]] if keys["unit"] else keys["scale"], "invalid": keys["invalid"]}


def _depth_and_step(
    path: Path, content: bytes, task: str, scale: float | None, invalid: Sequence[float]
) -> tuple[np.ndarray, float | None]:
    """(H W) float32 metres, 0 where there is none, and the step in which they are stored (None: not in steps).

    Choice: without a scale, numbers with a fraction are metres and whole numbers of 16 bits or more millimetres, as depth
    cameras write them; NaN is no depth.
    """
    if is_npy(path):
        values = decode_npy(path, content)
    else:
        image = label_image(path, content)
        if image.mode not in ONE_CHANNEL:
            raise MistakeError(f"{path}: pixels of mode {image.mode}; expected one channel of depth; convert the file")
        values = np.array(image)
    in_steps = values.dtype.kind != "f"
    if scale is None and values.dtype.itemsize < 2:
        key = f"tasks.{task}.scale"
        raise MistakeError(f"{path}: 8-bit depth; give {key} in {SETTINGS}: metres per stored unit")
    if scale is None:
        scale = METRES["mm" if in_steps else "m"]
    lacking = np.isin(values, np.asarray(invalid, None if in_steps else values.dtype)) | np.isnan(values)
    metres = np.where(lacking, 0, values.astype(np.float64) * scale)
    return checked_depth(path, metres), scale if in_steps else None


def decode_depth(path: Path, content: bytes, *, task: str, scale: float | None, invalid: Sequence[float]) -> np.ndarray:
    """(H W) float32 metres of an image or a NumPy file that holds ``scale`` metres per unit."""
    return _depth_and_step(path, content, task, scale, invalid)[0]


def decode_strength(path: Path, content: bytes, *, task: str, threshold: float) -> np.ndarray:
    """(H W) uint8: 1 above ``threshold``, of values in 0..1 or, if one is above 1, 0..255; of these 127 is unknown: 255.

    So are pixels of opacity 0.
    """
    values, known = (decode_npy(path, content), None) if is_npy(path) else strength_pixels(path, content)
    values = without_axis_of_one(values)
    check_strength(path, values, task)
    if values.max(initial=0) <= 1:
        found = (values > threshold).astype(np.uint8)
    else:
        found = np.where(values == UNKNOWN, 255, values > threshold * 255).astype(np.uint8)
    return found if known is None else np.where(known, found, np.uint8(255))


def decode_edges(path: Path, content: bytes) -> np.ndarray:
    """(H W) uint8, 1 on boundaries, 255 where unknown."""
    return edges_npy(path, content) if is_npy(path) else edges_png(path, content)


def decode_value(
    path: Path,
    content: bytes,
    *,
    task: str,
    channels: int,
    span: tuple[float, float] | None,
    scale: float | None,
    invalid: Sequence[float],
) -> np.ndarray:
    """(H W) or (channels H W) float32, NaN in every channel of a pixel without a value.

    ``scale``: what one stored unit is worth (None: 1 in a NumPy file; 8 and 16 bits of an image span 0..1). A pixel is
    without a value where a channel is not finite or all channels hold the same one of ``invalid``.
    Raises ``MistakeError`` for another number of channels and for values outside ``span``.
    """
    stored = decode_npy(path, content) if is_npy(path) else _pixels(path, content)
    if stored.ndim == 2:
        stored = stored[..., None]
    if stored.ndim != 3 or stored.shape[2] != channels:
        shape = "(height, width)" if channels == 1 else f"(height, width, {channels})"
        raise MistakeError(f"{path}: an array of shape {list(stored.shape)}; expected {task} {shape}")
    in_steps = stored.dtype.kind != "f"
    if scale is None:
        scale = 1 if is_npy(path) or not in_steps else 1 / (255 if stored.dtype.itemsize == 1 else 65535)
    lacking = np.logical_not(np.isfinite(stored).all(-1))
    for value in np.asarray(invalid, None if in_steps else stored.dtype):
        lacking |= (stored == value).all(-1)
    values = np.where(lacking[..., None], np.nan, stored.astype(np.float64) * scale).astype(np.float32)
    if span is not None and not lacking.all():
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if low < np.float32(span[0]) or high > np.float32(span[1]):
            expected = f"{span[0]:g}..{span[1]:g}"
            raise MistakeError(
                f"{path}: values {low:g}..{high:g}; expected {expected}; check the task's range and scale"
            )
    return values[..., 0] if channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _pixels(path: Path, content: bytes) -> np.ndarray:
    """(H W) of an image with one channel, (H W 3) of one in RGB."""
    image = label_image(path, content)
    if image.mode not in (*ONE_CHANNEL, "RGB"):
        raise MistakeError(f"{path}: pixels of mode {image.mode}; expected grey or RGB; convert the file")
    return np.array(image)


def derive_normals(
    path: Path,
    content: bytes,
    *,
    task: str,
    scale: float | None,
    invalid: Sequence[float],
    focal_xy: tuple[float, float],
    centre_xy: tuple[float, float],
) -> np.ndarray:
    """Normals (3 H W) of a depth file; the camera's numbers are in pixels of that file."""
    depth_m, step_m = _depth_and_step(path, content, task, scale, invalid)
    return normals_from_depth(depth_m, focal_xy=focal_xy, centre_xy=centre_xy, step_m=step_m)


def derive_boundaries(path: Path, content: bytes, *, classes: ClassMap) -> np.ndarray:
    """Boundaries (H W) of a label map file."""
    return boundaries_from_labels(decode_class_map(path, content, classes=classes))
