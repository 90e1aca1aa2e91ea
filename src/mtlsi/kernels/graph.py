"""Operations for graphs that other runtimes run: maps stay channels-first, a linear map is a grouped 1x1 convolution.

A runtime has no views: where torch reads one memory in several orders, it copies. Its fastest convolutions keep a memory
order of their own from one to the next, which transpositions would break. No loop over images, so that the batch size stays
free. Signatures: see ``mtlsi.kernels``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def task_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One convolution whose groups are the tasks, over the positions as a line."""
    lines = x.transpose(2, 3).flatten(1, 2).unsqueeze(3)  # b (t c) n 1
    return _convolved(lines, weight, bias).squeeze(3).unflatten(1, (len(weight), -1)).transpose(2, 3)


def task_linear_chunks(x: Tensor, weight: Tensor, bias: Tensor, num_chunks: int) -> tuple[Tensor, ...]:
    """A convolution for each chunk."""
    chunks = zip(weight.chunk(num_chunks, -1), bias.chunk(num_chunks, -1), strict=True)
    return tuple(task_linear(x, w, b) for w, b in chunks)


def task_linear_concat(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution for each input, added: the inputs are never concatenated."""
    weights = weight.split([x.shape[-1] for x in inputs], 1)
    products = (task_linear(x, w) for x, w in zip(inputs[1:], weights[1:], strict=True))
    return sum(products, task_linear(inputs[0], weights[0], bias))


def attend_and_expand(
    queries: Sequence[Tensor], context: Tensor, normaliser: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """context @ W is folded into one matrix per image and scale, so the attended features are never formed."""
    rows = [w.unflatten(1, context.shape[1:3]).to(context.dtype) for w in weight.chunk(len(queries), 1)]
    folded = [(context.unsqueeze(1) @ w).flatten(2, 3) for w in rows]  # b t heads d o, then b t c o
    products = [_query_shares(q, normaliser) @ w.to(q.dtype) for q, w in zip(queries, folded, strict=True)]
    return sum(products[1:], products[0]) + bias


def separable_conv(
    x: Tensor, spatial: Tensor, weight: Tensor, bias: Tensor, affine: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Two grouped convolutions, the second of which takes up the norm."""
    if affine is not None:
        gain, offset = (value.unsqueeze(1) for value in affine)  # t 1 d
        weight, bias = weight * gain, bias * gain + offset
    t, c = x.shape[1:3]
    maps = F.conv2d(x.flatten(1, 2), spatial.flatten(0, 1), padding=1, groups=t * c)
    return _convolved(maps, weight, bias).unflatten(1, (t, -1))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A map (b (t c) h w) through the 1x1 convolution of each task, (t c d): (b (t d) h w)."""
    kernel = weight.mT.flatten(0, 1)[..., None, None]
    return F.conv2d(x, kernel, None if bias is None else bias.flatten(), groups=len(weight))


def _query_shares(queries: Tensor, normaliser: Tensor) -> Tensor:
    """phi(q) / (phi(q) . z), (b t n c), of the queries' type; the sum and the division are float32 or wider."""
    exact = torch.promote_types(queries.dtype, torch.float32)
    features = (F.elu(queries.to(exact)) + 1).unflatten(3, normaliser.shape[1:])  # b t n heads d
    weight = (features * normaliser[:, None, None]).sum(-1, keepdim=True).clamp_min(1e-6)
    return (features / weight).to(queries.dtype).flatten(3)
