"""The assignment to tokens on a CPU, chunked, so that it (b t n k) is never stored whole; backward recomputes it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlsi.kernels.cpu_linear import outer_sums, product_dtype, task_linear

POSITIONS_PER_CHUNK = 1024


def assign_tokens(hidden: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Chunk by chunk: softmax over the tokens, then this chunk's share of the sums; (b t k c) in float32 or wider."""
    return cast(Tensor, _AssignTokens.apply(hidden, features, weight, bias)).mT


class _AssignTokens(torch.autograd.Function):
    """The sums with channels before tokens (b t c k), as the products give them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.dtypes, dtype = [x.dtype for x in (hidden, features, weight, bias)], product_dtype(features)
        hidden, features, weight = (x.to(dtype) for x in (hidden, features, weight))
        ctx.save_for_backward(hidden, features, weight, bias)
        sums, exact = [], torch.promote_types(dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            for image in range(len(features)):
                chunks = zip(_chunks(hidden, image), _chunks(features, image), strict=True)
                sums.append(sum(outer_sums(f, _assignment(h, weight, bias)).to(exact) for h, f in chunks))
        return torch.stack(cast(list[Tensor], sums))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, ...]:
        hidden, features, weight, bias = ctx.saved_tensors
        grads_hidden, grads_features = [], []
        grad_weight, grad_bias = torch.zeros_like(weight, dtype=grad_sums.dtype), torch.zeros_like(bias)
        with torch.autocast(features.device.type, enabled=False):
            for image, grad in enumerate(grad_sums):  # t c k; float32 up to the logits also where products are bf16
                for h, f in zip(_chunks(hidden, image), _chunks(features, image), strict=True):
                    assignment = _assignment(h, weight, bias, grad_sums.dtype)
                    grad_f = task_linear(assignment, grad.mT)
                    # the softmax's mean of the gradient over the tokens is the same sum over channels, which are fewer
                    mean = (f * grad_f).sum(-1, keepdim=True)
                    grad_assignment = task_linear(f.to(grad_sums.dtype), grad)
                    grad_logits = grad_assignment.sub_(mean).mul_(assignment).to(h.dtype)
                    grads_features.append(grad_f.transpose(1, 2))
                    grads_hidden.append(task_linear(grad_logits, weight.mT).transpose(1, 2))
                    grad_weight += outer_sums(h, grad_logits)
                    grad_bias += grad_logits.transpose(1, 2).sum((0, 1), dtype=bias.dtype).unsqueeze(1)
        joined = (
            torch.cat(x, 1).unflatten(1, (len(features), -1))[0].transpose(1, 2) for x in (grads_hidden, grads_features)
        )
        grads = (*joined, grad_weight, grad_bias)
        return tuple(grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True))


def _chunks(x: Tensor, image: int) -> tuple[Tensor, ...]:
    """The positions (b t n c) of one image, some at a time: (1 t m c) each."""
    return x[image : image + 1].split(POSITIONS_PER_CHUNK, 2)


def _assignment(hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What each position gives each token (b t n k). The softmax is float32 inside, whatever goes in and comes out."""
    logits = task_linear(hidden, weight, bias.to(hidden.dtype))
    return logits.transpose(1, 2).softmax(-1, dtype).transpose(1, 2)
