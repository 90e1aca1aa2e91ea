"""The bytes of a label file to an array in the project's conventions; a file that is not what it should be is named.

Every decoder takes the path (for messages) and the content, and gives an array laid out as ``tasks.py`` says: maps
(H W), vectors (3 H W), images (H W 3). It raises ``MistakeError`` for what it cannot read and for values out of range.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtlsi.data.readers.array_files import read_mat, read_npy
from mtlsi.data.readers.label_pixels import Pixels, grey_values, label_image, read_pixels, strength_pixels
from mtlsi.data.readers.stored_classes import StoredClasses, ranges_of
from mtlsi.errors import MistakeError
from mtlsi.images import open_image, to_rgb
from mtlsi.tasks import class_dtype, invalid_class

Decoder = Callable[[Path, bytes], np.ndarray]

UNKNOWN = 127
"""In images of boundaries and saliency, which else are dark or bright: this pixel has no label."""

FARTHEST_M = 200.0
"""Depth beyond this is no indoor metre: the file holds millimetres, or something else."""


def decode_image(path: Path, content: bytes) -> Image.Image:
    """The image file of a label as it is stored, decoded whole; an EXIF orientation is ignored."""
    with open_image(path, io.BytesIO(content)) as image:
        return image


def decode_rgb(path: Path, content: bytes) -> np.ndarray:
    """An image's pixels (H W 3) uint8, upright; see ``to_rgb``."""
    with open_image(path, io.BytesIO(content)) as image:
        return to_rgb(image)


def decode_grey(path: Path, content: bytes) -> np.ndarray:
    """(H W) uint8 of an image with one 8-bit channel, palette images by their indices."""
    image = decode_image(path, content)
    if image.mode not in ("L", "P"):
        raise MistakeError(f"{path}: pixels of mode {image.mode}; expected one 8-bit channel; convert the file")
    return np.array(image)


def decode_npy(path: Path, content: bytes) -> np.ndarray:
    """The numbers of a NumPy file; pickled objects are refused."""
    return read_npy(path, content)


def decode_mat(path: Path, content: bytes) -> dict[str, Any]:
    """The variables of a MATLAB file up to version 7."""
    return read_mat(path, content)


def is_npy(path: Path) -> bool:
    """Whether a file is NumPy's, by its suffix."""
    return path.suffix.lower() == ".npy"


def without_axis_of_one(values: np.ndarray) -> np.ndarray:
    """(H W) of (H W 1) or (1 H W); all else as it is."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        return values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def whole_numbers(path: Path, values: np.ndarray) -> np.ndarray:
    """An array as whole numbers (H W), yes and no as 1 and 0; ``MistakeError`` where it is another one."""
    values = without_axis_of_one(values)
    if values.dtype.kind not in "iub" or values.ndim != 2:
        kind = f"{values.dtype} of shape {list(values.shape)}"
        raise MistakeError(f"{path}: {kind}; expected whole numbers (height, width): class indices")
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


def decode_indices(path: Path, content: bytes) -> Pixels:
    """Whole numbers (H W): of an image of 1 to 16 bits, grey in RGB, or with a palette, or of a NumPy file."""
    if is_npy(path):
        return Pixels(whole_numbers(path, decode_npy(path, content)))
    pixels = read_pixels(path, content)
    grey = grey_values(path, pixels, "expected grey ones: class indices; convert the file")
    return Pixels(grey.values // pixels.step, pixels.known)


def decode_classes(
    path: Path, content: bytes, *, num_classes: int, first: int = 0, invalid: Sequence[int] = (255,)
) -> np.ndarray:
    """Class indices (H W) of a file: pixel ``first`` + k is class k, one of ``invalid`` has no label.

    uint8 with 255 where unlabelled; int32 with 65535 where there are more than 255 classes.
    """
    pixels = decode_indices(path, content)
    return classes_from_values(path, pixels.values, num_classes, first=first, invalid=invalid, known=pixels.known)


def classes_from_values(
    path: Path,
    values: np.ndarray,
    num_classes: int,
    *,
    first: int = 0,
    invalid: Sequence[int] = (255,),
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Class indices (H W), laid out as ``decode_classes`` says, of a map of whole numbers; none where not ``known``."""
    return _numbered(num_classes, first, tuple(invalid)).look_up(path, values, known)


@lru_cache
def _numbered(num_classes: int, first: int, invalid: tuple[int, ...]) -> StoredClasses:
    none = invalid_class(class_dtype(num_classes))
    return StoredClasses(
        {first + index: index for index in range(num_classes)} | dict.fromkeys(invalid, none),
        num_classes,
        expected=f"{first}..{first + num_classes - 1}, and {ranges_of(invalid)} for unlabelled",
        advice="map the labels to the classes",
    )


def checked_depth(path: Path, metres: np.ndarray) -> np.ndarray:
    """(H W) float32 metres, 0 where there is none; a trailing or leading axis of one is dropped."""
    metres = without_axis_of_one(metres)
    if metres.ndim != 2:
        raise MistakeError(f"{path}: an array of shape {list(metres.shape)}; expected depth (height, width)")
    bad = ~np.isfinite(metres)
    if bad.any():
        raise MistakeError(
            f"{path}: {int(bad.sum())} depths are not finite; expected metres, and 0 where there is none"
        )
    low, high = metres.min(initial=0), metres.max(initial=0)
    if low < 0 or high > FARTHEST_M:
        raise MistakeError(f"{path}: depths {low:g}..{high:g}; expected metres in 0..{FARTHEST_M:g}; check the unit")
    return metres.astype(np.float32)


def depth_metres(path: Path, content: bytes) -> np.ndarray:
    """Depth from a NumPy file in metres."""
    return checked_depth(path, decode_npy(path, content))


def as_vectors(path: Path, array: np.ndarray) -> np.ndarray:
    """(3 H W) float32, float64 where ``array`` is that, of (H W 3) or (3 H W), all of it finite."""
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
        raise MistakeError(f"{path}: an array of shape {list(array.shape)}; expected normals (height, width, 3)")
    vectors = array.transpose(2, 0, 1) if array.shape[-1] == 3 else array
    vectors = np.ascontiguousarray(vectors, np.float64 if array.dtype == np.float64 else np.float32)
    bad = ~np.isfinite(vectors)
    if bad.any():
        raise MistakeError(
            f"{path}: {int(bad.sum())} numbers are not finite; expected vectors, (0, 0, 0) where invalid"
        )
    return vectors


def lengths_of(vectors: np.ndarray) -> np.ndarray:
    """(H W) of (3 H W); 0 of (-1, -1, -1) and (1, 1, 1), black and white in an image, which mean no label."""
    x, y, z = vectors  # written out: sums over a leading axis take twice as long
    with np.errstate(over="ignore"):
        squares, total = x * x + y * y + z * z, x + y + z
    blank = (np.abs(squares - 3) < 1e-3) & (np.abs(np.abs(total) - 3) < 1e-3)  # together: all are 1, or all -1
    return np.where(blank, 0, np.sqrt(squares))


def unit_vectors(vectors: np.ndarray, lengths: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(3 H W) float32 of unit length where ``valid``, else (0, 0, 0)."""
    factors = np.divide(1, lengths, out=np.zeros(lengths.shape, vectors.dtype), where=valid)
    return (vectors * factors).astype(np.float32, copy=False)


def checked_normals(path: Path, normals: np.ndarray) -> np.ndarray:
    """(3 H W) float32 unit vectors from (H W 3) or (3 H W); vectors shorter than a half are invalid: (0, 0, 0)."""
    vectors = as_vectors(path, normals)
    lengths = lengths_of(vectors)
    if lengths.max(initial=0) > 2:  # the field's are unit vectors; 8-bit ones are off by a hundredth
        raise MistakeError(f"{path}: vectors up to {lengths.max():.3g} long; expected unit vectors")
    return unit_vectors(vectors, lengths, lengths > 0.5)


def normals_npy(path: Path, content: bytes) -> np.ndarray:
    """Normals from a NumPy file of vectors."""
    return checked_normals(path, decode_npy(path, content))


def vectors_of_image(path: Path, content: bytes) -> np.ndarray:
    """Vectors (H W 3) of an image whose channels c stand for 2 c / 255 - 1; (0, 0, 0) where its opacity is 0."""
    image = label_image(path, content)
    if image.mode not in ("RGB", "RGBA"):
        raise MistakeError(f"{path}: pixels of mode {image.mode}; expected three 8-bit channels; convert the file")
    pixels = np.array(image).astype(np.float32)
    vectors = pixels[..., :3] * (2 / 255) - 1
    return np.where(pixels[..., 3:] > 0, vectors, 0) if image.mode == "RGBA" else vectors


def normals_png(path: Path, content: bytes) -> np.ndarray:
    """Normals from an image."""
    return checked_normals(path, vectors_of_image(path, content))


def check_strength(path: Path, values: np.ndarray, what: str) -> None:
    """Raises ``MistakeError`` unless ``values`` is a map (H W) in 0..1 or 0..255."""
    if values.ndim != 2 or not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise MistakeError(f"{path}: shape {list(values.shape)}; expected {what} (height, width) in 0..1 or 0..255")


def binary_from_values(path: Path, values: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """(H W) uint8, 1 from the middle of the range on, which ends at 1 or at 255; in the latter 127 is unknown: 255.

    So are pixels that are not ``known``.
    """
    values = without_axis_of_one(values)
    check_strength(path, values, "boundaries")
    if values.max(initial=0) <= 1:
        found = (values >= 0.5).astype(np.uint8)
    else:
        found = np.where(values == UNKNOWN, np.uint8(255), (values > UNKNOWN).astype(np.uint8))
    return found if known is None else np.where(known, found, np.uint8(255))


def edges_npy(path: Path, content: bytes) -> np.ndarray:
    """Boundaries from a NumPy file."""
    return binary_from_values(path, decode_npy(path, content))


def edges_png(path: Path, content: bytes) -> np.ndarray:
    """Boundaries from an image."""
    return binary_from_values(path, *strength_pixels(path, content))


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals (3 H W) as an image (H W 3) uint8: 127 n + 128, so that (0, 0, 0), invalid, is kept exactly.

    Choice: rounding turns a normal by at most 0.4 degrees, far less than the error of deriving it, for a thirtieth
    of the space of float32.
    """
    return (np.rint(normals * 127) + 128).astype(np.uint8).transpose(1, 2, 0)


def decode_normals(image: np.ndarray) -> np.ndarray:
    """The unit normals (3 H W) float32 of an image made by ``encode_normals``."""
    normals = image.transpose(2, 0, 1).astype(np.float32) - 128
    length = np.sqrt((normals**2).sum(0))
    return np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
