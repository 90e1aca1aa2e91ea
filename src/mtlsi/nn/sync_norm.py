"""Batch norms whose statistics are those of the batches of all processes, on any device and backend.

With n_p values in process p's part of a channel, of mean m_p and sum of squared deviations s_p,

    n = sum_p n_p      m = sum_p n_p m_p / n      s = sum_p s_p + sum_p n_p (m_p - m)^2      y = (x - m) / sqrt(s / n + eps)

which is what one process computes on the whole batch. Sums of squares would lose the digits that means far from 0 take up.

Choice: our own, since ``torch.nn.SyncBatchNorm`` runs on GPUs alone, and its converter drops the activation of timm's
norms that have one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.kernels.recompute import batch_norms

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Norms that do nothing else. timm's also drop and activate what they have normalised, by ``drop`` and ``act``."""


def synchronise(module: nn.Module) -> None:
    """From now on every batch norm in ``module`` that trains takes its statistics over all processes.

    In evaluation, and where frozen, they do as before. The names of weights and buffers stay. Every process must call them
    in the same order. Raises ``MistakeError`` for a kind of batch norm that is not known.
    """
    for norm in batch_norms(module):
        if type(norm) not in KNOWN and not _activates(norm):
            raise MistakeError(
                f"{type(norm).__name__}: its batch statistics cannot be synchronised over processes; expected one of "
                f"{', '.join(kind.__name__ for kind in KNOWN)} or timm's BatchNormAct2d: train in one process"
            )
        norm.forward = partial(_forward, norm)


def _activates(norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and hasattr(norm, "drop") and hasattr(norm, "act")


def _forward(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    y, mean, variance, count = _Synchronised.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[misc]
    _keep(norm, mean, variance * (count / (count - 1)))
    return norm.act(norm.drop(y)) if _activates(norm) else y


@torch.no_grad()
def _keep(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Take the mean and the unbiased variance of a batch into the stored ones, as torch's norms do."""
    if not norm.track_running_stats or norm.running_mean is None:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), momentum)


class _Synchronised(torch.autograd.Function):
    """``x`` (b c ...) normalised over all axes but c of all processes; its mean, its variance and how many values it has.

    With g the gradient of y, and sums over all processes: dx = w / sqrt(v + eps) (g - sum g / n - xhat sum (g xhat) / n).
    Gradients of the gain and of the offset are those of this process, as for any parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(exact, axes, correction=0)
        mean, variance, count = _of_all(mean, variance, x.numel() // x.shape[1])
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradients[0]
        assert gradient is not None
        exact = torch.promote_types(x.dtype, torch.float32)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        normed = (x.to(exact) - mean.view(shape)) * inverse.view(shape)
        g = gradient.to(exact)
        own = torch.stack([g.sum(axes), (g * normed).sum(axes)])
        dx = None
        if ctx.needs_input_grad[0]:
            of_all = own.clone()
            dist.all_reduce(of_all)
            offset, slope = of_all / count
            scale = inverse if weight is None else inverse * weight.to(exact)
            dx = (g - offset.view(shape) - normed * slope.view(shape)) * scale.view(shape)
            dx = dx.to(x.dtype)
        d_weight = own[1].to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
        d_bias = own[0].to(x.dtype if weight is None else weight.dtype) if ctx.needs_input_grad[2] else None
        return dx, d_weight, d_bias, None


def _of_all(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (c) of all processes' values, and their number, from those of this one; one message for each."""
    own = torch.cat([mean, variance, mean.new_tensor([count])])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    found = torch.stack(parts)
    counts = found[:, -1:]
    means, variances = found[:, :-1].chunk(2, 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, variance, total
