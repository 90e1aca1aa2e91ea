"""Images given by a person: files, PIL images and arrays, all to upright RGB pixels."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mtlsi.errors import MistakeError

FilePath = str | os.PathLike[str]
IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error,
)  # fmt: skip
"""What Pillow's readers raise on broken files."""


def read_image(path: FilePath) -> np.ndarray:
    """The image in a file, ``(H W 3) uint8`` RGB, upright as its EXIF orientation says.

    Grey, palette, CMYK and one-bit images become RGB; 16-bit grey is scaled from 0..65535; of an animation the first
    frame is taken. Choice: a transparent image is laid on white, as viewers show it.
    Raises ``MistakeError`` where there is no such file, it cannot be read whole, or it has more than
    ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (89 million).
    """
    check_file(path := Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MistakeError(f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller first") from error
    except MistakeError as error:
        raise MistakeError(f"{path}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise MistakeError(f"{path}: not an image that can be read; expected JPEG, PNG, WebP or TIFF") from error
    except UNREADABLE as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        raise MistakeError(f"{path}: the image is damaged or cannot be read ({reason}); give a whole copy") from error


def check_file(path: Path) -> None:
    """Raises ``MistakeError`` where ``path`` cannot be an image, without opening it."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there" if not path.exists() else "not a plain file"
        raise MistakeError(f"{path}: {what}; expected an image file such as photo.jpg")
    if not path.stat().st_size:
        raise MistakeError(f"{path}: an empty file; expected an image")
    if path.suffix.lower() in VIDEO_ENDINGS:
        raise MistakeError(f"{path}: videos are not supported yet; save its frames in a folder and give that")


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any PIL image as upright ``(H W 3) uint8``."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise MistakeError("an image of floating-point numbers; expected 8 or 16 bits: convert it first")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise MistakeError("a grey image with values outside 0..65535; expected 8 or 16 bits: convert it first")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.array(image.convert("RGB"))


def as_pixels(image: FilePath | Image.Image | np.ndarray) -> np.ndarray:
    """The image as upright ``(H W 3) uint8``. Raises ``MistakeError`` for an array of another layout or type."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise MistakeError(
            f"an array of shape {image.shape}, {image.dtype}; expected an image (height, width, 3), uint8"
        )
    return image
