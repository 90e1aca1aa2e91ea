"""Images given by a person: files, PIL images, arrays and tensors, all to upright RGB pixels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.images import FilePath, open_image, to_rgb

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def read_image(path: FilePath) -> np.ndarray:
    """The image in a file, upright ``(H W 3) uint8``; see ``to_rgb``.

    Raises ``MistakeError`` where there is no such file, it cannot be read whole, or it has more than
    ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (89 million).
    """
    check_file(path := Path(path))
    with open_image(path, path) as image:
        return to_rgb(image)


def check_file(path: Path) -> None:
    """Raises ``MistakeError`` where ``path`` cannot be an image, without opening it."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there" if not path.exists() else "not a plain file"
        raise MistakeError(f"{path}: {what}; expected an image file such as photo.jpg")
    if not path.stat().st_size:
        raise MistakeError(f"{path}: an empty file; expected an image")
    if path.suffix.lower() in VIDEO_ENDINGS:
        raise MistakeError(f"{path}: videos are not supported yet; save its frames in a folder and give that")


def as_pixels(image: FilePath | Image.Image | np.ndarray) -> np.ndarray:
    """The image as upright ``(H W 3) uint8``. Raises ``MistakeError`` for an array of another layout or type."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise MistakeError(
            f"an array of shape {image.shape}, {image.dtype}; expected an image (height, width, 3), uint8"
        )
    return image
