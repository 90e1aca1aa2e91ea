"""Square windows of a map: its positions window by window, which of them are padding, and the map again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def split_windows(x: Tensor, window: int) -> tuple[Tensor, Tensor | None]:
    """A map (b t c h w) as positions (b t n c), one square window after the other, and which of them are real.

    A map that the window does not divide is padded with zeros at the right and the bottom; then the second result is a
    mask ((b windows) 1 1 window*window), True on real positions, so that attention can leave the padding out. It is None
    where nothing was padded.
    """
    h, w = x.shape[-2:]
    pad_h, pad_w = -h % window, -w % window
    x = x.permute(0, 3, 4, 1, 2)  # b h w t c
    mask = None
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, 0, 0, pad_w, 0, pad_h))
        real = torch.zeros(h + pad_h, w + pad_w, dtype=torch.bool, device=x.device)
        real[:h, :w] = True
        mask = rearrange(real, "(y i) (x j) -> (y x) 1 1 (i j)", i=window, j=window).repeat(len(x), 1, 1, 1)
    positions = rearrange(x, "b (y i) (x j) t c -> b (y x i j) t c", i=window, j=window)
    return positions.transpose(1, 2), mask


def join_windows(positions: Tensor, size_hw: tuple[int, int], window: int) -> Tensor:
    """The inverse of ``split_windows``: (b t n c) -> (b t c h w), padding cut away."""
    h, w = size_hw
    pattern = "b (y x i j) t c -> b (y i) (x j) t c"
    x = rearrange(positions.transpose(1, 2), pattern, y=-(-h // window), x=-(-w // window), i=window)
    return x[:, :h, :w].permute(0, 3, 4, 1, 2)
