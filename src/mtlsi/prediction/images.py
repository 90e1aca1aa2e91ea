"""Images given by a person: files, PIL images, arrays and tensors, all to upright RGB pixels."""

from __future__ import annotations

import os
import re
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, Union, cast

import numpy as np
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.images import FilePath, open_image, to_8_bits, to_rgb

if TYPE_CHECKING:
    import torch

ImageLike = Union[FilePath, bytes, bytearray, memoryview, BinaryIO, Image.Image, np.ndarray, "torch.Tensor"]
"""What ``as_pixels`` takes as one image."""
VIDEO_ENDINGS = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
"""How the files end that are taken for videos, in any letter case."""


def read_image(path: FilePath) -> np.ndarray:
    """The image in a file, upright ``(H W 3) uint8``; see ``to_rgb``.

    Raises ``MistakeError`` where there is no such file, it cannot be read whole, or it has more than
    ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (89 million).
    """
    check_file(path := Path(path))
    if not path.stat().st_size:
        raise MistakeError(f"{path}: an empty file; expected an image")
    with open_image(path, path) as image:
        return to_rgb(image)


def check_file(path: Path) -> None:
    """Raises ``MistakeError`` where ``path`` cannot be an image, without opening it."""
    if re.match(r"[a-z][a-z0-9]{1,6}:/+\w", str(path)) and not path.exists():
        raise MistakeError(f"{path}: an address; expected a file: download it first")
    if not path.is_file():
        links = "a link that leads nowhere" if path.is_symlink() else "not there"
        what = "a folder" if path.is_dir() else links if not path.exists() else "not a plain file"
        raise MistakeError(f"{path}: {what}; expected an image file such as photo.jpg")
    if path.suffix.lower() in VIDEO_ENDINGS:
        raise MistakeError(
            f"{path}: a video; expected an image: videos are predicted one at a time, mtlsi predict CLIP --out result.mp4"
        )


def as_pixels(image: ImageLike) -> np.ndarray:
    """One image of any kind as upright ``(H W 3) uint8``.

    A path; the bytes of an image file, or a file object opened in binary mode; a PIL image; an array ``(H W 3)``,
    ``(H W 4)`` RGBA, ``(H W)`` or ``(H W 1)`` grey; a tensor ``(3 H W)`` or ``(1 3 H W)``. Arrays and tensors hold
    uint8, or floats in 0..1; grey arrays may be uint16.
    Raises ``MistakeError`` for anything else, and for a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        return _array_pixels(image)
    if _is_tensor(image):
        return _tensor_pixels(image)
    name, file = "image bytes", image
    if isinstance(image, bytes | bytearray | memoryview):
        file = BytesIO(image)
    elif hasattr(image, "read"):
        name = getattr(image, "name", "file object")
    else:
        raise MistakeError(
            f"an image of type {type(image).__name__}; expected a path, bytes, a file object, a PIL image, an array "
            "(height, width, 3) or a tensor (3, height, width)"
        )
    with open_image(name, cast(BinaryIO, file)) as opened:
        return to_rgb(opened)


def _is_tensor(image: Any) -> TypeGuard[torch.Tensor]:
    """Whether it is one of torch's; where nobody has imported torch, which takes seconds, nothing is."""
    return "torch" in sys.modules and isinstance(image, sys.modules["torch"].Tensor)


def _tensor_pixels(tensor: torch.Tensor) -> np.ndarray:
    if tensor.ndim == 4 and tensor.shape[0] > 1:
        raise MistakeError(f"a batch {tuple(tensor.shape)}; expected one image, or a list: give list(images)")
    one = tensor[0] if tensor.ndim == 4 and len(tensor) else tensor
    if one.ndim != 3 or one.shape[0] != 3:
        raise MistakeError(f"a tensor of shape {tuple(tensor.shape)}; expected an image (3, height, width)")
    one = one.detach().cpu().permute(1, 2, 0)
    return _array_pixels((one.float() if one.is_floating_point() else one).numpy())


def _array_pixels(array: np.ndarray) -> np.ndarray:
    given = f"an array of shape {array.shape}, {array.dtype}"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise MistakeError(
            f"{given}; expected an image (height, width, 3), RGBA (height, width, 4) or grey (height, width)"
        )
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # false for NaN too
            raise MistakeError(f"{given}, values {low:g}..{high:g}; expected 0..1 (not normalised), or uint8 in 0..255")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16 and channels == 1:
        array = to_8_bits(array)
    elif array.dtype != np.uint8:
        raise MistakeError(f"{given}; expected uint8, or floats in 0..1")
    if channels == 4:
        return to_rgb(Image.fromarray(np.ascontiguousarray(array)))
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, -1)
    return array
