"""Square windows of a map: cut, mark what is padding, and put together again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def split_windows(x: Tensor, size_hw: tuple[int, int], window: int) -> tuple[Tensor, Tensor | None]:
    """Positions (b t (h w) c) cut into windows ((b t num_windows) window*window c), and which of them are real.

    A map that the window does not divide is padded with zeros at the right and the bottom; then the second result is a
    mask ((b t num_windows) 1 1 window*window), True on real positions, so that attention can leave the padding out. It is
    None where nothing was padded.
    """
    h, w = size_hw
    pad_h, pad_w = -h % window, -w % window
    x = rearrange(x, "b t (h w) c -> b t h w c", h=h)
    mask = None
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        real = torch.zeros(h + pad_h, w + pad_w, dtype=torch.bool, device=x.device)
        real[:h, :w] = True
        mask = rearrange(real, "(h i) (w j) -> (h w) 1 1 (i j)", i=window, j=window).repeat(
            x.shape[0] * x.shape[1], 1, 1, 1
        )
    return rearrange(x, "b t (h i) (w j) c -> (b t h w) (i j) c", i=window, j=window), mask


def join_windows(windows: Tensor, num_tasks: int, size_hw: tuple[int, int], window: int) -> Tensor:
    """The inverse of ``split_windows``: ((b t num_windows) window*window c) -> (b t (h w) c), padding cut away."""
    h, w = size_hw
    rows, columns = -(-h // window), -(-w // window)
    pattern = "(b t h w) (i j) c -> b t (h i) (w j) c"
    x = rearrange(windows, pattern, t=num_tasks, h=rows, w=columns, i=window)
    return rearrange(x[:, :, :h, :w], "b t h w c -> b t (h w) c")
