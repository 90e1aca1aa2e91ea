"""The relations of ATRC: how a target task distils context from a source task.

    Q = query(X_t)        K = key(Y)        V = value(Y)

    global    Y = X_s                      phi(Q) (phi(K)^T V) / (phi(Q) sum_m phi(k_m))     phi = softplus, linear in n
    local     Y = X_s                      softmax(q_n . k_m / sqrt(a)) v_m, m in the window round n
    T-label   Y = softmax_n(A_t) X_s       softmax(Q K^T / sqrt(a)) V: the source gathered by the target's classes
    S-label   Y = softmax_n(A_s) X_s       the same, gathered by the source's own classes

X_t, X_s are the features of the two tasks, A the class scores of the auxiliary predictions: the softmax runs over the
positions, so that a class is the average of the features where it is found.
Axes: b batch, n = h*w positions, k classes, m keys, c channels, a channels of the attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtlsi import kernels

BLOCK = 8
"""Side of the blocks of queries that share their keys in local attention; changes the cost, not the result."""


class LinearNorm(nn.Module):
    """activation(BN(x W)) of rows (b m c), statistics over images and rows: a 1x1 convolution of positions or classes."""

    def __init__(self, in_channels: int, out_channels: int, activation: nn.Module | None):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = activation or nn.Identity()
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Float[Tensor, "b m c"]) -> Float[Tensor, "b m d"]:
        rows = self.linear(x).flatten(0, 1)
        return self.activation(self.norm(rows)).unflatten(0, (-1, x.shape[1]))


class Relation(nn.Module):
    """Target (b n c) and source (b m c), positions or classes -> context of the target (b n a).

    Paper: queries and keys by two layers each, values by one, every layer a 1x1 convolution, BN and ReLU.
    """

    last: type[nn.Module] = nn.ReLU
    """What ends queries and keys."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.query = nn.Sequential(LinearNorm(channels, width, nn.ReLU()), LinearNorm(width, width, self.last()))
        self.key = nn.Sequential(LinearNorm(channels, width, nn.ReLU()), LinearNorm(width, width, self.last()))
        self.value = LinearNorm(channels, width, nn.ReLU())

    def forward(
        self, target: Float[Tensor, "b n c"], source: Float[Tensor, "b m c"], size_hw: Sequence[int]
    ) -> Float[Tensor, "b n a"]:
        return self.attend(self.query(target), self.key(source), self.value(source), size_hw)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, size_hw: Sequence[int]) -> Tensor:  # noqa: ARG002
        """softmax(Q K^T / sqrt(a)) V."""
        return kernels.attention(queries.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), 1).squeeze(1)


class GlobalRelation(Relation):
    """Every position attends to every other, in linear time.

    Paper: softplus in place of the softmax, so that keys and values are summed before any query meets them.
    """

    last = nn.Softplus

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, size_hw: Sequence[int]) -> Tensor:  # noqa: ARG002
        return linear_attention(queries, keys, values)


class LocalRelation(Relation):
    """Every position attends to a square window round it. Paper: 9x9 positions."""

    def __init__(self, channels: int, width: int, window: int):
        super().__init__(channels, width)
        self.window = window

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, size_hw: Sequence[int]) -> Tensor:
        return local_attention(queries, keys, values, size_hw, self.window)


def build_relation(kind: str, channels: int, width: int, window: int) -> Relation:
    """The relation ``kind``: global, local, t_label or s_label; the last two differ in what they are given to read."""
    if kind == "global":
        return GlobalRelation(channels, width)
    return LocalRelation(channels, width, window) if kind == "local" else Relation(channels, width)


def linear_attention(
    queries: Float[Tensor, "b n a"], keys: Float[Tensor, "b m a"], values: Float[Tensor, "b m d"]
) -> Float[Tensor, "b n d"]:
    """Q (K^T V) / (Q sum_m k_m) for queries and keys above 0.

    The sums are means, which cancels and keeps half precision in range.
    """
    keys = keys / keys.shape[1]
    context, normaliser = keys.mT @ values, keys.sum(1).unsqueeze(-1)  # b a d, b a 1
    return (queries @ context) / (queries @ normaliser).clamp_min(1e-12)


def local_attention(
    queries: Float[Tensor, "b n a"],
    keys: Float[Tensor, "b n a"],
    values: Float[Tensor, "b n d"],
    size_hw: Sequence[int],
    window: int,
) -> Float[Tensor, "b n d"]:
    """softmax(q . k / sqrt(a)) v over the ``window`` x ``window`` positions round each of the map ``size_hw`` (h, w).

    As in the authors' code a position outside the map counts, with score 0 and value 0. Queries are taken in blocks that
    share the keys of their surroundings, so that the work is a few dense products and linear in n.
    """
    h, w = size_hw
    radius, pad_h, pad_w = window // 2, -h % BLOCK, -w % BLOCK
    q, k, v = (x.unflatten(1, (h, w)) for x in (queries, keys, values))  # b h w a
    q = F.pad(q, (0, 0, 0, pad_w, 0, pad_h))
    q = rearrange(q, "b (y i) (x j) a -> b (y x) (i j) a", i=BLOCK, j=BLOCK)
    k, v = (_surroundings(x, radius, pad_h, pad_w) for x in (k, v))  # b (y x) (i j) a
    near = _near(BLOCK, radius, q.device)  # 64 keys of a block
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
    pattern = "b (y x) (i j) d -> b (y i) (x j) d"
    out = rearrange(out, pattern, y=(h + pad_h) // BLOCK, i=BLOCK, j=BLOCK)
    return out[:, :h, :w].flatten(1, 2)


def _surroundings(x: Float[Tensor, "b h w a"], radius: int, pad_h: int, pad_w: int) -> Float[Tensor, "b y m a"]:
    """Of every block its positions and those up to ``radius`` from it, zeros outside the map."""
    side = BLOCK + 2 * radius
    x = F.pad(x, (0, 0, radius, radius + pad_w, radius, radius + pad_h))
    blocks = x.unfold(1, side, BLOCK).unfold(2, side, BLOCK)  # b y x a i j
    return rearrange(blocks, "b y x a i j -> b (y x) (i j) a")


def _near(block: int, radius: int, device: torch.device) -> Bool[Tensor, "n m"]:
    """Which of a block's surroundings lie in the window of each of its positions."""
    inner, outer = torch.arange(block, device=device), torch.arange(block + 2 * radius, device=device)
    offset = outer[None] - inner[:, None]  # i i'
    near = (offset >= 0) & (offset <= 2 * radius)
    return rearrange(near[:, None, :, None] & near[None, :, None, :], "i j u v -> (i j) (u v)")
