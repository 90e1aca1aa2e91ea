"""Semantic Token Distiller: a few tokens that stand for all positions."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtlsi.nn.layers import Index, TaskLayerNorm, TaskMLP, linear_per_task, pick, product_dtype, sums_per_task

POSITIONS_AT_ONCE = 1024


class SemanticTokenDistiller(nn.Module):
    """Fused features (b t n c) -> semantic tokens (b t k c), in time linear in n.

    Paper: a light MLP and a softmax assign the n positions softly to k tokens; a token is the sum of the fused features
    assigned to it. Choice: the softmax runs over the tokens, so that every position is shared out completely; tokens
    are normalised afterwards, so that a larger image does not make larger tokens.
    """

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.assign = TaskMLP(num_tasks, channels, channels, num_tokens)
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Tensor, index: Index = None) -> Tensor:
        hidden = F.gelu(self.assign.expand(fused, index))
        weight, bias = pick(self.assign.reduce.weight, index), pick(self.assign.reduce.bias, index)
        if fused.device.type != "cpu" or torch.compiler.is_compiling():
            sums = _shared_at_once(hidden, fused, weight, bias)
        else:
            sums = cast(Tensor, _SharedInParts.apply(hidden, fused, weight, bias))
        return self.norm((sums.mT / fused.shape[-2]).to(fused.dtype), index)


def _shared_at_once(hidden: Tensor, fused: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Hidden and fused features (b t n c), shared out to k tokens by weights (t c k): sums (b t c k), in float32.

    By way of the whole assignment (b t n k).
    """
    shares = linear_per_task(hidden, weight, bias).transpose(0, 1).float().softmax(-1)
    return (fused.transpose(0, 1).float().mT @ shares).transpose(0, 1)


class _SharedInParts(torch.autograd.Function):
    """The same sums, a part of the positions at a time: neither they nor their gradients have the whole assignment in
    memory. The backward pass makes it again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, fused: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.dtypes, dtype = [x.dtype for x in (hidden, fused, weight, bias)], product_dtype(fused)
        hidden, fused, weight = (x.to(dtype) for x in (hidden, fused, weight))
        ctx.save_for_backward(hidden, fused, weight, bias)
        sums, exact = [], torch.promote_types(dtype, torch.float32)
        with torch.autocast(fused.device.type, enabled=False):
            for i in range(len(fused)):
                parts = zip(_parts(hidden, i), _parts(fused, i), strict=True)
                sums.append(sum(sums_per_task(f, _shares(h, weight, bias)).to(exact) for h, f in parts))
        return torch.stack(cast(list[Tensor], sums))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor) -> tuple[Tensor, ...]:
        hidden, fused, weight, bias = ctx.saved_tensors
        of_hidden, of_fused = [], []
        of_weight, of_bias = torch.zeros_like(weight, dtype=of_sums.dtype), torch.zeros_like(bias)
        with torch.autocast(fused.device.type, enabled=False):
            for i, of_image in enumerate(of_sums):  # t c k; float32 up to the logits also where products are bf16
                for h, f in zip(_parts(hidden, i), _parts(fused, i), strict=True):
                    shares = _shares(h, weight, bias, of_sums.dtype)
                    of_f = linear_per_task(shares, of_image.mT)
                    # the softmax's mean of the gradient over the tokens is the same sum over channels, which are fewer
                    mean = (f * of_f).sum(-1, keepdim=True)
                    of_shares = linear_per_task(f.to(of_sums.dtype), of_image)
                    of_logits = of_shares.sub_(mean).mul_(shares).to(h.dtype)
                    of_fused.append(of_f.transpose(1, 2))
                    of_hidden.append(linear_per_task(of_logits, weight.mT).transpose(1, 2))
                    of_weight += sums_per_task(h, of_logits)
                    of_bias += of_logits.transpose(1, 2).sum((0, 1), dtype=bias.dtype).unsqueeze(1)
        joined = (torch.cat(x, 1).unflatten(1, (len(fused), -1))[0].transpose(1, 2) for x in (of_hidden, of_fused))
        grads = (*joined, of_weight, of_bias)
        return tuple(grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True))


def _parts(x: Tensor, i: int) -> tuple[Tensor, ...]:
    """Image ``i`` of positions (b t n c), some positions at a time: (1 t m c) each."""
    return x[i : i + 1].split(POSITIONS_AT_ONCE, 2)


def _shares(hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Every position's shares in the tokens (b t n k). The softmax is float32 inside, whatever goes in and comes out."""
    logits = linear_per_task(hidden, weight, bias.to(hidden.dtype))
    return logits.transpose(1, 2).softmax(-1, dtype).transpose(1, 2)


class PooledTokens(nn.Module):
    """The ablation without a distiller: fused features (b t n c) averaged over k runs of neighbours: (b t k c)."""

    def __init__(self, num_tasks: int, channels: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = TaskLayerNorm(num_tasks, channels)

    def forward(self, fused: Tensor, index: Index = None) -> Tensor:
        runs = F.adaptive_avg_pool1d(fused.flatten(0, 1).transpose(-2, -1), self.num_tokens)  # (b t) c k
        return self.norm(runs.transpose(-2, -1).unflatten(0, fused.shape[:2]), index)
