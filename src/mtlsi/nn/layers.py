"""Layers with one set of weights per task, all tasks in one call.

Axes: b batch, t task, n positions, c channels, h w map. Every layer takes ``index``, the tasks that are present in its
input when they are not all of them (positions in the layer's own task axis), or None for all.

In memory a position comes before its tasks and a task before its channels, (b h w t c), whatever the order of the axes:
a map (b t c h w), its positions (b t n c) and the tasks side by side (b (t c) h w) are views of one another, the last one
channels-last. Any other order in memory gives the same results, more slowly. Views are cut and joined in the order of the
memory: elsewhere torch gives a batch of one a stride for which its convolutions do not know channels-last any more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Index = Sequence[int] | None


def pick(parameter: Tensor, index: Index) -> Tensor:
    """The rows of ``parameter`` (t ...) for the tasks in ``index``; all of them for None."""
    return parameter if index is None else parameter[list(index)]


def pick_tasks(x: Tensor, index: Index) -> Tensor:
    """The tasks in ``index`` of positions (b t n c); all of them for None."""
    if index is None:
        return x
    return x.transpose(1, 2).index_select(2, torch.tensor(index, device=x.device)).transpose(1, 2)


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which ``x`` takes part in matrix products: autocast's, where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else x.dtype


def linear_per_task(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Positions (b t n c) times weights (t c d), plus bias (t 1 d): (b t n d).

    On a CPU a grouped convolution reads and writes the tasks side by side without a copy, at twice the speed of
    torch's matrix products on AMD's; its own backward pass is slow, so that it has another one here.
    """
    if x.device.type == "cpu":
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return cast(Tensor, _LinearPerTask.apply(x, weight, bias))
        return _product_per_task(x, weight, bias)
    rows = x.transpose(0, 1).flatten(1, 2)  # t (b n) c
    out = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
    return out.unflatten(1, x.shape[::2]).transpose(0, 1)


def _product_per_task(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel, offset = weight.mT.flatten(0, 1), None if bias is None else bias.flatten()
    rows = grouped_product(x.transpose(1, 2).flatten(2), kernel, len(weight), offset)
    return rows.unflatten(2, (len(weight), -1)).transpose(1, 2)


def sums_per_task(x: Tensor, y: Tensor) -> Tensor:
    """Positions (b t n c) and (b t n d) to the sums over b and n of their outer products: (t c d)."""
    x, y = (z.transpose(1, 2).flatten(0, 1).transpose(0, 1) for z in (x, y))  # t (b n) c
    if x.dtype is torch.bfloat16:
        x, y = x.contiguous(), y.contiguous()  # oneDNN would copy them itself, in twice the time
    # MKL is several times slower with the larger one turned
    return torch.bmm(x.mT, y) if x.shape[-1] <= y.shape[-1] else torch.bmm(y.mT, x).mT


class _LinearPerTask(torch.autograd.Function):
    """The grouped convolution with a backward pass of another grouped convolution and a matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtypes = [None if value is None else value.dtype for value in (x, weight, bias)]
        x, weight = (value.to(product_dtype(value)) for value in (x, weight))
        ctx.save_for_backward(x, weight)
        return _product_per_task(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed, of_x, of_weight, of_bias = ctx.needs_input_grad, None, None, None
        with torch.autocast(x.device.type, enabled=False):
            if needed[0]:
                of_x = _product_per_task(of_out, weight.mT).to(ctx.dtypes[0])
            if needed[1]:
                of_weight = sums_per_task(x, of_out).to(ctx.dtypes[1])
            if needed[2]:
                of_bias = of_out.transpose(1, 2).sum((0, 1), dtype=ctx.dtypes[2]).unsqueeze(1)
        return of_x, of_weight, of_bias


def grouped_product(x: Tensor, weight: Tensor, num_groups: int, bias: Tensor | None = None) -> Tensor:
    """Rows (b n (g c)) times weights ((g d) c), each group of columns with its own: (b n (g d))."""
    as_line = x.unsqueeze(1).permute(0, 3, 1, 2)  # b (g c) 1 n
    return F.conv2d(as_line, weight[..., None, None], bias, groups=num_groups).squeeze(2).mT


class TaskLinear(nn.Module):
    """A linear map of its own for every task: (b t n c) -> (b t n d)."""

    def __init__(self, num_tasks: int, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1, out_channels))
        nn.init.uniform_(self.weight, -1 / math.sqrt(in_channels), 1 / math.sqrt(in_channels))

    def forward(self, x: Tensor, index: Index = None) -> Tensor:
        return linear_per_task(x, pick(self.weight, index), pick(self.bias, index))

    def parts(self, x: Tensor, num_parts: int, index: Index = None) -> tuple[Tensor, ...]:
        """``forward``, its channels cut into equal parts, each of which lies in memory for itself."""
        parameters = (pick(p, index).chunk(num_parts, -1) for p in (self.weight, self.bias))
        return tuple(linear_per_task(x, weight, bias) for weight, bias in zip(*parameters, strict=True))

    def of_joined(self, parts: Sequence[Tensor], index: Index = None) -> Tensor:
        """``forward`` of ``parts`` (b t n c_i) joined along the channels, without joining them."""
        weights = pick(self.weight, index).split([x.shape[-1] for x in parts], 1)
        products = (linear_per_task(x, weight) for x, weight in zip(parts[1:], weights[1:], strict=True))
        return sum(products, linear_per_task(parts[0], weights[0], pick(self.bias, index)))


class TaskLayerNorm(nn.Module):
    """Layer normalisation over the channels with a gain and an offset per task: (b t n c) -> (b t n c)."""

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_tasks, 1, channels))
        self.bias = nn.Parameter(torch.zeros(num_tasks, 1, channels))

    def forward(self, x: Tensor, index: Index = None) -> Tensor:
        normed = F.layer_norm(x.transpose(1, 2), x.shape[-1:]).transpose(1, 2)  # which is how positions lie in memory
        gain, offset = (pick(p, index).to(normed.dtype) for p in (self.weight, self.bias))
        return torch.addcmul(offset, normed, gain)


class TaskMLP(nn.Module):
    """Two linear maps with a GELU between, of its own for every task: (b t n c) -> (b t n d)."""

    def __init__(self, num_tasks: int, in_channels: int, hidden_channels: int, out_channels: int):
        super().__init__()
        self.expand = TaskLinear(num_tasks, in_channels, hidden_channels)
        self.reduce = TaskLinear(num_tasks, hidden_channels, out_channels)

    def forward(self, x: Tensor, index: Index = None) -> Tensor:
        return self.reduce(F.gelu(self.expand(x, index)), index)

    def of_joined(self, parts: Sequence[Tensor], index: Index = None) -> Tensor:
        """``forward`` of ``parts`` (b t n c_i) joined along the channels, without joining them."""
        return self.reduce(F.gelu(self.expand.of_joined(parts, index)), index)


class TaskConvolution(nn.Module):
    """Convolve within each task, normalise over the batch, GELU: (b t c h w) -> (b t d h w).

    Separable (the default: 3x3 depthwise, then 1x1) or dense 3x3. Choice: separable, at an eighth of the multiplications.
    Batch statistics are taken over positions as well as images, so that a batch of one image trains too; after
    training the norm is part of the weights.
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

    def forward(self, x: Tensor, index: Index = None) -> Tensor:
        spatial, offset = pick(self.spatial, index), None
        gain_and_offset = None if self.training else self.norm.gain_and_offset(index)
        if self.pointwise is None:
            if gain_and_offset is not None:
                gain, offset = gain_and_offset
                spatial, offset = spatial * gain[..., None, None, None], offset.flatten()
            x = self._convolve(x, spatial, offset)
        else:
            weight, bias = pick(self.pointwise.weight, index), pick(self.pointwise.bias, index)
            if gain_and_offset is not None:
                gain, offset = (value.unsqueeze(1) for value in gain_and_offset)
                weight, bias = weight * gain, bias * gain + offset
            x = self._convolve(x, spatial)
            x = to_map(linear_per_task(to_positions(x), weight, bias), x.shape[-2:])
        return F.gelu(self.norm(x) if gain_and_offset is None else x)

    def _convolve(self, x: Tensor, spatial: Tensor, bias: Tensor | None = None) -> Tensor:
        t, c = x.shape[1:3]
        weight = rearrange(spatial, "t o i y x -> (t o) i y x")
        x = F.conv2d(side_by_side(x), weight, bias, padding=1, groups=t if self.dense else t * c)
        return apart(x, t)


class TaskBatchNorm(nn.Module):
    """Batch normalisation of every task's channels: (b t c h w) -> (b t c h w)."""

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(num_tasks * channels)
        self.num_tasks = num_tasks

    def forward(self, x: Tensor, index: Index = None) -> Tensor:
        if self.training:
            assert index is None, "a subset of the tasks is for inference"
            return apart(self.norm(side_by_side(x)), self.num_tasks)
        gain, offset = (value[..., None, None].to(x.dtype) for value in self.gain_and_offset(index))
        return torch.addcmul(offset, x, gain)

    def gain_and_offset(self, index: Index = None) -> tuple[Tensor, Tensor]:
        """What the stored statistics come to: every channel's factor and summand, (t c) each."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
        offset = norm.bias - norm.running_mean * gain
        return pick(gain.unflatten(0, (self.num_tasks, -1)), index), pick(
            offset.unflatten(0, (self.num_tasks, -1)), index
        )


def side_by_side(x: Tensor) -> Tensor:
    """A map with the channels of all tasks side by side: (b t c h w) -> (b (t c) h w)."""
    return x.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)


def apart(x: Tensor, num_tasks: int) -> Tensor:
    """A map with an axis for the tasks: (b (t c) h w) -> (b t c h w)."""
    return x.permute(0, 2, 3, 1).unflatten(3, (num_tasks, -1)).permute(0, 3, 4, 1, 2)


def to_positions(x: Tensor) -> Tensor:
    """A map (b t c h w) as positions (b t (h w) c)."""
    return x.permute(0, 3, 4, 1, 2).flatten(1, 2).transpose(1, 2)


def to_map(x: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Positions (b t (h w) c) as a map (b t c h w)."""
    return x.transpose(1, 2).unflatten(1, (size_hw[0], size_hw[1])).permute(0, 3, 4, 1, 2)


def resize_maps(x: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Maps (b c h w) or (b t c h w) brought to another size bilinearly."""
    if x.shape[-2:] == torch.Size(size_hw):
        return x
    if x.dim() == 5:
        return apart(resize_maps(side_by_side(x), size_hw), x.shape[1])
    x = x.contiguous(memory_format=torch.channels_last)  # many channels take a quarter of the time so
    return F.interpolate(x, size=(size_hw[0], size_hw[1]), mode="bilinear", align_corners=False)
