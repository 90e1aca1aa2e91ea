"""The one image reader: whatever a file holds, as upright RGB pixels.

Data sets and prediction both read through it, so that a network is trained on the same pixels that it is shown later.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mtlsi import ppm
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
BACK = {6: 8, 8: 6}
"""The EXIF orientations whose turn another one undoes; each of the rest undoes itself."""
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif", ".gif", ".pgm", ".pnm", ".ppm",
    ".tga",
)  # fmt: skip
"""How the files end that folders are searched for, in any letter case."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "HEIF", "TGA")
"""What is ever opened, as Pillow calls it. Others are refused: its reader of PostScript, for one, runs another program.
TGA, which says nothing of itself, comes last."""
FEW = 5
"""So many of them Pillow reads without looking for all its readers."""
EXPECTED = "expected JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIC"
BAND = 256
"""Rows that are converted at a time, so that a large image is held once as it is and once as RGB."""
MOST_SCANS = 64
"""Of a JPEG. Each is a pass over all of its pixels; cameras and editors write up to about a dozen."""
HEAVY = 5 * 10**11
"""Bytes times pixels of a JPEG whose scans are counted: of the shortest possible scans fewer take a few seconds at most."""
WIDEST_RLE = 2**16 - 1
"""Columns of a BMP that is run-length encoded: of four bytes Pillow's decoder makes 255 rows, in Python, before it looks how
many the image has. PNG holds images so wide better."""
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""What ends a scan or begins a part of a JPEG: neither stuffed bytes nor marks within a scan."""
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
    """The image in ``file``, decoded whole, as it is stored; of an animation the first frame. ``name`` begins every message.

    Its EXIF orientation is left to ``to_rgb``, of a TIFF, too.
    Raises ``MistakeError`` where the file is none of ``FORMATS``, is damaged, is no plain file, or, before it is decoded,
    has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (89 million) or more than ``most_pixels``, very many scans, or, as a
    BMP that is run-length encoded, very many columns, or, as a PPM, very many comments.
    A ``MistakeError`` raised in the ``with`` block gets ``name`` too.
    """
    try:
        if isinstance(file, str | os.PathLike):
            check_plain(Path(file))
        with _QUIET, ExitStack() as stack:
            # by its path, Pillow maps a TIFF into memory with height and width swapped where its tag swaps them
            opened = stack.enter_context(open(file, "rb")) if isinstance(file, str | os.PathLike) else file
            image = stack.enter_context(_opened(opened))
            if most_pixels is not None and image.width * image.height > most_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise MistakeError(f"{size}; expected at most {most_pixels // 10**6} million: make it smaller first")
            if image.format in ("JPEG", "MPO"):
                begin = opened.tell()
                if opened.seek(0, os.SEEK_END) * image.width * image.height >= HEAVY:  # few are read twice
                    opened.seek(0)
                    _check_scans(opened.read())
                opened.seek(begin)
            _check_rle(image)
            ppm.read_as_raw(image, opened)
            _load_as_stored(image)
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
        if isinstance(error, PermissionError):
            raise MistakeError(f"{name}: may not be read ({reason}); give yourself the permission to") from error
        raise MistakeError(f"{name}: not a whole image ({reason}); give an undamaged copy") from error
    except MemoryError as error:  # a chunk may say that it has four gigabytes
        raise MistakeError(
            f"{name}: takes more memory than there is; make it smaller, or give an undamaged copy"
        ) from error


def pixel_limit() -> float:
    """How many an image may have: ``PIL.Image.MAX_IMAGE_PIXELS``, where a program has set None any number."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS


def peek_image(path: FilePath) -> Image.Image:
    """An image's size, mode and metadata, its pixels not decoded; to be closed. Raises ``UNREADABLE``."""
    check_plain(Path(path))
    with _QUIET:
        return _identified(path)


def size_of_jpeg(content: bytes) -> tuple[int, int]:
    """Height and width of a JPEG file, not decoded. Raises ``UNREADABLE``, and ``MistakeError`` for too many scans."""
    with _QUIET, Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        if len(content) * image.width * image.height >= HEAVY:
            _check_scans(content)
        return image.height, image.width


def _check_scans(content: bytes) -> None:
    """Raises ``MistakeError`` for a JPEG file of very many scans, which may be minutes of work."""
    at, num_scans = 2, 0
    while (marker := _MARKER.search(content, at)) is not None and marker[0] != b"\xff\xd9":  # the end of the image
        num_scans += marker[0] == b"\xff\xda"
        if num_scans > MOST_SCANS:
            raise MistakeError(f"a JPEG of more than {MOST_SCANS} scans; expected up to a dozen: save it again")
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")


def _check_rle(image: Image.Image) -> None:
    """Raises ``MistakeError`` for a run-length encoded BMP so wide that a few of its bytes may become gigabytes."""
    if image.width > WIDEST_RLE and any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ())):
        raise MistakeError(
            f"a run-length encoded BMP of {image.width} columns; expected at most {WIDEST_RLE}: save it as PNG"
        )


def _load_as_stored(image: Image.Image) -> None:
    """Decode an image; one that Pillow turns meanwhile, which is a TIFF with an orientation, is turned back."""
    tag = orientation(image) if image.format == "TIFF" else UPRIGHT
    image.load()
    if tag != UPRIGHT and orientation(image) == UPRIGHT:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = BACK.get(tag, tag)
        ImageOps.exif_transpose(image, in_place=True)
        exif[ExifTags.Base.Orientation] = tag


def _opened(file: BinaryIO) -> Image.Image:
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
    if re.match(rb"P[0-6fy]", _head(file, 2)):
        ppm.check_header(_head(file, ppm.HEADER))
    try:
        return Image.open(file, formats=FORMATS[:FEW])
    except Image.UnidentifiedImageError:
        Image.init()
        rest = [name for name in FORMATS[FEW:] if name in Image.OPEN]
        return Image.open(file, formats=rest)


def _head(file: FilePath | BinaryIO, num_bytes: int) -> bytes:
    """The first bytes of a file; one that is open goes back to its beginning."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return opened.read(num_bytes)
    file.seek(0)
    head = file.read(num_bytes)
    file.seek(0)
    return head


def _brand(file: BinaryIO) -> bytes:
    """What kind of ISO media file it is, by the four letters that say so; empty where it is none."""
    head = _head(file, 12)
    return head[8:12] if head[4:8] == b"ftyp" else b""


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any PIL image as upright ``(H W 3) uint8``.

    Grey, palette, CMYK and one-bit images become RGB; 16-bit grey is scaled from 0..65535, 12-bit grey from 0..4095, and
    0 is white where a TIFF says so. Choice: a transparent image is composited onto white, as viewers show it.
    Raises ``MistakeError`` for floating-point pixels and for grey values outside 0..65535.
    """
    tag, tiff_tags = orientation(image), getattr(image, "tag_v2", {})
    if (noted := _NOTED.get()) is not None:
        noted.append(tag)
    if image.mode == "F":
        raise MistakeError("an image of floating-point numbers; expected 8 or 16 bits: convert it first")
    upright_hw = (image.width, image.height) if tag in SIDEWAYS else (image.height, image.width)
    pixels = np.empty((*upright_hw, 3), np.uint8)
    stored = _as_stored(pixels, tag)
    for top in range(0, image.height, BAND):
        band = image.crop((0, top, image.width, min(top + BAND, image.height)))
        stored[top : top + BAND] = _band_to_rgb(band, image.info, tiff_tags)
    return pixels


def _as_stored(upright: np.ndarray, tag: int) -> np.ndarray:
    """The pixels of an upright image, in the rows and columns of one that is stored with the EXIF orientation ``tag``."""
    turned = upright.swapaxes(0, 1) if tag in SIDEWAYS else upright
    return turned[:: -1 if tag in (3, 4, 6, 7) else 1, :: -1 if tag in (2, 3, 7, 8) else 1]


def _band_to_rgb(band: Image.Image, info: dict, tiff_tags: Mapping[int, Any]) -> np.ndarray:
    """Some rows of an image as RGB (H W 3) uint8."""
    if band.mode == "I" or band.mode.startswith("I;16"):
        grey = np.asarray(band).astype(np.int64)
        if tiff_tags.get(BITS_PER_SAMPLE) == (12,):
            grey = grey * 65535 // 4095
        if is_white_zero(tiff_tags):  # which Pillow heeds up to 8 bits
            grey = 65535 - grey
        return np.asarray(Image.fromarray(to_8_bits(grey)).convert("RGB"))
    if band.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in info:
        clear = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.asarray(band.convert("RGB"))


def is_white_zero(tiff_tags: Mapping[int, Any]) -> bool:
    """Whether the tags of a TIFF say that the smallest value is white."""
    return tiff_tags.get(PHOTOMETRIC) == 0


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
