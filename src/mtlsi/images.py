"""The one image reader: whatever a file holds, as upright RGB pixels.

Data sets and prediction both read through it, so that a network is trained on the same pixels that it is shown later.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mtlsi.errors import MistakeError
from mtlsi.reading import check_plain

FilePath = str | os.PathLike[str]
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error,
)  # fmt: skip
"""What Pillow's readers raise on broken files."""
UPRIGHT = 1
"""The EXIF orientation of pixels stored as they are to be shown."""
SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations that swap height and width."""
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif", ".gif", ".pgm", ".pnm", ".ppm",
    ".tga",
)  # fmt: skip
"""How the files end that folders are searched for, in any letter case."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "HEIF", "TGA")
"""What is ever opened, as Pillow calls it. Others are refused: its reader of PostScript, for one, runs another program.
TGA, which says nothing of itself, comes last."""
FEW = 5
"""So many of them Pillow reads without looking for all its readers."""
EXPECTED = "expected JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIC"
BAND = 256
"""Rows that are converted at a time, so that a large image is held once as it is and once as RGB."""
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
_NOTED: ContextVar[list[int] | None] = ContextVar("noted", default=None)


class _Quiet:
    """While any thread reads an image: Pillow's remarks on odd metadata are not shown, and a bomb is an error.

    Python's filters of warnings belong to the whole process: with a context for each thread, one thread that ends
    would take them from another.
    """

    def __init__(self) -> None:
        self.lock, self.num_readers = threading.Lock(), 0
        self.filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if not self.num_readers:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self.num_readers += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.num_readers -= 1
            if not self.num_readers:
                self.filters.__exit__(None, None, None)


_QUIET = _Quiet()


@contextmanager
def open_image(
    name: object,
    file: FilePath | BinaryIO,
    *,
    most_pixels: int | None = None,
) -> Iterator[Image.Image]:
    """The image in ``file``, decoded whole; of an animation the first frame. ``name`` begins every message.

    Raises ``MistakeError`` where the file is none of ``FORMATS``, is damaged, is no plain file, or, before it is decoded,
    has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (89 million) or more than ``most_pixels``.
    A ``MistakeError`` raised in the ``with`` block gets ``name`` too.
    """
    try:
        if isinstance(file, str | os.PathLike):
            check_plain(Path(file))
        with _QUIET, _opened(file) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise MistakeError(f"{size}; expected at most {most_pixels // 10**6} million: make it smaller first")
            image.load()
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = Image.MAX_IMAGE_PIXELS if most_pixels is None else f"{most_pixels // 10**6} million"
        raise MistakeError(f"{name}: more than {most} pixels; make it smaller first") from error
    except MistakeError as error:
        raise MistakeError(str(error) if str(error).startswith(f"{name}: ") else f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise MistakeError(f"{name}: not a whole image; {EXPECTED}") from error
    except UNREADABLE as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        raise MistakeError(f"{name}: not a whole image ({reason}); give an undamaged copy") from error
    except MemoryError as error:  # a chunk may say that it has four gigabytes
        raise MistakeError(
            f"{name}: takes more memory than there is; make it smaller, or give an undamaged copy"
        ) from error


def peek_image(path: FilePath) -> Image.Image:
    """An image's size, mode and metadata, its pixels not decoded; to be closed. Raises ``UNREADABLE``."""
    check_plain(Path(path))
    with _QUIET:
        return _identified(path)


def size_of_jpeg(content: bytes) -> tuple[int, int]:
    """Height and width of a JPEG file, not decoded. Raises ``UNREADABLE``."""
    with _QUIET, Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        return image.height, image.width


def _opened(file: FilePath | BinaryIO) -> Image.Image:
    """What Pillow opens, with the reader of HEIC where it is needed; ``MistakeError`` names a reader that is missing."""
    try:
        return _identified(file)
    except Image.UnidentifiedImageError:
        brand = _brand(file)
        if brand in AVIF_BRANDS:
            raise MistakeError(
                "AVIF, which this Pillow cannot read; pip install --upgrade pillow, or convert the image to PNG"
            ) from None
        if brand not in HEIF_BRANDS:
            raise
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]: an extra
    except ImportError as error:
        raise MistakeError("HEIC, which needs pip install 'mtlsi[heic]'; or convert the image to JPEG") from error
    register_heif_opener()
    return _identified(file)


def _identified(file: FilePath | BinaryIO) -> Image.Image:
    """Opened as one of ``FORMATS``, those first that need no search for further readers."""
    try:
        return Image.open(file, formats=FORMATS[:FEW])
    except Image.UnidentifiedImageError:
        Image.init()
        rest = [name for name in FORMATS[FEW:] if name in Image.OPEN]
        return Image.open(file, formats=rest)


def _brand(file: FilePath | BinaryIO) -> bytes:
    """What kind of ISO media file it is, by the four letters that say so; empty where it is none."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            head = opened.read(12)
    else:
        file.seek(0)
        head = file.read(12)
        file.seek(0)
    return head[8:12] if head[4:8] == b"ftyp" else b""


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any PIL image as upright ``(H W 3) uint8``.

    Grey, palette, CMYK and one-bit images become RGB; 16-bit grey is scaled from 0..65535. Choice: a transparent image
    is composited onto white, as viewers show it.
    Raises ``MistakeError`` for floating-point pixels and for grey values outside 0..65535.
    """
    tag = orientation(image)
    if (noted := _NOTED.get()) is not None:
        noted.append(tag)
    if tag != UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise MistakeError("an image of floating-point numbers; expected 8 or 16 bits: convert it first")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, BAND):
        band = image.crop((0, top, image.width, min(top + BAND, image.height)))
        pixels[top : top + BAND] = _band_to_rgb(band, image.info)
    return pixels


def _band_to_rgb(band: Image.Image, info: dict) -> np.ndarray:
    """Some rows of an image as RGB (H W 3) uint8."""
    if band.mode == "I" or band.mode.startswith("I;16"):
        return np.asarray(Image.fromarray(to_8_bits(np.asarray(band))).convert("RGB"))
    if band.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in info:
        clear = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.asarray(band.convert("RGB"))


@contextmanager
def noting_orientation(tags: list[int]) -> Iterator[None]:
    """Adds to ``tags`` the orientation, as stored, of every image that ``to_rgb`` reads meanwhile in this thread."""
    token = _NOTED.set(tags)
    try:
        yield
    finally:
        _NOTED.reset(token)


def to_8_bits(grey: np.ndarray) -> np.ndarray:
    """16-bit values 0..65535 scaled to uint8 0..255, rounded. Raises ``MistakeError`` for values outside."""
    values = grey.astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise MistakeError("a grey image with values outside 0..65535; expected 8 or 16 bits: convert it first")
    return ((values + 128) // 257).astype(np.uint8)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none or the metadata are broken, as viewers do."""
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except UNREADABLE:
        return UPRIGHT
    return tag if tag in range(1, 9) else UPRIGHT


def is_plain(path: FilePath) -> bool:
    """Whether a file is a JPEG whose stored pixels ``to_rgb`` gives: grey or RGB without an orientation."""
    with open_image(path, path) as image:
        return image.format == "JPEG" and image.mode in ("L", "RGB") and orientation(image) == UPRIGHT


def turned_label(image: FilePath | None, label_hw: Sequence[int], image_hw: Sequence[int]) -> str | None:
    """What to say where labels lie as an image's pixels are stored but the image is read upright; else None.

    Choice: labels are never turned by their image's EXIF tag: on which of the two they were drawn cannot be known where
    the image is square or the tag is a half turn.
    """
    if image is None or tuple(label_hw) == tuple(image_hw) or tuple(label_hw) != tuple(image_hw)[::-1]:
        return None
    with open_image(image, image) as opened:
        tag = orientation(opened)
    if tag not in SIDEWAYS:
        return None
    sizes = "its labels are {}x{}, the upright image {}x{}".format(*label_hw, *image_hw)
    return f"{image}: orientation tag {tag}: {sizes}; turn the labels too, or remove the tag from the image"
