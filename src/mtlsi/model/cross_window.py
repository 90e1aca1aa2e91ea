"""CWIB: cross-window integrated attention block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlsi.nn.attention import token_attention
from mtlsi.nn.layers import TaskLayerNorm, TaskLinear, TaskMLP
from mtlsi.nn.windows import join_windows, split_windows


class CrossWindowBlock(nn.Module):
    """Positions (b t n c) see their own window and the semantic tokens (b t k c): (b t n c), in time linear in n.

    Paper: window self-attention and cross-attention to the tokens, side by side on the preliminary features;
    concatenated, fused by a residual MLP, then a feed-forward part.
    Choice: normalisation before each part; the windows carry no position bias, since the convolutions before them know
    where they are; a map that the windows do not divide is padded and the padding is not attended to.
    """

    def __init__(self, num_tasks: int, channels: int, *, num_heads: int, window: int, ffn_ratio: int):
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.norm = TaskLayerNorm(num_tasks, channels)
        self.window_qkv = TaskLinear(num_tasks, channels, 3 * channels)
        self.token_query = TaskLinear(num_tasks, channels, channels)
        self.token_key_value = TaskLinear(num_tasks, channels, 2 * channels)
        self.merge = TaskMLP(num_tasks, 2 * channels, channels, channels)
        self.ffn_norm = TaskLayerNorm(num_tasks, channels)
        self.ffn = TaskMLP(num_tasks, channels, ffn_ratio * channels, channels)

    def forward(self, x: Tensor, tokens: Tensor, size_hw: tuple[int, int], index: Tensor | None = None) -> Tensor:
        normed = self.norm(x, index)
        near = self.within_windows(normed, size_hw, index)
        far = self.to_tokens(normed, tokens, index)
        x = x + self.merge(torch.cat((near, far), -1), index)
        return x + self.ffn(self.ffn_norm(x, index), index)

    def within_windows(self, normed: Tensor, size_hw: tuple[int, int], index: Tensor | None = None) -> Tensor:
        """Window self-attention: (b t n c) -> (b t n c)."""
        windows, mask = split_windows(self.window_qkv(normed, index), size_hw, self.window)
        queries, keys, values = windows.chunk(3, -1)
        attended = token_attention(queries, keys, values, self.num_heads, mask)
        return join_windows(attended, normed.shape[1], size_hw, self.window)

    def to_tokens(self, normed: Tensor, tokens: Tensor, index: Tensor | None = None) -> Tensor:
        """Cross-attention whose keys and values are the tokens (b t k c): (b t n c)."""
        keys, values = self.token_key_value(tokens, index).flatten(0, 1).chunk(2, -1)
        queries = self.token_query(normed, index).flatten(0, 1)
        return token_attention(queries, keys, values, self.num_heads).view_as(normed)
