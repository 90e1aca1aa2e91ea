"""What a config.json says besides the sizes, checked before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlsi.config import MOST_PIXELS, MOST_SIDE, RESIZES
from mtlsi.errors import MistakeError
from mtlsi.reading import shortened
from mtlsi.tasks import MOST_TASKS, check_classes

FOCAL_PX = (1e-6, 1e9)
"""The shortest and the longest focal length in pixels: what is divided by it stays a number."""
LONGEST_SIDE = 2**20
"""Of the images that a camera takes, in pixels."""


def check_facts(tasks: Any, classes: Any, input_size: Any, own_tasks: Any, resize: Any) -> None:
    """Raises ``MistakeError`` for a value of another form than ``MTLSINet`` takes."""
    _check("tasks", tasks, _is_names(tasks) and len(tasks) <= MOST_TASKS, f"up to {MOST_TASKS} names")
    _check(
        "classes",
        classes,
        isinstance(classes, Mapping) and all(_is_names(names) and names for names in classes.values()),
        "a list of names by task",
    )
    check_classes(classes)
    _check(
        "input_size",
        input_size,
        _is_list(input_size)
        and len(input_size) == 2
        and all(_is_side(side) for side in input_size)
        and max(input_size) <= MOST_SIDE
        and input_size[0] * input_size[1] <= MOST_PIXELS,
        f"[height, width], at most {MOST_SIDE} a side and {MOST_PIXELS} pixels in all",
    )
    _check(
        "own_tasks",
        own_tasks,
        _is_list(own_tasks) and len(own_tasks) <= MOST_TASKS and all(isinstance(one, Mapping) for one in own_tasks),
        "a list of records of tasks",
    )
    _check("resize", resize, resize in RESIZES, " or ".join(RESIZES))


def checked_camera(camera: Any) -> dict[str, Any]:
    """``camera`` with its numbers as numbers, {} where there is none; ``MistakeError`` for anything else."""
    if not camera:
        return {}
    if not isinstance(camera, Mapping):
        raise MistakeError(f"camera {shortened(camera)}; expected focal_px and size_hw")
    try:
        focal_px, (height, width) = float(camera["focal_px"]), map(int, camera["size_hw"])
        fits = FOCAL_PX[0] <= focal_px <= FOCAL_PX[1] and all(1 <= side <= LONGEST_SIDE for side in (height, width))
        if set(camera) == {"focal_px", "size_hw"} and fits:
            return {"focal_px": focal_px, "size_hw": [height, width]}
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise MistakeError(
        f"camera {shortened(camera)}; expected focal_px, {FOCAL_PX[0]:g}..{FOCAL_PX[1]:g}, and the size_hw [height, width] "
        f"that it belongs to, sides of 1..{LONGEST_SIDE}"
    )


def _check(name: str, value: Any, sound: bool, expected: str) -> None:
    if not sound:
        raise MistakeError(f"{name} {shortened(value)}; expected {expected}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_names(value: Any) -> bool:
    return _is_list(value) and all(isinstance(name, str) for name in value)


def _is_side(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int) and value >= 1
