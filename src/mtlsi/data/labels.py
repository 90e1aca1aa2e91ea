"""Labels as torchvision tv_tensors: any ``transforms.v2`` geometry moves image and labels together, each by its rule.

``as_tv_tensors(sample)`` wraps a sample; what a flip, a resize and padding do to a label is the record in ``tasks.py``:
labels are resized to the nearest pixel (thin ones shrink by their maximum), a normal's x changes its sign in a left-right
flip and its y in an upside-down one, and padding is a pixel that the task does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from mtlsi.tasks import TASKS, Task

Sample = dict[str, Tensor]


class TaskLabel(tv_tensors.Mask):
    """A label of one task, laid out as ``tasks.py`` says, with leading axes if any."""

    task: ClassVar[Task]


TYPES: dict[str, type[TaskLabel]] = {
    name: type(f"{name.capitalize()}Label", (TaskLabel,), {"task": task}) for name, task in TASKS.items()
}
"""One type per task, as torchvision chooses what to do by the type."""


def as_tv_tensors(sample: Sample) -> Sample:
    """The image as a ``tv_tensors.Image`` and every label as its type, sharing memory with ``sample``."""
    return {name: TYPES[name](x) if name in TYPES else tv_tensors.Image(x) for name, x in sample.items()}


def as_tensors(sample: Sample) -> Sample:
    """Plain tensors again."""
    return {name: x.as_subclass(Tensor) for name, x in sample.items()}


@tv.register_kernel(tv.horizontal_flip, TaskLabel)
def _flip_left_right(label: TaskLabel) -> TaskLabel:
    return _flip(label, axis=-1, component=0)


@tv.register_kernel(tv.vertical_flip, TaskLabel)
def _flip_upside_down(label: TaskLabel) -> TaskLabel:
    return _flip(label, axis=-2, component=1)


def _flip(label: TaskLabel, axis: int, component: int) -> TaskLabel:
    flipped = label.as_subclass(Tensor).flip(axis)
    if label.task.flip == "negate_x":
        flipped.select(-3, component).neg_()  # a copy already
    return _like(label, flipped)


@tv.register_kernel(tv.resize, TaskLabel)
def _resize(label: TaskLabel, size: Sequence[int], *_: Any, **__: Any) -> TaskLabel:
    plain, task, (h, w) = label.as_subclass(Tensor), label.task, size
    if task.shrink == "max" and h < plain.shape[-2]:
        known = torch.where(task.valid(plain), plain.float(), -1)
        value = F.adaptive_max_pool2d(known[None], (h, w))[0]
        resized = torch.where(value < 0, task.invalid, value).to(plain.dtype)
    else:
        resized = plain[..., _nearest(plain.shape[-2], h)[:, None], _nearest(plain.shape[-1], w)]
    return _like(label, resized)


@tv.register_kernel(tv.pad, TaskLabel)
def _pad(label: TaskLabel, padding: Sequence[int], *_: Any, **__: Any) -> TaskLabel:
    left, top, right, bottom = padding
    padded = F.pad(label.as_subclass(Tensor), (left, right, top, bottom), value=label.task.invalid)
    return _like(label, padded)


def _like(label: TaskLabel, plain: Tensor) -> TaskLabel:
    return plain.as_subclass(type(label))


def _nearest(length: int, target: int) -> Tensor:
    """For every cell of ``target`` the pixel of ``length`` under its centre."""
    return ((torch.arange(target) + 0.5) * (length / target)).long().clamp_max(length - 1)
