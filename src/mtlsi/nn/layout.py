"""Views of one memory order, and windows.

In memory a position comes before its tasks and a task before its channels, (b h w t c), whatever the order of the axes:
a map (b t c h w), its positions (b t n c) and the tasks side by side (b (t c) h w), which then is channels-last, are views
of one another. Axes are split and merged in the order of the memory: elsewhere torch gives a batch of one a stride by
which its convolutions no longer recognise channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mtlsi.kernels.choice import is_free, makes_graph
from mtlsi.kernels.default import apart, side_by_side

__all__ = [
    "apart",
    "join_windows",
    "pool_maps",
    "resize_maps",
    "side_by_side",
    "split_windows",
    "to_map",
    "to_positions",
]


if TYPE_CHECKING:
    Side = int
else:
    Side = int | torch.SymInt
    """A number, or what stands for one in a graph for any size."""


def to_positions(x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t n c"]:
    """A map as its n = h*w positions, a view."""
    if makes_graph():
        return x.flatten(3).transpose(2, 3)
    return x.permute(0, 3, 4, 1, 2).flatten(1, 2).transpose(1, 2)


def to_map(x: Float[Tensor, "b t n c"], size_hw: Sequence[Side]) -> Float[Tensor, "b t c h w"]:
    """Positions as the map of ``size_hw`` (h, w), a view."""
    if makes_graph():
        return x.transpose(2, 3).unflatten(3, (size_hw[0], size_hw[1]))
    return x.transpose(1, 2).unflatten(1, (size_hw[0], size_hw[1])).permute(0, 3, 4, 1, 2)


def resize_maps(x: Tensor, size_hw: Sequence[Side]) -> Tensor:
    """Maps (b c h w) or (b t c h w) at another size (h, w), bilinear."""
    if x.shape[-2:] == torch.Size(size_hw):
        return x
    if x.dim() == 5:
        return apart(resize_maps(side_by_side(x), size_hw), x.shape[1])
    if makes_graph():
        for factor in (2, 4, 8):  # a fixed factor, of which runtimes make more than of two computed sides
            if tuple(size_hw) == (factor * x.shape[-2], factor * x.shape[-1]):
                return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
    x = x.contiguous(memory_format=torch.channels_last)  # 4x faster with many channels
    return F.interpolate(x, size=(size_hw[0], size_hw[1]), mode="bilinear", align_corners=False)


def pool_maps(x: Tensor, size: int) -> Tensor:
    """Maps (b c h w) or (b t c h w) averaged over squares of ``size`` positions, cut ones at the right and the bottom."""
    if size == 1:
        return x
    if x.dim() == 5:
        return apart(pool_maps(side_by_side(x), size), x.shape[1])
    return F.avg_pool2d(x, size, ceil_mode=True)


def split_windows(
    x: Float[Tensor, "b t c h w"], window: int
) -> tuple[Float[Tensor, "b t n c"], Bool[Tensor, "bw 1 1 p"] | None]:
    """The positions of a map, one square window of p = window*window positions after another, and which are real.

    A map that the window does not divide is zero-padded at the right and the bottom; the mask, a row for each window of
    each image, is then True on real positions. It is None where nothing was padded; in a graph for any size there is always
    a mask.
    """
    h, w = x.shape[-2:]
    pad_h, pad_w = -h % window, -w % window
    x = x.permute(0, 3, 4, 1, 2)  # b h w t c
    mask = None
    if is_free(pad_h) or is_free(pad_w) or pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, 0, 0, pad_w, 0, pad_h))
        real = torch.zeros(h + pad_h, w + pad_w, dtype=torch.bool, device=x.device)
        real[:h, :w] = True
        mask = rearrange(real, "(y i) (x j) -> (y x) 1 1 (i j)", i=window, j=window).repeat(x.shape[0], 1, 1, 1)
    positions = rearrange(x, "b (y i) (x j) t c -> b (y x i j) t c", i=window, j=window)
    return positions.transpose(1, 2), mask


def join_windows(
    positions: Float[Tensor, "b t n c"], size_hw: Sequence[Side], window: int
) -> Float[Tensor, "b t c h w"]:
    """The inverse of ``split_windows``: the map of ``size_hw`` (h, w), padding cut off."""
    h, w = size_hw
    pattern = "b (y x i j) t c -> b (y i) (x j) t c"
    x = rearrange(
        positions.transpose(1, 2), pattern, y=(h + window - 1) // window, x=(w + window - 1) // window, i=window
    )
    return x[:, :h, :w].permute(0, 3, 4, 1, 2)
