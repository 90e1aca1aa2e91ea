"""Semantic Token Distiller: a few tokens that stand for all positions.

    tokens = LN(softmax_k(MLP(X))^T X / n)

per task: X the fused features (n c), k tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi import kernels
from mtlsi.nn.layers import TaskLayerNorm, TaskMLP


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


class PooledTokens(nn.Module):
    """The ablation without a distiller: the fused features averaged over k runs of neighbouring positions."""

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t k c"]:
        runs = F.adaptive_avg_pool1d(fused.flatten(0, 1).mT, self.num_tokens)  # (b t) c k
        return self.norm(runs.mT.unflatten(0, fused.shape[:2]))
