"""Semantic Token Distiller: a few tokens that stand for all positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsi.nn.layers import TaskLayerNorm, TaskMLP

POSITIONS_AT_ONCE = 4096


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

    def forward(self, fused: Tensor, index: Tensor | None = None) -> Tensor:
        # without gradients the n x k assignment is never whole in memory: it is summed as it is made
        parts = (fused,) if torch.is_grad_enabled() else fused.split(POSITIONS_AT_ONCE, 2)
        tokens = torch.stack([self._share_out(part, index) for part in parts]).sum(0)
        return self.norm(tokens / fused.shape[-2], index).to(fused.dtype)

    def _share_out(self, fused: Tensor, index: Tensor | None) -> Tensor:
        assignment = self.assign(fused, index).float().softmax(-1)  # b t n k, in float32: it is summed over n
        return assignment.transpose(-2, -1) @ fused.float()  # b t k c


class PooledTokens(nn.Module):
    """The ablation without a distiller: fused features (b t n c) averaged over k runs of neighbours: (b t k c)."""

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Tensor, index: Tensor | None = None) -> Tensor:
        runs = F.adaptive_avg_pool1d(fused.flatten(0, 1).transpose(-2, -1), self.num_tokens)  # (b t) c k
        return self.norm(runs.transpose(-2, -1).unflatten(0, fused.shape[:2]), index)
