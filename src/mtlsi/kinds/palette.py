"""Colours of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtlsi.kinds.colouring import Colour


def palette(num_classes: int, chosen: Sequence[Colour] | None = None) -> list[Colour]:
    """One RGB colour per class: those ``chosen`` for the first ones, then our own.

    Ours are slate for the first (wall or background), the others spread over lightness and hue.

    Choice: not the PASCAL VOC colours, in which the commonest class of a room would be black. Colours are spaced in
    OKLab, where equal steps look equal; the first 255 are all different.
    """
    colours = [(72, 77, 89)]
    for index in range(1, num_classes):
        lightness, chroma = 0.48 + 0.40 * (index * 0.024 % 1), 0.09 + 0.07 * (index * 0.497 % 1)
        hue = 2 * math.pi * (index * 0.36 % 1)
        colours.append(_oklab_to_rgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue)))
    return [*(chosen or ()), *colours[len(chosen or ()) :]][:num_classes]


def _oklab_to_rgb(lightness: float, a: float, b: float) -> tuple[int, int, int]:
    """8-bit sRGB of an OKLab colour, cut to what a screen can show (matrices: Bjoern Ottosson's definition)."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    encoded = (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in (max(x, 0.0) for x in linear))
    red, green, blue = (round(255 * min(x, 1.0)) for x in encoded)
    return red, green, blue
