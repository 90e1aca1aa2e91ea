"""A module for some of its tasks: a copy whose task-wise weights are slices and which shares everything else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtlsi.nn.layers import Predictions, TaskBatchNorm

Module = TypeVar("Module", bound=nn.Module)


def for_tasks(module: Module, index: Sequence[int]) -> Module:
    """``module`` for the tasks at the positions ``index`` of its task axis, for inference.

    A layer names its parameters whose first axis is the task's in ``task_axes``.
    """
    copied = shallow_copy(module)
    for name in getattr(module, "task_axes", ()):
        copied._parameters[name] = _parameter(getattr(module, name)[list(index)])
    if isinstance(copied, TaskBatchNorm):
        copied.norm, copied.num_tasks = _take_norm(copied.norm, copied.num_tasks, index), len(index)
        return copied
    if isinstance(copied, Predictions):
        layers = list(copied.of_task.items())
        copied.of_task = nn.ModuleDict(dict(layers[i] for i in index))
        return copied
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else for_tasks(child, index)
    return copied


def shallow_copy(module: Module) -> Module:
    """A module of the same class with the same parameters and children, in dictionaries of its own."""
    copied = copy.copy(module)
    for registry in ("_parameters", "_buffers", "_modules"):
        copied.__dict__[registry] = dict(module.__dict__[registry])
    copied.__dict__.pop("forward", None)  # recomputation is for training
    return copied


def take_tasks(x: Tensor, index: Sequence[int]) -> Tensor:
    """The tasks ``index`` of maps or positions (b t ...). No list goes to the device, which a recording of it forbids."""
    if x.dim() == 4:  # positions, whose tasks come second in memory
        return torch.stack([x[:, i] for i in index], 2).transpose(1, 2)
    places = x.permute(0, 3, 4, 1, 2)
    return torch.stack([places[:, :, :, i] for i in index], 3).permute(0, 3, 4, 1, 2)


def _take_norm(norm: nn.BatchNorm2d, num_tasks: int, index: Sequence[int]) -> nn.BatchNorm2d:
    copied = shallow_copy(norm)

    def taken(x: Tensor) -> Tensor:
        return x.unflatten(0, (num_tasks, -1))[list(index)].flatten()

    for name, value in norm._parameters.items():
        copied._parameters[name] = None if value is None else _parameter(taken(value))
    for name, value in norm._buffers.items():
        copied._buffers[name] = taken(value) if value is not None and value.dim() else value
    return copied


def _parameter(x: Tensor) -> Any:
    """A slice in a parameter's place: itself where gradients are to flow through it."""
    return x if x.requires_grad else nn.Parameter(x, requires_grad=False)
