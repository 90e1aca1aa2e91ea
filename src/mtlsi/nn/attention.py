"""Attention in linear time: a kernel in place of the softmax, and a fixed number of tokens in place of the positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mtlsi.nn.layers import grouped_product

LOG2_E = 1 / math.log(2)
FEW_KEYS = 128
"""Up to here bf16 attention is written out on a CPU: torch's fused kernel takes 6 times as long there for 64 keys."""
WIDE_HEAD = 32
"""From this width on, and for more keys, a CPU is faster with two grouped products than with torch's fused kernel: by a
tenth to a third in float32, by a third to a half in bf16."""
SCORES_AT_ONCE = 2**21


def kernel_features(x: Tensor) -> Tensor:
    """The positive feature map ``elu(x) + 1`` that stands in for the softmax; any shape.

    Paper: "a kernel feature map". Choice: elu + 1, which is positive and smooth. Its exponential is taken to the base 2:
    on a CPU torch's ``elu`` takes 50 times as long as ``exp2``, and its ``exp`` 3 times.
    """
    return torch.exp2(x.clamp_max(0).mul_(LOG2_E)) + x.relu()


def global_context(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The context matrix ``sum_m phi(k_m) v_m^T`` and the normaliser ``sum_m phi(k_m)``, each divided by m.

    keys (... m d), values (... m e) -> context (... d e), normaliser (... d). Linear in m. Dividing both by m leaves
    the attention unchanged and keeps the sums in range; they are float32 also under autocast.
    """
    with torch.autocast(keys.device.type, enabled=False):
        features = kernel_features(keys.float()) / keys.shape[-2]
        return features.transpose(-2, -1) @ values.float(), features.sum(-2)


def query_shares(queries: Tensor, normaliser: Tensor) -> Tensor:
    """What a query takes of every row of the context: ``phi(q) / (phi(q) . normaliser)``, of the queries' type.

    queries (b ... heads d), normaliser (b heads d). Their product with the context (d e) is linear attention: equal to
    the attention matrix ``phi(q_n) . phi(k_m)``, divided by its row sums, times the values; that n x m matrix is never
    formed. The sum and the division are done in float32; without gradients everything is, in place: that is faster.
    """
    features = kernel_features(queries if torch.is_grad_enabled() else queries.float())
    between = (1,) * (queries.dim() - normaliser.dim())
    of_queries = normaliser.view(len(normaliser), *between, *normaliser.shape[1:])
    weight = (features * of_queries).sum(-1, keepdim=True, dtype=torch.float32).clamp_min(1e-6)
    return (features / weight if torch.is_grad_enabled() else features.div_(weight)).to(queries.dtype)


def token_attention(
    queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of queries (b t n c) over keys and values (b t k c), per task and head: (b t n c).

    ``mask`` (broadcast to b heads n k) is True where a query may look. Linear in n for a fixed number k of keys.
    """
    to_heads = "b t n (heads d) -> b (t heads) n d"
    q, k, v = (rearrange(x, to_heads, heads=num_heads) for x in (queries, keys, values))
    if q.device.type != "cpu":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    elif q.dtype == torch.bfloat16 and k.shape[-2] <= FEW_KEYS:
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        out = scores.softmax(-1) @ v
    elif mask is None and k.shape[-2] > FEW_KEYS and q.shape[-1] >= WIDE_HEAD and not needs_a_graph():
        out = _attend_in_parts(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b (t heads) n d -> b t n (heads d)", heads=num_heads)


def needs_a_graph() -> bool:
    """Whether what is computed now is kept for a backward pass or traced: work in many parts is for neither."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (b g n d) as two grouped products, some positions at a time, so that their scores stay in the cache."""
    g = q.shape[1]
    at_once = max(1, SCORES_AT_ONCE // (g * k.shape[2]))
    images = []
    for i in range(len(q)):
        rows = q[i : i + 1].transpose(1, 2).flatten(2)  # 1 n (g d)
        to_scores, to_values = (k[i] * q.shape[-1] ** -0.5).flatten(0, 1), v[i].mT.flatten(0, 1)  # (g k) d, (g d) k
        parts = []
        for part in rows.split(at_once, 1):
            scores = grouped_product(part, to_scores, g).unflatten(2, (g, -1))
            parts.append(grouped_product(scores.softmax(-1).flatten(2), to_values, g))
        images.append(torch.cat(parts, 1))
    return torch.cat(images).unflatten(2, (g, -1)).transpose(1, 2)
