"""The numbers that the image file of a label holds, whatever kind of image a tool made of them.

One channel of 1, 2, 4, 8 or 16 bits, a palette, grey as RGB, colours, each with or without opacity. A pixel of opacity 0 has
no label; all other opacities, and a palette's transparency, say nothing. Lossy files are refused: what they give back are
not the numbers that were stored.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.images import BITS_PER_SAMPLE, is_white_zero, open_image

LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")
"""Pillow's names of formats that store about what they were given."""
LOSSY_ADVICE = (
    "pixels beside edges have values that nobody gave them; give the label as PNG, made from what it was drawn in"
)
ONE_CHANNEL = ("1", "L", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of one channel of whole numbers."""
WITH_OPACITY = ("LA", "PA", "RGBA")
STEPS = {1: 255, 2: 85, 4: 17}
"""By bits of a grey image: the factor by which Pillow spreads its values over 0..255."""


@dataclass(frozen=True)
class Pixels:
    """What an image file stores."""

    values: np.ndarray
    """(H W) whole numbers, a palette's by index; or colours (H W 3) uint8."""
    known: np.ndarray | None = None
    """(H W) bool, False where the opacity is 0; None: no pixel has that."""
    palette: np.ndarray | None = None
    """The colours (n 3) uint8 that the indices stand for."""
    step: int = 1
    """The values of 1, 2 or 4 bits are spread over 0..255 in this step."""


def label_image(path: Path, content: bytes) -> Image.Image:
    """The image file of a label as it is stored, decoded whole. An EXIF orientation is ignored.

    Raises ``MistakeError`` for a lossy file, and for a TIFF of 16 bits whose 0 is white: tools read it in two ways.
    """
    with open_image(path, io.BytesIO(content)) as image:
        if lossy := lossy_format(image, content):
            raise MistakeError(f"a lossy file ({lossy}): {LOSSY_ADVICE}")
        if image.mode.startswith("I;16") and is_white_zero(getattr(image, "tag_v2", {})):
            raise MistakeError("16 bits of which 0 is white; expected 0 to be black: convert the file")
        return image


def lossy_format(image: Image.Image, content: bytes) -> str:
    """The name of the lossy format in which ``image`` is stored; empty where it is not."""
    if image.format in LOSSY:
        return image.format
    if image.format == "WEBP" and b"VP8L" not in content:
        return "WebP"
    return "JPEG in TIFF" if image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp") else ""


def read_pixels(path: Path, content: bytes) -> Pixels:
    """What the image file of a label stores. Raises ``MistakeError`` for fractions, lossy files and colours of 16 bits."""
    image = label_image(path, content)
    if image.mode == "1":
        return Pixels(np.where(np.array(image), np.uint8(255), np.uint8(0)), step=STEPS[1])
    bits = _bits_a_channel(image, content)
    if image.mode in ONE_CHANNEL:
        values = np.array(image)
        wide = values.dtype.itemsize > 1
        return Pixels(values.astype(np.int32) if wide else values, step=STEPS.get(bits, 1))
    if image.mode not in ("P", "RGB", *WITH_OPACITY):
        raise MistakeError(
            f"{path}: pixels of mode {image.mode}; expected whole numbers in one channel, a palette or RGB; convert the file"
        )
    if bits == 16:
        raise MistakeError(f"{path}: colours of 16 bits; expected 8 bits, or one channel of 16; convert the file")
    values, known = np.array(image), None
    if image.mode in WITH_OPACITY:
        values, opaque = values[..., :-1], values[..., -1] > 0
        known = None if opaque.all() else opaque
        values = values if values.shape[-1] == 3 else values[..., 0]
    palette = None
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return Pixels(values, known, palette)


def grey_values(path: Path, pixels: Pixels, advice: str) -> Pixels:
    """``pixels`` with one channel; raises ``MistakeError``, ``advice`` at its end, for colours."""
    values = pixels.values
    if values.ndim == 2:
        return pixels
    coloured = (values != values[..., :1]).any(-1)
    if pixels.known is not None:
        coloured &= pixels.known
    if coloured.any():
        colour = tuple(values[coloured][0].tolist())
        raise MistakeError(f"{path}: coloured pixels, such as {colour}; {advice}")
    return Pixels(values[..., 0], pixels.known)


def strength_pixels(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """How strong each pixel is, (H W) in 0..1 or 0..255 as it is stored, and where it has a label (None: everywhere).

    Of a grey palette it is the colours that count. 16 bits are brought to 0..255; their values up to 255 are 8 bits that
    were stored in more.
    """
    pixels = read_pixels(path, content)
    values, palette = pixels.values, pixels.palette
    if palette is not None:
        indices = np.unique(values)
        shown = np.zeros((256, 3), np.uint8)
        shown[: len(palette)] = palette[:256]
        if (shown[indices] == shown[indices][:, :1]).all():
            values = shown[:, 0][values]
        return values, pixels.known
    values = grey_values(path, pixels, "expected grey ones, white = yes; convert the file").values
    if values.dtype != np.uint8 and values.max(initial=0) > 255:
        return values / 257, pixels.known
    return values, pixels.known


def percent(share: float) -> str:
    """A share in two figures: ``0.25 %``, ``100 %``."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _bits_a_channel(image: Image.Image, content: bytes) -> int:
    """Of PNG and TIFF, the formats in which these may be other than 8."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return content[24]
    return getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))[0]
