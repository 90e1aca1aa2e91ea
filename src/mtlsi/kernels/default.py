"""Every operation in batched products, for any device, for export and for compilation.

Signatures: see ``mtlsi.kernels``. No loop over images: the batch size stays free in an exported graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mtlsi.kernels.choice import choose, makes_graph

LOG2_E = 1 / math.log(2)
TO_HEADS = "b t n (heads d) -> b (t heads) n d"
FROM_HEADS = "b (t heads) n d -> b t n (heads d)"


def task_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One batched product, tasks as its batch."""
    rows = x.transpose(0, 1).flatten(1, 2)  # t (b n) c
    mapped = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
    return mapped.unflatten(1, x.shape[::2]).transpose(0, 1)


def task_linear_chunks(x: Tensor, weight: Tensor, bias: Tensor, num_chunks: int) -> tuple[Tensor, ...]:
    """One product, cut afterwards."""
    return task_linear(x, weight, bias).chunk(num_chunks, -1)


def task_linear_concat(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """A product for each input with its rows of the weight, added: the inputs are never concatenated."""
    weights = weight.split([x.shape[-1] for x in inputs], 1)
    products = (task_linear(x, w) for x, w in zip(inputs[1:], weights[1:], strict=True))
    return sum(products, task_linear(inputs[0], weights[0], bias))


def attention(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """torch's fused attention."""
    q, k, v = (rearrange(x, TO_HEADS, heads=num_heads) for x in (queries, keys, values))
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), FROM_HEADS, heads=num_heads)


def feature_map(x: Tensor) -> Tensor:
    """elu(x) + 1 by way of powers of two: on a CPU torch's ``elu`` takes 50 times as long as ``exp2``, ``exp`` 3 times."""
    if makes_graph():
        return F.elu(x) + 1
    return torch.exp2(x.clamp_max(0).mul_(LOG2_E)) + x.relu()


def global_context(keys: Tensor, values: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Float32 or wider, also under autocast: the sums run over all positions. Dividing by their number keeps the range."""
    by_head = "b t m (heads d) -> b heads (t m) d"
    exact = torch.promote_types(keys.dtype, torch.float32)
    keys, values = (rearrange(x, by_head, heads=num_heads).to(exact) for x in (keys, values))
    with without_autocast(keys):
        features = feature_map(keys) / keys.shape[-2]
        return features.mT @ values, features.sum(-2)


def attend_and_expand(
    queries: Sequence[Tensor], context: Tensor, normaliser: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """context @ W is folded into one matrix per image and scale, so the attended features are never formed."""
    with without_autocast(context):  # small, and in the context's float32
        rows = [w.unflatten(1, context.shape[1:3]).to(context.dtype) for w in weight.chunk(len(queries), 1)]
        folded = [torch.einsum("bhde,theo->bthdo", context, w).flatten(2, 3) for w in rows]  # b t c o
    shares = [query_shares(q, normaliser) for q in queries]
    out = sum(
        (x @ w.to(x.dtype) for x, w in zip(shares[1:], folded[1:], strict=True)),
        shares[0] @ folded[0].to(shares[0].dtype),
    )
    return out + bias.to(out.dtype)


def query_shares(queries: Tensor, normaliser: Tensor) -> Tensor:
    """phi(q) / (phi(q) . z), (b t n c), of the queries' type: what a query takes of each row of the context.

    The sum and the division are float32 or wider. Without gradients everything is, in place, which is faster.
    """
    exact, grad = torch.promote_types(queries.dtype, torch.float32), torch.is_grad_enabled()
    by_head = queries.transpose(1, 2).unflatten(3, normaliser.shape[1:])  # b n t heads d, as it lies in memory
    features = feature_map(by_head if grad else by_head.to(exact))
    weight = (features * normaliser[:, None, None]).sum(-1, keepdim=True, dtype=exact).clamp_min(1e-6)
    shares = features / weight if grad else features.div_(weight)
    return shares.to(queries.dtype).flatten(3).transpose(1, 2)


def assign_tokens(hidden: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """By way of the whole assignment (b t n k); the softmax and the sums are float32 or wider."""
    exact = torch.promote_types(features.dtype, torch.float32)
    shares = task_linear(hidden, weight, bias).transpose(0, 1).to(exact).softmax(-1)
    return (features.transpose(0, 1).to(exact).mT @ shares).mT.transpose(0, 1)


def separable_conv(
    x: Tensor, spatial: Tensor, weight: Tensor, bias: Tensor, affine: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """A grouped convolution over all tasks, then the task-wise linear map, which takes up the norm."""
    if affine is not None:
        gain, offset = (value.unsqueeze(1) for value in affine)  # t 1 d
        weight, bias = weight * gain, bias * gain + offset
    t, c, h, w = x.shape[1:]
    maps = F.conv2d(side_by_side(x), spatial.flatten(0, 1), padding=1, groups=t * c)
    rows = maps.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (t, c)).transpose(1, 2)  # b t (h w) c
    mapped = choose("task_linear", rows, weight, bias)(rows, weight, bias)
    return mapped.transpose(1, 2).unflatten(1, (h, w)).permute(0, 3, 4, 1, 2)


def dense_conv(x: Tensor, spatial: Tensor, affine: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """A grouped convolution, a task a group; its kernel takes up the norm."""
    kernel, bias = _with_norm(spatial, affine)
    return apart(F.conv2d(side_by_side(x), kernel, bias, padding=1, groups=len(spatial)), len(spatial))


def project(x: Tensor, weight: Tensor, affine: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """One convolution for all tasks; its kernel takes up the norm."""
    kernel, bias = _with_norm(weight, affine)
    return apart(F.conv2d(x, kernel, bias), len(weight))


def block_conv(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> Tensor:
    """One convolution with a block-diagonal kernel: cutting the channels apart costs more than its zeros."""
    bias = None if biases is None else torch.cat(list(biases))
    return F.conv2d(x, torch.block_diag(*weights)[..., None, None], bias)


def _with_norm(kernel: Tensor, affine: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """A kernel (t d c y x) as ((t d) c y x), with the norm's gain and offset (t d) in it."""
    if affine is None:
        return kernel.flatten(0, 1), None
    gain, offset = affine
    return (kernel * gain[..., None, None, None]).flatten(0, 1), offset.flatten()


def side_by_side(x: Tensor) -> Tensor:
    """(b t c h w) -> (b (t c) h w): all tasks' channels in one map, a view where memory is (b h w t c)."""
    if makes_graph():
        return x.flatten(1, 2)
    return x.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)


def apart(x: Tensor, num_tasks: int) -> Tensor:
    """(b (t c) h w) -> (b t c h w), a view."""
    if makes_graph():
        return x.unflatten(1, (num_tasks, -1))
    return x.permute(0, 2, 3, 1).unflatten(3, (num_tasks, -1)).permute(0, 3, 4, 1, 2)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Within the context products keep the type of their operands; the meta device knows no autocast."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
