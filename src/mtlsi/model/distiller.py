"""Semantic Token Distiller: a few tokens that stand for all positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsi.nn.layers import Index, TaskLayerNorm, TaskMLP

POSITIONS_AT_ONCE = 1024


class SemanticTokenDistiller(nn.Module):
    """Fused features (b t n c) -> semantic tokens (b t k c), in time linear in n.

    Paper: a light MLP and a softmax assign the n positions softly to k tokens; a token is the sum of the fused features
    assigned to it. Choice: the softmax runs over the tokens, so that every position is shared out completely; tokens
    are normalised afterwards, so that a larger picture does not make larger tokens.
    """

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.assign = TaskMLP(num_tasks, channels, channels, num_tokens)
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Tensor, index: Index = None) -> Tensor:
        hidden = F.gelu(self.assign.expand(fused, index))
        in_parts = fused.device.type == "cpu" and not torch.is_grad_enabled()
        tokens = (self._in_parts if in_parts else self._at_once)(hidden, fused, index)
        return self.norm((tokens / fused.shape[-2]).to(fused.dtype), index)

    def _at_once(self, hidden: Tensor, fused: Tensor, index: Index) -> Tensor:
        """The sums, by way of the whole assignment (b t n k), in float32: it is summed over n."""
        shares = self.assign.reduce(hidden, index).float().softmax(-1)
        return (shares.transpose(0, 1).mT @ fused.transpose(0, 1).float()).transpose(0, 1)

    def _in_parts(self, hidden: Tensor, fused: Tensor, index: Index) -> Tensor:
        """The same sums, a part of the positions at a time: the assignment is never whole in memory."""
        b, t, _, c = fused.shape
        sums = fused.new_zeros(b, t, c, self.assign.reduce.weight.shape[-1], dtype=torch.float32)
        for i in range(b):
            parts = (x[i : i + 1].split(POSITIONS_AT_ONCE, 2) for x in (hidden, fused))
            for hidden_part, fused_part in zip(*parts, strict=True):  # 1 t n c
                shares = self.assign.reduce(hidden_part, index).softmax(-1)
                sums[i : i + 1] += fused_part.mT @ shares  # the small one turned: the other way round takes longer
        return sums.mT


class PooledTokens(nn.Module):
    """The ablation without a distiller: fused features (b t n c) averaged over k runs of neighbours: (b t k c)."""

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Tensor, index: Index = None) -> Tensor:
        runs = F.adaptive_avg_pool1d(fused.flatten(0, 1).transpose(-2, -1), self.num_tokens)  # (b t) c k
        return self.norm(runs.transpose(-2, -1).unflatten(0, fused.shape[:2]), index)
