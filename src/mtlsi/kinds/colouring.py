"""Colours for maps of numbers, and what a legend needs to explain them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from mtlsi.errors import MistakeError
from mtlsi.reading import shortened

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


def checked_colours(task: str, given: Any, num_classes: int) -> tuple[Colour, ...]:
    """``given``, a colour [red, green, blue] for each of ``task``'s classes; ``MistakeError`` for anything else."""
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str | bytes):
        raise MistakeError(f"{task}'s colours: {shortened(given)}; expected a list of [red, green, blue]")
    if len(given) != num_classes:
        raise MistakeError(f"{task}: {len(given)} colours for {num_classes} classes; expected as many")
    return tuple(_colour(task, one) for one in given)


def _colour(task: str, given: Any) -> Colour:
    try:
        red, green, blue = (-1 if isinstance(level, bool) else index(level) for level in given)
        if all(0 <= level <= 255 for level in (red, green, blue)):
            return red, green, blue
    except (TypeError, ValueError):
        pass
    raise MistakeError(f"a colour of {task}: {shortened(given)}; expected [red, green, blue] in 0..255")


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
