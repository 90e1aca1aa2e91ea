"""CWIB: cross-window integrated attention block.

    X <- X + conv(X), an option
    Y = LN(X)        W = window attention(Y)        S = softmax(Y W_q (T W_k)^T / sqrt(d)) T W_v
    X <- X + MLP(concat(W, S))        X <- X + FFN(LN(X))

per task: X the features to refine, T the k semantic tokens.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtlsi import kernels
from mtlsi.nn.layers import TaskDepthwise, TaskLayerNorm, TaskLinear, TaskMLP
from mtlsi.nn.layout import join_windows, split_windows, to_map


class CrossWindowBlock(nn.Module):
    """A map (b t c h w) whose positions see their own window and the semantic tokens (b t k c), linear in n = h*w.

    Paper: window self-attention and cross-attention to the tokens, side by side on the preliminary features;
    concatenated, fused by a residual MLP, then a feed-forward part.
    Choice: normalisation before each part; the windows carry no position bias, since convolutions know where they are:
    those before the block, and one of its own where ``positions`` is set; a map that the windows do not divide is padded
    and the padding is not attended to. With ``zero_start`` a new block passes its input on unchanged.
    """

    def __init__(
        self,
        num_tasks: int,
        channels: int,
        *,
        num_heads: int,
        window: int,
        ffn_ratio: int,
        positions: bool = False,
        zero_start: bool = False,
        read_all: bool = False,
    ):
        super().__init__()
        self.num_heads, self.window, self.read_all = num_heads, window, read_all
        self.positions = TaskDepthwise(num_tasks, channels) if positions else None
        self.norm = TaskLayerNorm(num_tasks, channels)
        self.window_qkv = TaskLinear(num_tasks, channels, 3 * channels)
        self.token_query = TaskLinear(num_tasks, channels, channels)
        self.token_key_value = TaskLinear(num_tasks, channels, 2 * channels)
        self.merge = TaskMLP(num_tasks, 2 * channels, channels, channels)
        self.ffn_norm = TaskLayerNorm(num_tasks, channels)
        self.ffn = TaskMLP(num_tasks, channels, ffn_ratio * channels, channels)
        if zero_start:
            for last in (self.merge.reduce, self.ffn.reduce):
                nn.init.zeros_(last.weight)

    def forward(
        self, features: Float[Tensor, "b t c h w"], tokens: Float[Tensor, "b t k c"]
    ) -> Float[Tensor, "b t c h w"]:
        if self.positions is not None:
            features = features + self.positions(features)
        x, mask = split_windows(features, self.window)  # b t n c, window by window
        normed = self.norm(x)
        x = x + self.merge(self.within_windows(normed, mask), self.to_tokens(normed, tokens))
        x = x + self.ffn(self.ffn_norm(x))
        return join_windows(x, features.shape[-2:], self.window)

    def within_windows(
        self, normed: Float[Tensor, "b t n c"], mask: Bool[Tensor, "bw 1 1 p"] | None
    ) -> Float[Tensor, "b t n c"]:
        """Window self-attention; n runs window by window."""
        to_windows = "b t (windows p) c -> (b windows) t p c"
        q, k, v = (rearrange(x, to_windows, p=self.window**2) for x in self.window_qkv.chunks(normed, 3))
        attended = kernels.attention(q, k, v, self.num_heads, mask)
        return rearrange(attended, "(b windows) t p c -> b t (windows p) c", b=normed.shape[0])

    def to_tokens(self, normed: Float[Tensor, "b t n c"], tokens: Float[Tensor, "b t k c"]) -> Float[Tensor, "b t n c"]:
        """Cross-attention whose keys and values are the tokens, those of its own task or (``read_all``) of all tasks."""
        keys, values = self.token_key_value.chunks(tokens, 2)
        if self.read_all:
            keys, values = (
                x.flatten(1, 2).unsqueeze(2).expand(-1, -1, x.shape[1], -1).transpose(1, 2) for x in (keys, values)
            )
        return kernels.attention(self.token_query(normed), keys, values, self.num_heads)


class CrossWindowBlocks(nn.ModuleList):
    """CWIBs one after another, all with the same tokens."""

    def forward(
        self, features: Float[Tensor, "b t c h w"], tokens: Float[Tensor, "b t k c"]
    ) -> Float[Tensor, "b t c h w"]:
        for block in self:
            features = block(features, tokens)
        return features


class OwnFeatures(nn.Module):
    """Paper: the CWIB refines the preliminary features (b t c h w)."""

    def forward(
        self,
        features: Float[Tensor, "b t c h w"],
        fused: Float[Tensor, "b t n c"],  # noqa: ARG002
    ) -> Float[Tensor, "b t c h w"]:
        return features


class FusedFeatures(nn.Module):
    """X = F + W fused: what the tasks told one another reaches a position at the position itself, not by tokens alone."""

    def __init__(self, num_tasks: int, channels: int, *, zero_start: bool):
        super().__init__()
        self.project = TaskLinear(num_tasks, channels, channels)
        if zero_start:
            nn.init.zeros_(self.project.weight)

    def forward(
        self, features: Float[Tensor, "b t c h w"], fused: Float[Tensor, "b t n c"]
    ) -> Float[Tensor, "b t c h w"]:
        return features + to_map(self.project(fused), features.shape[-2:])


class FusedAlone(nn.Module):
    """X = fused, where the fusion has added to the features themselves."""

    def forward(
        self, features: Float[Tensor, "b t c h w"], fused: Float[Tensor, "b t n c"]
    ) -> Float[Tensor, "b t c h w"]:
        return to_map(fused, features.shape[-2:])


class NoCrossWindow(FusedAlone):
    """The ablation without CWIB: the heads read the fused features, which reach it in the place of tokens."""
