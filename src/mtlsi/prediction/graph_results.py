"""Whether what a graph gives is what its tasks mean: a graph is a computation of anybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.tasks import invalid_class

SPANS = {"strength": (0.0, 1.0), "direction": (-1.0, 1.0), "distance": (-1e6, 1e6), "value": (-1e30, 1e30)}
"""By kind: the least and the greatest number. Choice: a thousand kilometres; of values what float32 can still add up."""
SLACK = 1e-3
"""What rounding may add to a span."""
CLASS_TYPES = ("uint8", "int32")
NUMBER_TYPES = ("float32", "float16", "float64")


def checked_result(task: str, result: Any, size_hw: Sequence[int], classes: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The prediction of ``task`` for one image of ``size_hw``, (H W) or (H W c), floating point as float32.

    Raises ``MistakeError`` for anything but one array of that shape, whose numbers are classes or what ``SPANS`` says.
    """
    kind = kinds.of(task)
    is_classes = kind.task.kind == "classes"
    types = CLASS_TYPES if is_classes else NUMBER_TYPES
    shape = (1, *size_hw, *((kind.label_channels,) if kind.label_channels else ()))
    if not isinstance(result, np.ndarray) or result.shape != shape or str(result.dtype) not in types:
        came = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else f"a {type(result).__name__}"
        raise MistakeError(f"{task} came as {came}; expected {types[0]} {shape}")
    array = result[0]
    if is_classes:
        _check_classes(task, array, len(classes[task]))
        return array
    low, high = float(array.min()), float(array.max())  # NaN where any is
    if not np.isfinite((low, high)).all():
        raise MistakeError(f"{task} is not finite; expected numbers: where float16 is too narrow, --dtype float32")
    least, greatest = SPANS[kind.task.kind]
    if low < least - SLACK or high > greatest + SLACK:
        raise MistakeError(f"{task} came as {low:g}..{high:g}; expected {least:g}..{greatest:g}")
    return array.astype(np.float32, copy=False)


def _check_classes(task: str, array: np.ndarray, num_classes: int) -> None:
    """Indices below ``num_classes``, or the one that marks a pixel without a class."""
    known = array[array != invalid_class(array.dtype)]
    low, high = int(known.min(initial=0)), int(known.max(initial=0))
    if low < 0 or high >= num_classes:
        raise MistakeError(f"{task} came as classes {low}..{high}; expected 0..{num_classes - 1}")
