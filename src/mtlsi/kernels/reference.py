"""Every operation in the paper's order: tasks, heads and scales are loops, every attention has its matrix.

Slow on purpose, and the reference that the tests hold all other forms to. Signatures: see ``mtlsi.kernels``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def task_linear(
    x: Float[Tensor, "b t n c"], weight: Float[Tensor, "t c d"], bias: Float[Tensor, "t 1 d"] | None = None
) -> Float[Tensor, "b t n d"]:
    """y_t = x_t W_t + b_t, task by task."""
    mapped = [x[:, t] @ weight[t] for t in range(len(weight))]
    return torch.stack(mapped if bias is None else [y + b for y, b in zip(mapped, bias, strict=True)], 1)


def task_linear_chunks(
    x: Float[Tensor, "b t n c"], weight: Float[Tensor, "t c d"], bias: Float[Tensor, "t 1 d"], num_chunks: int
) -> tuple[Tensor, ...]:
    """The linear map, then its channels cut into equal chunks."""
    return task_linear(x, weight, bias).chunk(num_chunks, -1)


def task_linear_concat(
    inputs: Sequence[Tensor], weight: Float[Tensor, "t c d"], bias: Float[Tensor, "t 1 d"]
) -> Float[Tensor, "b t n d"]:
    """The inputs concatenated along their channels, then the linear map."""
    return task_linear(torch.cat(list(inputs), -1), weight, bias)


def attention(
    queries: Float[Tensor, "b t n c"],
    keys: Float[Tensor, "b t k c"],
    values: Float[Tensor, "b t k c"],
    num_heads: int,
    mask: Bool[Tensor, "b 1 1 k"] | None = None,
) -> Float[Tensor, "b t n c"]:
    """softmax(Q K^T / sqrt(d)) V, head by head."""
    heads = []
    for q, k, v in zip(*(x.chunk(num_heads, -1) for x in (queries, keys, values)), strict=True):
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # b t n k
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(-1) @ v)
    return torch.cat(heads, -1)


def feature_map(x: Tensor) -> Tensor:
    """phi(x) = elu(x) + 1."""
    return F.elu(x) + 1


def global_context(
    keys: Float[Tensor, "b t m c"], values: Float[Tensor, "b t m c"], num_heads: int
) -> tuple[Float[Tensor, "b heads d d"], Float[Tensor, "b heads d"]]:
    """C = mean_m phi(k_m) v_m^T and z = mean_m phi(k_m), over the positions of all tasks, head by head."""
    contexts, normalisers = [], []
    for k, v in zip(keys.flatten(1, 2).chunk(num_heads, -1), values.flatten(1, 2).chunk(num_heads, -1), strict=True):
        features = feature_map(k)  # b m d
        contexts.append(features.mT @ v / k.shape[1])
        normalisers.append(features.mean(1))
    return torch.stack(contexts, 1), torch.stack(normalisers, 1)


def attend_and_expand(
    queries: Sequence[Float[Tensor, "b t n c"]],
    context: Float[Tensor, "b heads d d"],
    normaliser: Float[Tensor, "b heads d"],
    weight: Float[Tensor, "t sc o"],
    bias: Float[Tensor, "t 1 o"],
) -> Float[Tensor, "b t n o"]:
    """concat_s(phi(Q_s) C / phi(Q_s) z) W + b: linear attention at every scale, the scales concatenated and expanded."""
    attended = []
    for of_scale in queries:
        for head, q in enumerate(of_scale.chunk(context.shape[1], -1)):
            features = feature_map(q)  # b t n d
            weights = features @ normaliser[:, head, None, :, None]  # b t n 1
            attended.append(features @ context[:, head, None] / weights)
    return task_linear(torch.cat(attended, -1), weight, bias)


def assign_tokens(
    hidden: Float[Tensor, "b t n c"],
    features: Float[Tensor, "b t n e"],
    weight: Float[Tensor, "t c k"],
    bias: Float[Tensor, "t 1 k"],
) -> Float[Tensor, "b t k e"]:
    """softmax_k(H W + b)^T X, by way of the whole assignment (b t n k)."""
    return task_linear(hidden, weight, bias).softmax(-1).mT @ features


def separable_conv(
    x: Float[Tensor, "b t c h w"],
    spatial: Float[Tensor, "t c 1 3 3"],
    weight: Float[Tensor, "t c d"],
    bias: Float[Tensor, "t 1 d"],
    affine: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "b t d h w"]:
    """Depthwise 3x3, then 1x1: task by task the dense convolution that the two equal, then the norm."""
    kernel = torch.einsum("tcyx,tcd->tdcyx", spatial[:, :, 0], weight)
    mapped = [F.conv2d(x[:, t], kernel[t], bias[t, 0], padding=1) for t in range(len(kernel))]
    return _normalised(torch.stack(mapped, 1), affine)


def dense_conv(
    x: Float[Tensor, "b t c h w"],
    spatial: Float[Tensor, "t d c 3 3"],
    affine: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "b t d h w"]:
    """3x3 within each task, then the norm."""
    mapped = [F.conv2d(x[:, t], spatial[t], padding=1) for t in range(len(spatial))]
    return _normalised(torch.stack(mapped, 1), affine)


def project(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "t d c 1 1"], affine: tuple[Tensor, Tensor] | None = None
) -> Float[Tensor, "b t d h w"]:
    """One map through a 1x1 convolution of each task, then the norm."""
    return _normalised(torch.stack([F.conv2d(x, of_task) for of_task in weight], 1), affine)


def block_conv(
    x: Float[Tensor, "b i h w"], weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None
) -> Float[Tensor, "b o h w"]:
    """Block by block: a group of the channels of ``x`` through its own 1x1 convolution."""
    groups = x.split([weight.shape[1] for weight in weights], 1)
    offsets = biases or [None] * len(weights)
    mapped = [F.conv2d(g, w[..., None, None], b) for g, w, b in zip(groups, weights, offsets, strict=True)]
    return torch.cat(mapped, 1)


def _normalised(x: Tensor, affine: tuple[Tensor, Tensor] | None) -> Tensor:
    if affine is None:
        return x
    gain, offset = (value[..., None, None] for value in affine)  # t c 1 1
    return x * gain + offset
