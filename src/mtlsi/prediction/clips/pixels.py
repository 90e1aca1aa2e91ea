"""From a decoded picture of a video to upright RGB pixels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from mtlsi.images import to_rgb

WIDEST_PIXEL = 4
"""Pixels are taken to be square where a file says that one side is more than this many times the other."""
MATRIX = "DISPLAYMATRIX"
SPACES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M"}
"""By FFmpeg's number of a colour space, PyAV's name of it."""
UNSAID, HIGH_DEFINITION = 2, 720


class Upright:
    """Turns and mirrors every picture of a clip as its file says, and makes its pixels square: ``upright(frame)``.

    Size, turn and shape of the pixels are those of the clip's first picture; later ones of another size are brought to it.
    Choice: a picture with an alpha channel is composited onto white, as images are.
    """

    def __init__(self, pixel_aspect: Fraction | None):
        self.pixel_aspect = _plausible(pixel_aspect)
        self.size_wh: tuple[int, int] | None = None
        self.turn: tuple[int, int, int, int] = (1, 0, 0, 1)

    def __call__(self, frame: Any) -> np.ndarray:
        """The pixels ``(H W 3) uint8``. 8 bits of each colour are kept; the file's colour space is honoured."""
        if self.size_wh is None:
            self.size_wh = max(1, round(frame.width * self.pixel_aspect)), frame.height
            self.turn = turn_of(frame)
        width, height = self.size_wh
        shape = {"width": width, "height": height, "src_colorspace": colour_space(frame)}
        if any(component.is_alpha for component in frame.format.components):
            rgba = frame.to_ndarray(format="rgba", **shape)
            pixels = to_rgb(Image.fromarray(rgba))
        else:
            pixels = frame.to_ndarray(format="rgb24", **shape)
        return turned(pixels, self.turn)


def colour_space(frame: Any) -> str | None:
    """The name of a picture's colour space; None leaves it to FFmpeg.

    Choice: where a file does not say, that of high definition from 720 rows on, as players take it.
    """
    if frame.colorspace == UNSAID and frame.height >= HIGH_DEFINITION and not frame.format.is_rgb:
        return SPACES[1]
    return SPACES.get(frame.colorspace)


def turn_of(frame: Any) -> tuple[int, int, int, int]:
    """The first two rows and columns of the picture's display matrix, a b c d; of an upright picture 1 0 0 1."""
    for data in frame.side_data:
        if data.type.name == MATRIX:
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            return a, b, c, d
    return 1, 0, 0, 1


def turned(pixels: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels as a display matrix shows them: x' = a x + c y, y' = b x + d y.

    Choice: the nearest of the eight ways in which a picture fills a rectangle.
    """
    a, b, c, d = turn
    if abs(a) + abs(d) < abs(b) + abs(c):  # rows become columns
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _plausible(pixel_aspect: Fraction | None) -> Fraction:
    if not pixel_aspect or not Fraction(1, WIDEST_PIXEL) <= pixel_aspect <= WIDEST_PIXEL:
        return Fraction(1)
    return Fraction(pixel_aspect)
