"""Layers with one set of weights per task, all tasks in one call.

Axes: b batch, t task, n positions, c channels, h w map. Every layer takes ``index``, the tasks that are present in its
input when they are not all of them (a long tensor of positions in the layer's own task axis), or None for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def pick(parameter: Tensor, index: Tensor | None) -> Tensor:
    """The rows of ``parameter`` (t ...) for the tasks in ``index``; all of them for None."""
    return parameter if index is None else parameter[index]


class TaskLinear(nn.Module):
    """A linear map of its own for every task: (b t n c) -> (b t n d)."""

    def __init__(self, num_tasks: int, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1, out_channels))
        nn.init.uniform_(self.weight, -1 / math.sqrt(in_channels), 1 / math.sqrt(in_channels))

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        b, t, n, c = x.shape
        weight, bias = pick(self.weight, index), pick(self.bias, index)
        weight = weight.expand(b, *weight.shape).flatten(0, 1)
        bias = bias.expand(b, *bias.shape).flatten(0, 1)
        return torch.baddbmm(bias, x.reshape(b * t, n, c), weight).view(b, t, n, -1)

    def on_map(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """The same on maps (b t c h w) -> (b t d h w), without turning them into positions."""
        b, t, c, h, w = x.shape
        weight, bias = pick(self.weight, index).transpose(1, 2), pick(self.bias, index).transpose(1, 2)
        weight = weight.expand(b, *weight.shape).flatten(0, 1)
        bias = bias.expand(b, *bias.shape).flatten(0, 1)
        return torch.baddbmm(bias, weight, x.reshape(b * t, c, h * w)).view(b, t, -1, h, w)


class TaskLayerNorm(nn.Module):
    """Layer normalisation over the channels with a gain and an offset per task: (b t n c) -> (b t n c)."""

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_tasks, 1, channels))
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1, channels))

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * pick(self.weight, index) + pick(self.bias, index)


class TaskMLP(nn.Module):
    """Two linear maps with a GELU between, of its own for every task: (b t n c) -> (b t n d)."""

    def __init__(self, num_tasks: int, in_channels: int, hidden_channels: int, out_channels: int):
        super().__init__()
        self.expand = TaskLinear(num_tasks, in_channels, hidden_channels)
        self.reduce = TaskLinear(num_tasks, hidden_channels, out_channels)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        return self.reduce(F.gelu(self.expand(x, index)), index)

    def on_map(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """The same on maps (b t c h w) -> (b t d h w)."""
        return self.reduce.on_map(F.gelu(self.expand.on_map(x, index)), index)


class TaskConvolution(nn.Module):
    """Convolve within each task, normalise over the batch, GELU: (b t c h w) -> (b t d h w).

    Separable (the default: 3x3 depthwise, then 1x1) or dense 3x3. Choice: separable, at an eighth of the multiplications.
    Batch statistics are taken over positions as well as pictures, so that a batch of one picture trains too.
    """

    def __init__(self, num_tasks: int, in_channels: int, out_channels: int, *, dense: bool = False):
        super().__init__()
        self.num_tasks = num_tasks
        kernel = in_channels if dense else 1
        middle = out_channels if dense else in_channels
        self.spatial = nn.Parameter(torch.empty(num_tasks, middle, kernel, 3, 3))
        nn.init.uniform_(self.spatial, -1 / math.sqrt(9 * kernel), 1 / math.sqrt(9 * kernel))
        self.pointwise = None if dense else TaskLinear(num_tasks, in_channels, out_channels)
        self.norm = TaskBatchNorm(num_tasks, out_channels)
        self.dense = dense

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        t, c = x.shape[1:3]
        weight = rearrange(pick(self.spatial, index), "t o i y x -> (t o) i y x")
        x = F.conv2d(rearrange(x, "b t c h w -> b (t c) h w"), weight, padding=1, groups=t if self.dense else t * c)
        x = rearrange(x, "b (t c) h w -> b t c h w", t=t)
        if self.pointwise is not None:
            x = self.pointwise.on_map(x, index)
        return F.gelu(self.norm(x, index))


class TaskBatchNorm(nn.Module):
    """Batch normalisation of every task's channels: (b t c h w) -> (b t c h w)."""

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(num_tasks * channels)
        self.num_tasks = num_tasks

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        flat = rearrange(x, "b t c h w -> b (t c) h w")
        if index is None:
            flat = self.norm(flat)
        else:
            assert not self.training, "a subset of the tasks is for inference"
            norm = self.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, var, weight, bias = (
                p.unflatten(0, (self.num_tasks, -1))[index].flatten()
                for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
            )
            flat = F.batch_norm(flat, mean, var, weight, bias, training=False, eps=norm.eps)
        return rearrange(flat, "b (t c) h w -> b t c h w", t=x.shape[1])


def to_positions(x: Tensor) -> Tensor:
    """A map (b t c h w) as positions (b t (h w) c): a view."""
    return x.flatten(3).transpose(2, 3)


def to_map(x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Positions (b t (h w) c) as a map (b t c h w): a view."""
    return x.transpose(2, 3).unflatten(3, size_hw)


def enlarge(x: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Maps (b c h w) or (b t c h w) brought to another size bilinearly."""
    if x.shape[-2:] == torch.Size(size_hw):
        return x
    if x.dim() == 5:
        return enlarge(x.flatten(1, 2), size_hw).unflatten(1, x.shape[1:3])
    return F.interpolate(x, size=(size_hw[0], size_hw[1]), mode="bilinear", align_corners=False)
