"""Colours for maps of numbers, and what a legend needs to explain them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNKNOWN = (168, 168, 172)
"""The colour of pixels without a label."""
RED, GREEN, BLUE = (214, 66, 66), (52, 158, 72), (66, 96, 214)

Limits = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Swatches:
    """A legend of single colours with their names."""

    entries: list[tuple[Colour, str]]


@dataclass(frozen=True)
class Scale:
    """A legend of a continuous scale: its 256 colours (256 3) uint8 and the marks spread evenly along it."""

    table: np.ndarray
    marks: list[str]


def on_scale(values: np.ndarray, known: np.ndarray, limits: Limits) -> np.ndarray:
    """``values`` as steps 0..255 between ``limits``, uint8; 0 where not ``known``."""
    low, high = limits
    step = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1) * 255
    return step.astype(np.uint8)


def percentile_limits(values: np.ndarray) -> Limits | None:
    """The 0.5th and 99.5th percentiles, None without values.

    Choice: not the extremes, so that one stray pixel does not flatten the drawing.
    """
    if not values.size:
        return None
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    return low, high
