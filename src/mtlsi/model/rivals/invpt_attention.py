"""The attention of InvPT's blocks: the positions of all tasks attend to one another, and a stage hears of the one before.

    Q = BN(depthwise conv of stride 2 (X)) W_q      K, V = pool(X) W_kv      S_s = Q K^T / sqrt(c)
    fusion:     S_s <- W [S_s, up(S_{s-1})] + b          over the heads            A_s = softmax(S_s) V
    selective:  A_s = softmax(Q K_I^T / sqrt(c)) V_I     I = the keys that stage s-1 looked at most

X the maps of all tasks at stage s, whose keys every stage pools to one and the same coarse grid, so that key m of a stage
is key m of the next. b batch, t task, c channel, h w map, y x its half, m keys of all tasks, d head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.nn.layers import TaskBatchNorm
from mtlsi.nn.layout import apart, pool_maps, resize_maps, side_by_side

Heads = tuple[Float[Tensor, "b heads n d"], Float[Tensor, "b heads m d"], Float[Tensor, "b heads m d"]]
"""Queries, keys and values, head by head."""


class Queries(nn.Module):
    """BN(conv(x)): a depthwise 3x3 convolution of stride 2 within each task, (b t c h w) to (b t c y x)."""

    task_axes = ("spatial",)

    def __init__(self, num_tasks: int, channels: int):
        super().__init__()
        self.spatial = nn.Parameter(torch.empty(num_tasks, channels, 1, 3, 3).uniform_(-1 / 3, 1 / 3))
        self.norm = TaskBatchNorm(num_tasks, channels)

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c y x"]:
        kernel = self.spatial.flatten(0, 1)
        convolved = F.conv2d(side_by_side(x), kernel, stride=2, padding=1, groups=len(kernel))
        if self.training and convolved[:, 0].numel() == 1:
            raise MistakeError(
                "one image of 64x64 or less to train invpt on; its coarsest queries are then a single position, which "
                "has no batch statistics: give two images or a larger one"
            )
        return self.norm(apart(convolved, x.shape[1]))


class CrossTaskAttention(nn.Module):
    """Maps of all tasks (b t c h w) -> what each position took from all positions of all tasks, at half the side.

    Paper: queries are brought to half the side by a convolution, keys and values pooled to a grid that is coarser the
    finer the maps are, so that the cost stays bounded; the projections are shared by the tasks. Choice, as the authors'
    code: the scores are divided by the root of the channels, not of a head's.
    """

    def __init__(self, num_tasks: int, channels: int, *, num_heads: int, pool: int):
        super().__init__()
        self.num_heads, self.pool, self.scale = num_heads, pool, 1 / math.sqrt(channels)
        self.sample = Queries(num_tasks, channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.merge = nn.Linear(channels, channels)

    def heads(self, sampled: Float[Tensor, "b t c y x"], x: Float[Tensor, "b t c h w"]) -> Heads:
        """Queries of the ``sampled`` maps, keys and values of the pooled ones; n runs over positions, then tasks."""
        keys, values = self.key_value(_rows(pool_maps(x, self.pool))).chunk(2, -1)  # b m c
        q, k, v = (
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (self.query(_rows(sampled)), keys, values)
        )
        return q, k, v

    def to_map(
        self, attended: Float[Tensor, "b heads n d"], like: Float[Tensor, "b t c y x"]
    ) -> Float[Tensor, "b t c y x"]:
        """The heads merged, as maps of the sampled queries' shape."""
        merged = self.merge(attended.transpose(1, 2).flatten(2))  # b n c
        return merged.unflatten(1, (*like.shape[-2:], like.shape[1])).permute(0, 3, 4, 1, 2)


class FusionAttention(CrossTaskAttention):
    """The score maps of the stage before, upsampled over the queries, are fused with this stage's, over the heads.

    Paper: InvPT's attention message passing, the Fusion Attention of InvPT++: the scores before the softmax are passed on,
    interpolated to this stage's queries, concatenated with its own and mapped to as many heads by a 1x1 convolution; the
    result is passed on in turn.
    """

    def __init__(self, num_tasks: int, channels: int, *, num_heads: int, pool: int, is_first: bool):
        super().__init__(num_tasks, channels, num_heads=num_heads, pool=pool)
        self.fuse = None if is_first else nn.Conv2d(2 * num_heads, num_heads, 1)

    def forward(
        self, x: Float[Tensor, "b t c h w"], passed: Float[Tensor, "b heads v u t m"] | None
    ) -> tuple[Float[Tensor, "b t c y x"], Float[Tensor, "b heads y x t m"]]:
        """The attended maps and the scores to pass on; ``passed`` are those of the stage before, None at the first."""
        sampled = self.sample(x)  # b t c y x
        queries, keys, values = self.heads(sampled, x)
        scores = queries @ keys.mT * self.scale  # b heads n m
        if self.fuse is not None and passed is not None:
            upsampled = resize_scores(passed, sampled.shape[-2:]).flatten(2, 4)
            scores = self.fuse(torch.cat([scores, upsampled.to(scores.dtype)], 1))
        attended = self.to_map(scores.softmax(-1).to(values.dtype) @ values, sampled)
        return attended, scores.unflatten(2, (*sampled.shape[-2:], x.shape[1]))


class SelectiveAttention(CrossTaskAttention):
    """Only the keys that the stage before attended to most are attended to.

    Paper: the second kind of cross-scale attention of InvPT++, which chooses by the attention of a coarser scale what the
    finer one attends to, and so saves operations. The authors' code does not have it. Choice: importance is a key's mean
    attention over the queries of all tasks, within each head; the ``share`` most important of the keys that the stage
    before had are kept; the choice itself has no gradient.
    """

    def __init__(self, num_tasks: int, channels: int, *, num_heads: int, pool: int, share: float):
        super().__init__(num_tasks, channels, num_heads=num_heads, pool=pool)
        self.share = share
        """Of all keys, the part that is attended to: 1 at the first stage."""

    def forward(
        self, x: Float[Tensor, "b t c h w"], passed: Float[Tensor, "b heads m"] | None
    ) -> tuple[Float[Tensor, "b t c y x"], Float[Tensor, "b heads m"]]:
        """The attended maps and the importance of each key, 0 for those left out; ``passed`` is the stage before's."""
        sampled = self.sample(x)  # b t c y x
        queries, keys, values = self.heads(sampled, x)
        if passed is None:
            attention = (queries @ keys.mT * self.scale).softmax(-1).to(values.dtype)  # b heads n m
            return self.to_map(attention @ values, sampled), _importance(attention)
        chosen = passed.topk(math.ceil(self.share * passed.shape[-1]), sorted=False).indices  # b heads k
        rows = chosen[..., None].expand(-1, -1, -1, keys.shape[-1])
        attention = (queries @ keys.gather(2, rows).mT * self.scale).softmax(-1).to(values.dtype)  # b heads n k
        attended = self.to_map(attention @ values.gather(2, rows), sampled)
        return attended, torch.zeros_like(passed).scatter(2, chosen, _importance(attention))


def resize_scores(
    scores: Float[Tensor, "b heads v u t m"], size_hw: tuple[int, int] | torch.Size
) -> Float[Tensor, "b heads y x t m"]:
    """Scores of queries on a grid (v u), for queries on a finer one: bilinear within each task, key by key."""
    maps = scores.flatten(0, 1).flatten(3).permute(0, 3, 1, 2)  # (b heads) (t m) v u, channels-last as it lies
    resized = resize_maps(maps, size_hw).permute(0, 2, 3, 1)
    return resized.unflatten(3, scores.shape[-2:]).unflatten(0, scores.shape[:2])


def _rows(x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b n c"]:
    """All tasks' positions in the order of the memory, tasks of a position side by side: a view."""
    return x.permute(0, 3, 4, 1, 2).flatten(1, 3)


def _importance(attention: Float[Tensor, "b heads n m"]) -> Float[Tensor, "b heads m"]:
    """Each key's mean attention, float32 or wider."""
    return attention.detach().mean(2, dtype=torch.promote_types(attention.dtype, torch.float32))
