"""Layers with one set of weights per task, all tasks in one call.

Axes: b batch, t task, n positions, c d channels, h w map. Maps and positions are views of one memory order, see ``layout``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi import kernels
from mtlsi.nn.layout import apart, side_by_side

BEFORE_NORM = 0.3
"""Of torch's usual scale, at which weights begin that a batch norm follows.

Choice: the norm takes the scale out again, and Adam's steps, as long for small weights as for large ones, turn small ones
faster. It is worth as much as dense convolutions in place of separable ones; see docs/results.md.
"""


class TaskLinear(nn.Module):
    """A linear map of its own for every task: y_t = x_t W_t + b_t."""

    task_axes = ("weight", "bias")

    def __init__(self, num_tasks: int, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1, out_channels))
        nn.init.uniform_(self.weight, -1 / math.sqrt(in_channels), 1 / math.sqrt(in_channels))

    def forward(self, x: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n d"]:
        return kernels.task_linear(x, self.weight, self.bias)

    def chunks(self, x: Float[Tensor, "b t n c"], num_chunks: int) -> tuple[Float[Tensor, "b t n _"], ...]:
        """``forward``, its channels cut into equal chunks."""
        return kernels.task_linear_chunks(x, self.weight, self.bias, num_chunks)

    def concat(self, *inputs: Float[Tensor, "b t n _"]) -> Float[Tensor, "b t n d"]:
        """``forward`` of the inputs concatenated along their channels."""
        return kernels.task_linear_concat(inputs, self.weight, self.bias)


class TaskLayerNorm(nn.Module):
    """Layer normalisation over the channels, gain and offset per task."""

    task_axes = ("weight", "bias")

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_tasks, 1, channels))
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1, channels))

    def forward(self, x: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n c"]:
        normed = F.layer_norm(x.transpose(1, 2), x.shape[-1:]).transpose(1, 2)  # in the order of the memory
        return torch.addcmul(self.bias.to(normed.dtype), normed, self.weight.to(normed.dtype))


class TaskMLP(nn.Module):
    """reduce(GELU(expand(x))), of its own for every task."""

    def __init__(self, num_tasks: int, in_channels: int, hidden_channels: int, out_channels: int):
        super().__init__()
        self.expand = TaskLinear(num_tasks, in_channels, hidden_channels)
        self.reduce = TaskLinear(num_tasks, hidden_channels, out_channels)

    def forward(self, *inputs: Float[Tensor, "b t n _"]) -> Float[Tensor, "b t n d"]:
        """Several inputs are concatenated along their channels."""
        return self.reduce(F.gelu(self.expand.concat(*inputs)))


class TaskBatchNorm(nn.Module):
    """Batch normalisation of every task's channels, statistics over images and positions."""

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(num_tasks * channels)
        self.num_tasks = num_tasks

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        affine = self.stored()
        if affine is None:
            return apart(self.norm(side_by_side(x)), self.num_tasks)
        gain, offset = (value[..., None, None].to(x.dtype) for value in affine)
        return torch.addcmul(offset, x, gain)

    def stored(self) -> tuple[Float[Tensor, "t c"], Float[Tensor, "t c"]] | None:
        """Gain and offset that the stored statistics come to; None while training, when the batch's own count."""
        norm = self.norm
        if self.training:
            return None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
        offset = norm.bias - norm.running_mean * gain
        return gain.unflatten(0, (self.num_tasks, -1)), offset.unflatten(0, (self.num_tasks, -1))


class TaskDepthwise(nn.Module):
    """A depthwise 3x3 convolution of every task's channels, without a bias; it begins at zero."""

    task_axes = ("weight",)

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_tasks, channels, 1, 3, 3))

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        t, c = self.weight.shape[:2]
        return apart(F.conv2d(side_by_side(x), self.weight.flatten(0, 1), padding=1, groups=t * c), t)


class TaskConvolution(nn.Module):
    """GELU(BN(conv(x))), a 3x3 convolution within each task.

    Choice: separable (depthwise, then 1x1), at an eighth of the multiplications of a ``dense`` one. Batch statistics are
    taken over positions as well as images, so that a batch of one image trains too.
    """

    task_axes = ("spatial",)

    def __init__(self, num_tasks: int, in_channels: int, out_channels: int, *, dense: bool = False):
        super().__init__()
        kernel = in_channels if dense else 1
        middle = out_channels if dense else in_channels
        self.spatial = nn.Parameter(torch.empty(num_tasks, middle, kernel, 3, 3))
        bound = BEFORE_NORM / math.sqrt(9 * kernel)
        nn.init.uniform_(self.spatial, -bound, bound)
        self.pointwise = None if dense else TaskLinear(num_tasks, in_channels, out_channels)
        if self.pointwise is not None:
            with torch.no_grad():
                self.pointwise.weight.mul_(BEFORE_NORM)
        self.norm = TaskBatchNorm(num_tasks, out_channels)

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t d h w"]:
        affine = self.norm.stored()  # part of the convolution's weights after training
        if self.pointwise is None:
            x = kernels.dense_conv(x, self.spatial, affine)
        else:
            x = kernels.separable_conv(x, self.spatial, self.pointwise.weight, self.pointwise.bias, affine)
        return F.gelu(self.norm(x) if affine is None else x)


class TaskProjection(nn.Module):
    """BN(W_t x): one map, projected for every task by a 1x1 convolution of its own."""

    task_axes = ("weight",)

    def __init__(self, in_channels: int, num_tasks: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, channels, in_channels, 1, 1))
        bound = BEFORE_NORM / math.sqrt(in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        self.norm = TaskBatchNorm(num_tasks, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d h w"]:
        affine = self.norm.stored()  # part of the weights after training
        x = kernels.project(x, self.weight, affine)
        return self.norm(x) if affine is None else x


class PredictionEmbedding(nn.ModuleDict):
    """Every task's prediction through a 1x1 convolution of its own, without a bias, to as many channels for each."""

    def __init__(self, outputs: Mapping[str, int], channels: int):
        super().__init__({task: nn.Conv2d(out, channels, 1, bias=False) for task, out in outputs.items()})

    def forward(self, predictions: Float[Tensor, "b o h w"]) -> Float[Tensor, "b t c h w"]:
        weights = [cast(nn.Conv2d, layer).weight.flatten(1) for layer in self.values()]
        return apart(kernels.block_conv(predictions, weights), len(weights))

    @torch.no_grad()
    def rescale(self, task: str, factor: float) -> None:
        """Read predictions of ``task`` that are ``factor`` times what they were as what they were."""
        cast(nn.Conv2d, self[task]).weight.div_(factor)


class Predictions(nn.Module):
    """The last 1x1 convolution of every task; the o channels of all predictions come side by side, for they differ."""

    def __init__(self, channels: int, outputs: Mapping[str, int]):
        super().__init__()
        self.of_task = nn.ModuleDict({task: nn.Conv2d(channels, out, 1) for task, out in outputs.items()})

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b o h w"]:
        layers = [cast(nn.Conv2d, layer) for layer in self.of_task.values()]
        return kernels.block_conv(
            side_by_side(x),
            [layer.weight.flatten(1) for layer in layers],
            [cast(Tensor, layer.bias) for layer in layers],
        )

    def by_task(self, predictions: Float[Tensor, "b o h w"]) -> dict[str, Float[Tensor, "b _ h w"]]:
        """{task: (b channels h w)}, views."""
        channels = {task: cast(nn.Conv2d, layer).out_channels for task, layer in self.of_task.items()}
        return dict(zip(channels, predictions.split(list(channels.values()), 1), strict=True))

    @torch.no_grad()
    def start_at(self, task: str, value: Tensor) -> None:
        """Let an untrained prediction of ``task`` begin at ``value`` () or (channels) instead of 0."""
        bias = cast(Tensor, self.of_task[task].bias)
        bias.copy_(value.expand_as(bias))

    @torch.no_grad()
    def rescale(self, task: str, factor: float) -> None:
        """Let predictions of ``task`` be ``factor`` times what they are."""
        for parameter in self.of_task[task].parameters():
            parameter.mul_(factor)
