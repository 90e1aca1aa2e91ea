"""Attention in linear time: a kernel in place of the softmax, and a fixed number of tokens in place of the positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FEW_KEYS = 128
"""Up to here bf16 attention is written out on a CPU: torch's fused kernel takes 6 times as long there for 64 keys."""


def kernel_features(x: Tensor) -> Tensor:
    """The positive feature map ``elu(x) + 1`` that stands in for the softmax; any shape.

    Paper: "a kernel feature map". Choice: elu + 1, which is positive and smooth.
    """
    return F.elu(x) + 1


def global_context(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The context matrix ``sum_m phi(k_m) v_m^T`` and the normaliser ``sum_m phi(k_m)``, each divided by m.

    keys (... m d), values (... m e) -> context (... d e), normaliser (... d). Linear in m. Dividing both by m leaves
    the attention unchanged and keeps the sums in range; they are float32 also under autocast.
    """
    with torch.autocast(keys.device.type, enabled=False):
        features = kernel_features(keys.float()) / keys.shape[-2]
        return features.transpose(-2, -1) @ values.float(), features.sum(-2)


def attend_context(queries: Tensor, context: Tensor, normaliser: Tensor) -> Tensor:
    """Linear attention of queries (... d n) over a context (... d e) with its normaliser (... d): (... e n).

    Equal to the attention matrix ``phi(q_n) . phi(k_m)``, divided by its row sums, times the values; that n x m matrix
    is never formed. Queries and result are channel-major, as maps are.
    """
    with torch.autocast(queries.device.type, enabled=False):
        features = kernel_features(queries.float())
        weight = normaliser.unsqueeze(-2) @ features  # ... 1 n
        return ((context.transpose(-2, -1) @ features) / weight.clamp_min(1e-6)).to(queries.dtype)


def token_attention(
    queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of queries (b n c) over keys and values (b k c), split into heads: (b n c).

    ``mask`` (broadcast to b heads n k) is True where a query may look. Linear in n for a fixed number k of keys.
    """
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=num_heads) for x in (queries, keys, values))
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= FEW_KEYS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        out = scores.softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b heads n d -> b n (heads d)")
