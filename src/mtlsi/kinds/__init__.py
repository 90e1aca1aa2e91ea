"""How labels and predictions of each kind behave: ``kinds.of("depth").decode(raw)``.

One module per kind; ``base.Kind`` is the contract. A task of an existing kind needs only its record in ``tasks.py``.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mtlsi.kinds.base import Kind
from mtlsi.kinds.classes import Classes
from mtlsi.kinds.direction import Direction
from mtlsi.kinds.distance import Distance
from mtlsi.kinds.strength import Strength
from mtlsi.kinds.value import Value
from mtlsi.tasks import TASKS, Task

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KIND_TYPES", "Kind", "decode", "of"]

KIND_TYPES: dict[str, type[Kind]] = {
    "classes": Classes,
    "strength": Strength,
    "value": Value,
    "distance": Distance,
    "direction": Direction,
}
"""By ``Task.kind``."""


def of(task: str | Task) -> Kind:
    """The kind of a task, given by name or by record, bound to that task."""
    return _bound(TASKS[task] if isinstance(task, str) else task)


def decode(task: str, raw: Tensor) -> Tensor:
    """The prediction that raw channels (b c h w) stand for, laid out as labels are.

    classes: (b h w) uint8, int32 with more than 255 classes; strength: (b h w) probability; distance: (b h w) metres, not
    below 0; value: (b h w), or (b c h w) with several channels, clamped to the task's range; direction: (b 3 h w) of unit
    length.
    """
    return of(task).decode(raw)


@cache
def _bound(task: Task) -> Kind:
    return KIND_TYPES[task.kind](task)
