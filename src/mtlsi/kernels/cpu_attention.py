"""Attention on a CPU: where torch's fused kernel is slow, and the linear attention one image at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from mtlsi.kernels.cpu_linear import grouped_product, task_linear
from mtlsi.kernels.default import FROM_HEADS, TO_HEADS, query_shares, without_autocast

FEW_KEYS = 128
"""Up to here bf16 attention is written out: torch's fused kernel takes 6 times as long for 64 keys on a Zen 5."""
FEW_KEYS_TO_TRAIN = 1024
"""Up to here it is where gradients are wanted: the fused kernel's backward pass takes 3 times as long for 256 keys and 8
times as long for 64 on a Zen 4. What is kept for that pass grows with the keys."""
WIDE_HEAD = 32
"""From this width on, and for more keys, two grouped products beat torch's fused kernel on a Zen 5: by a tenth to a third
in float32, by a third to a half in bf16."""
SCORES_PER_CHUNK = 2**21


def written_out(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """Two products with the softmax between them."""
    q, k, v = (rearrange(x, TO_HEADS, heads=num_heads) for x in (queries, keys, values))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return rearrange(scores.softmax(-1) @ v, FROM_HEADS, heads=num_heads)


def is_bf16_with_few_keys(queries: Tensor, keys: Tensor, *_: object) -> bool:
    """What ``written_out`` is for."""
    return queries.dtype == torch.bfloat16 and keys.shape[2] <= FEW_KEYS


def is_trained_in_bf16(queries: Tensor, keys: Tensor, *_: object) -> bool:
    """The same where gradients are wanted, for more keys."""
    trained = torch.is_grad_enabled() and queries.requires_grad and not torch.compiler.is_compiling()
    return trained and queries.dtype == torch.bfloat16 and keys.shape[2] <= FEW_KEYS_TO_TRAIN


def chunked(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: None = None) -> Tensor:
    """Two grouped products, some positions at a time, so that their scores stay in the cache."""
    assert mask is None
    q, k, v = (rearrange(x, TO_HEADS, heads=num_heads) for x in (queries, keys, values))
    g = q.shape[1]
    per_chunk = max(1, SCORES_PER_CHUNK // (g * k.shape[2]))
    images = []
    for i in range(len(q)):
        rows = q[i : i + 1].transpose(1, 2).flatten(2)  # 1 n (g d)
        to_scores, to_values = (k[i] * q.shape[-1] ** -0.5).flatten(0, 1), v[i].mT.flatten(0, 1)  # (g k) d, (g d) k
        chunks = []
        for chunk in rows.split(per_chunk, 1):
            scores = grouped_product(chunk, to_scores, g).unflatten(2, (g, -1))
            chunks.append(grouped_product(scores.softmax(-1).flatten(2), to_values, g))
        images.append(torch.cat(chunks, 1))
    attended = torch.cat(images).unflatten(2, (g, -1)).transpose(1, 2)
    return rearrange(attended, FROM_HEADS, heads=num_heads)


def has_many_keys_and_wide_heads(queries: Tensor, keys: Tensor, _: Tensor, num_heads: int, mask: Tensor | None) -> bool:
    """What ``chunked`` is for; work in many chunks is neither for a backward pass nor for tracing."""
    wide = queries.shape[-1] // num_heads >= WIDE_HEAD
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return mask is None and keys.shape[2] > FEW_KEYS and wide and not traced


def attend_and_expand(
    queries: Sequence[Tensor], context: Tensor, normaliser: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """context @ W is folded into one matrix per image and scale; each image's products are grouped convolutions."""
    shares = [query_shares(q, normaliser) for q in queries]
    weights = [w.unflatten(1, context.shape[1:3]).to(context.dtype) for w in weight.chunk(len(queries), 1)]
    images = []
    for i, of_image in enumerate(context):  # heads d e
        with without_autocast(context):  # small, and both are float32
            folded = [torch.einsum("hde,theo->thdo", of_image, w).flatten(1, 2).to(weight.dtype) for w in weights]
        products = (task_linear(x[i : i + 1], w) for x, w in zip(shares[1:], folded[1:], strict=True))
        images.append(sum(products, task_linear(shares[0][i : i + 1], folded[0], bias)))
    return images[0] if len(images) == 1 else torch.cat(images)
