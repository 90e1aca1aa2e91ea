"""CWIB: cross-window integrated attention block."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from mtlsi.nn.attention import token_attention
from mtlsi.nn.layers import Index, TaskLayerNorm, TaskLinear, TaskMLP


class CrossWindowBlock(nn.Module):
    """Positions (b t n c) see their own window and the semantic tokens (b t k c): (b t n c), in time linear in n.

    The positions come window by window, as ``nn.windows.split_windows`` gives them, with its mask of what is real.

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

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None, index: Index = None) -> Tensor:
        normed = self.norm(x, index)
        near = self.within_windows(normed, mask, index)
        far = self.to_tokens(normed, tokens, index)
        x = x + self.merge.of_joined((near, far), index)
        return x + self.ffn(self.ffn_norm(x, index), index)

    def within_windows(self, normed: Tensor, mask: Tensor | None = None, index: Index = None) -> Tensor:
        """Window self-attention: (b t n c) -> (b t n c)."""
        parts, to_windows = self.window_qkv.parts(normed, 3, index), "b t (windows p) c -> (b windows) t p c"
        queries, keys, values = (rearrange(x, to_windows, p=self.window**2) for x in parts)
        attended = token_attention(queries, keys, values, self.num_heads, mask)
        return rearrange(attended, "(b windows) t p c -> b t (windows p) c", b=len(normed))

    def to_tokens(self, normed: Tensor, tokens: Tensor, index: Index = None) -> Tensor:
        """Cross-attention whose keys and values are the tokens (b t k c): (b t n c)."""
        keys, values = self.token_key_value.parts(tokens, 2, index)
        return token_attention(self.token_query(normed, index), keys, values, self.num_heads)
