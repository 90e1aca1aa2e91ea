"""Semantic Token Distiller: a few tokens that stand for all positions.

    shares:     T = LN(A^T X / n)                       A = softmax_k(MLP(X))
    centroids:  T = LN(A^T X / A^T 1 - mean_n X)        A = softmax_k(s unit(WX - mean_n WX) P)

per task: X the fused features (n c), k tokens, P a unit vector for each, s a scale.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi import kernels
from mtlsi.nn.layers import TaskLayerNorm, TaskLinear, TaskMLP

FIRST_SCALE = 20.0
"""Of cosines before the softmax: with 64 channels, whose cosines begin at 1/8, logits begin with a deviation of 2.5."""
LEAST_SHARE = 1e-3
"""Positions."""


class SemanticTokenDistiller(nn.Module):
    """Fused features (b t n c) -> semantic tokens (b t k c), linear in n.

    Paper: a light MLP and a softmax assign the n positions softly to k tokens; a token is the sum of the fused features
    assigned to it.
    Choice: the softmax runs over the tokens, so that every position is shared out completely; tokens are divided by n and
    normalised, so that a larger image does not make larger tokens.
    """

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.assign = TaskMLP(num_tasks, channels, channels, num_tokens)
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t k c"]:
        hidden = F.gelu(self.assign.expand(fused))  # b t n c
        logits = self.assign.reduce  # the MLP's second map, whose n k logits are not stored
        sums = kernels.assign_tokens(hidden, fused, logits.weight, logits.bias)  # b t k c
        return self.norm((sums / fused.shape[2]).to(fused.dtype))

    def assignment(self, fused: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n k"]:
        """What each position gives to each token, 1 in all. To be looked at: ``forward`` never stores it."""
        return self.assign(fused).softmax(-1)


class CentroidDistiller(nn.Module):
    """Fused features (b t n c) -> semantic tokens (b t k c) that differ from one another, linear in n.

    Choice: with the paper's softmax of an MLP the assignment begins almost even, so that every token begins as the mean of
    the image; the norm then makes that common part the whole of a token, attention to such tokens is even as well, and no
    gradient tells them apart: trained, their mean cosine is 0.97 to 1.00 for depth. Here a position is assigned by its
    direction from the image's mean, sharply from the start, and a token is what its share has beyond that mean. A token
    that gets less than about a thousandth of a position fades to zero before the norm.
    """

    task_axes = ("directions", "log_scale")

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.project = TaskLinear(num_tasks, channels, channels)
        self.directions = nn.Parameter(torch.randn(num_tasks, channels, num_tokens))
        self.log_scale = nn.Parameter(torch.full((num_tasks, 1, 1), math.log(FIRST_SCALE)))
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t k c"]:
        weight = self.weight()
        counted = torch.cat(
            (fused, torch.ones_like(fused[..., :1])), -1
        )  # b t n c+1: the sum of ones is the token's share
        sums = kernels.assign_tokens(self.direction(fused), counted, weight, torch.zeros_like(weight[:, :1]))
        total, share = sums[..., :-1], sums[..., -1:]  # b t k c, b t k 1
        mean = fused.to(sums.dtype).mean(2, keepdim=True)
        return self.norm(((total - share * mean) / (share + LEAST_SHARE)).to(fused.dtype))

    def direction(self, fused: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n c"]:
        """Of every position from the image's mean, a unit vector."""
        projected = self.project(fused)
        return F.normalize(projected - projected.mean(2, keepdim=True), dim=-1)

    def weight(self) -> Float[Tensor, "t c k"]:
        """The tokens' unit vectors times the scale: what turns a direction into logits."""
        return F.normalize(self.directions, dim=1) * self.log_scale.exp()

    def assignment(self, fused: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n k"]:
        """What each position gives to each token, 1 in all. To be looked at: ``forward`` never stores it."""
        return (self.direction(fused) @ self.weight()).softmax(-1)


class PooledTokens(nn.Module):
    """The ablation without a distiller: the fused features averaged over k runs of neighbouring positions."""

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t k c"]:
        runs = F.adaptive_avg_pool1d(fused.flatten(0, 1).mT, self.num_tokens)  # (b t) c k
        return self.norm(runs.mT.unflatten(0, fused.shape[:2]))
