"""The bytes of a label file to an array in the project's conventions; a file that is not what it should be is named.

Every decoder takes the path (for messages) and the content, and gives an array laid out as ``tasks.py`` says: maps
(H W), vectors (3 H W), images (H W 3). It raises ``MistakeError`` for what it cannot read and for values out of range.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever its parser does
        raise MistakeError(
            f"{path}: not a whole NumPy file ({len(content)} bytes); download it again or delete it"
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise MistakeError(f"{path}: holds {getattr(values, 'dtype', 'no numbers')}; expected an array of numbers")
    return values


def decode_mat(path: Path, content: bytes) -> dict[str, Any]:
    """The variables of a MATLAB file up to version 7."""
    from scipy.io import loadmat

    try:
        return loadmat(io.BytesIO(content))
    except Exception as error:
        raise MistakeError(
            f"{path}: not a whole MATLAB file ({len(content)} bytes); download it again or delete it"
        ) from error


def is_npy(path: Path) -> bool:
    """Whether a file is NumPy's, by its suffix."""
    return path.suffix.lower() == ".npy"


def decode_indices(path: Path, content: bytes) -> np.ndarray:
    """Whole numbers (H W): of an image with one channel of 8 or 16 bits, of a palette image, or of a NumPy file."""
    if is_npy(path):
        values = decode_npy(path, content)
        if values.dtype.kind not in "iu" or values.ndim != 2:
            kind = f"{values.dtype} of shape {list(values.shape)}"
            raise MistakeError(f"{path}: {kind}; expected whole numbers (height, width): class indices")
        return values
    image = decode_image(path, content)
    if image.mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise MistakeError(
            f"{path}: pixels of mode {image.mode}; expected one channel of 8 or 16 bits; convert the file"
        )
    return np.array(image)


def decode_classes(
    path: Path, content: bytes, *, num_classes: int, first: int = 0, invalid: Sequence[int] = (255,)
) -> np.ndarray:
    """Class indices (H W) of a file: pixel ``first`` + k is class k, one of ``invalid`` has no label.

    uint8 with 255 where unlabelled; int32 with 65535 where there are more than 255 classes.
    """
    return classes_from_values(path, decode_indices(path, content), num_classes, first=first, invalid=invalid)


def classes_from_values(
    path: Path, values: np.ndarray, num_classes: int, *, first: int = 0, invalid: Sequence[int] = (255,)
) -> np.ndarray:
    """Class indices (H W), laid out as ``decode_classes`` says, of a map of whole numbers."""
    dtype = class_dtype(num_classes)
    table = np.full(max(first + num_classes, *invalid, 0) + 1, -1)
    table[first : first + num_classes] = np.arange(num_classes)
    table[list(invalid)] = invalid_class(dtype)
    known = (values >= 0) & (values < len(table))
    classes = np.where(known, table[np.where(known, values, 0)], -1)
    if (classes < 0).any():
        unlabelled = ", ".join(map(str, invalid)) or "none"
        raise MistakeError(
            f"{path}: label {values[classes < 0].max()}; expected {first}..{first + num_classes - 1}, and {unlabelled} for "
            "unlabelled; map the labels to the classes"
        )
    return classes.astype(dtype)


def checked_depth(path: Path, metres: np.ndarray) -> np.ndarray:
    """(H W) float32 metres, 0 where there is none; a trailing or leading axis of one is dropped."""
    if metres.ndim == 3 and 1 in (metres.shape[0], metres.shape[-1]):
        metres = metres[0] if metres.shape[0] == 1 else metres[..., 0]
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


def checked_normals(path: Path, normals: np.ndarray) -> np.ndarray:
    """(3 H W) float32 unit vectors from (H W 3) or (3 H W); vectors shorter than a half are invalid: (0, 0, 0)."""
    if normals.ndim != 3 or 3 not in (normals.shape[0], normals.shape[-1]):
        raise MistakeError(f"{path}: an array of shape {list(normals.shape)}; expected normals (height, width, 3)")
    if normals.shape[-1] == 3:
        normals = normals.transpose(2, 0, 1)
    bad = ~np.isfinite(normals)
    if bad.any():
        raise MistakeError(
            f"{path}: {int(bad.sum())} numbers are not finite; expected vectors, (0, 0, 0) where invalid"
        )
    length = np.sqrt((normals.astype(np.float64) ** 2).sum(0))
    if length.max(initial=0) > 2:  # the field's are unit vectors; 8-bit ones are off by a hundredth
        raise MistakeError(f"{path}: vectors up to {length.max():.3g} long; expected unit vectors")
    return np.divide(normals, length, out=np.zeros(normals.shape), where=length > 0.5).astype(np.float32)


def normals_npy(path: Path, content: bytes) -> np.ndarray:
    """Normals from a NumPy file of vectors."""
    return checked_normals(path, decode_npy(path, content))


def normals_png(path: Path, content: bytes) -> np.ndarray:
    """Normals from an image whose channels c stand for 2 c / 255 - 1."""
    image = decode_image(path, content)
    if image.mode != "RGB":
        raise MistakeError(f"{path}: pixels of mode {image.mode}; expected three 8-bit channels; convert the file")
    return checked_normals(path, np.array(image).astype(np.float32) * (2 / 255) - 1)


def check_strength(path: Path, values: np.ndarray, what: str) -> None:
    """Raises ``MistakeError`` unless ``values`` is a map (H W) in 0..1 or 0..255."""
    if values.ndim != 2 or not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise MistakeError(f"{path}: shape {list(values.shape)}; expected {what} (height, width) in 0..1 or 0..255")


def binary_from_values(path: Path, values: np.ndarray) -> np.ndarray:
    """(H W) uint8, 1 from the middle of the range on, which ends at 1 or at 255; in the latter 127 is unknown: 255."""
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    check_strength(path, values, "boundaries")
    if values.max(initial=0) <= 1:
        return (values >= 0.5).astype(np.uint8)
    return np.where(values == UNKNOWN, 255, values > UNKNOWN).astype(np.uint8)


def edges_npy(path: Path, content: bytes) -> np.ndarray:
    """Boundaries from a NumPy file."""
    return binary_from_values(path, decode_npy(path, content))


def edges_png(path: Path, content: bytes) -> np.ndarray:
    """Boundaries from an image."""
    return binary_from_values(path, decode_grey(path, content))


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
