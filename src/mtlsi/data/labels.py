"""Labels as torchvision tv_tensors: any ``transforms.v2`` geometry moves image and labels together, each by its rule.

``as_tv_tensors(sample)`` wraps a sample; its kind (``mtlsi.kinds``) decides what a flip, a resize and padding do to
a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from mtlsi import kinds
from mtlsi.kinds import Kind
from mtlsi.tasks import TASKS, Task

Sample = dict[str, Tensor]


class TaskLabel(tv_tensors.Mask):
    """A label of one task, laid out as ``tasks.py`` says, with leading axes if any."""

    kind: ClassVar[Kind]


@cache
def label_type(task: Task) -> type[TaskLabel]:
    """The type of a task's labels, made on first use: torchvision chooses what to do by the type."""
    return type(f"{task.name.capitalize()}Label", (TaskLabel,), {"kind": kinds.of(task)})


def as_tv_tensors(sample: Sample) -> Sample:
    """The image as a ``tv_tensors.Image`` and every label as its type, sharing memory with ``sample``."""
    return {name: label_type(TASKS[name])(x) if name in TASKS else tv_tensors.Image(x) for name, x in sample.items()}


def as_tensors(sample: Sample) -> Sample:
    """Plain tensors again."""
    return {name: x.as_subclass(Tensor) for name, x in sample.items()}


@tv.register_kernel(tv.horizontal_flip, TaskLabel)
def _flip_left_right(label: TaskLabel) -> TaskLabel:
    return _like(label, label.kind.flip(label.as_subclass(Tensor), -1))


@tv.register_kernel(tv.vertical_flip, TaskLabel)
def _flip_upside_down(label: TaskLabel) -> TaskLabel:
    return _like(label, label.kind.flip(label.as_subclass(Tensor), -2))


@tv.register_kernel(tv.resize, TaskLabel)
def _resize(label: TaskLabel, size: Sequence[int], *_: Any, **__: Any) -> TaskLabel:
    return _like(label, label.kind.resize(label.as_subclass(Tensor), (size[0], size[1])))


@tv.register_kernel(tv.pad, TaskLabel)
def _pad(label: TaskLabel, padding: Sequence[int], *_: Any, **__: Any) -> TaskLabel:
    left, top, right, bottom = padding
    return _like(label, label.kind.pad(label.as_subclass(Tensor), (left, right, top, bottom)))


def _like(label: TaskLabel, plain: Tensor) -> TaskLabel:
    return plain.as_subclass(type(label))
