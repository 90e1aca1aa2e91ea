"""MT-MQLFB: multi-task multi-scale query linear fusion block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.nn.attention import global_context, query_shares
from mtlsi.nn.layers import (
    TaskBatchNorm,
    TaskLayerNorm,
    TaskLinear,
    TaskMLP,
    apart,
    linear_per_task,
    side_by_side,
    to_map,
    to_positions,
)


class MultiQueryLinearFusion(nn.Module):
    """Features (b t c h w) and all tasks' coarse predictions (b o h w) -> fused (b t n c), in time linear in n = h*w.

    Paper: each task's features and coarse prediction are projected and concatenated; queries of several scales come from
    convolutions across all tasks; one global context, from pooled and normalised features, serves every scale and task;
    an MLP merges the scales.
    Choice: elu + 1 as the kernel; the context pools squares of ``pool`` positions; the merged result is added to the
    projection; ``queries`` says how a query's convolution is made, see ``ModelConfig``.
    """

    def __init__(
        self,
        channels: int,
        outputs: Mapping[str, int],
        *,
        num_heads: int,
        scales: Sequence[int],
        pool: int,
        queries: str,
    ):
        super().__init__()
        if not scales or any(scale < 1 or scale % 2 == 0 for scale in scales):
            raise MistakeError(f"scales {list(scales)}; expected one or more odd kernel sizes, such as [1, 3, 5]")
        t = len(outputs)
        self.num_heads, self.pool = num_heads, pool
        self.project = TaskLinear(t, channels, channels)
        self.embed = nn.ModuleDict({task: nn.Conv2d(out, channels, 1, bias=False) for task, out in outputs.items()})
        self.query_norm = TaskBatchNorm(t, channels)
        self.context_norm = TaskLayerNorm(t, channels)
        self.key_value = TaskLinear(t, channels, 2 * channels)
        self.queries = build_queries(queries, t * channels, scales)
        self.merge = TaskMLP(t, len(scales) * channels, channels, channels)

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        size = features.shape[-2:]
        joined = to_map(self.project(to_positions(features)), size) + self.embedded(coarse)  # b t c h w
        context, normaliser = self.context(joined)  # b heads d d, b heads d: no task, no scale
        normed = side_by_side(self.query_norm(joined))  # b (t c) h w: all tasks side by side
        shares = [self.shares(queries, normaliser) for queries in self.queries(normed)]
        merged = self.merge.reduce(F.gelu(self.attended(shares, context)))
        return to_positions(joined) + merged

    def embedded(self, coarse: Tensor) -> Tensor:
        """All tasks' coarse predictions (b o h w), each projected: (b t c h w)."""
        kernel = torch.block_diag(*(cast(Tensor, layer.weight).flatten(1) for layer in self.embed.values()))
        return apart(F.conv2d(coarse, kernel[..., None, None]), len(self.embed))

    def context(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """The one context matrix (b heads d d) and its normaliser (b heads d), summed over the positions of all tasks."""
        pooled = F.avg_pool2d(side_by_side(joined), self.pool, ceil_mode=True)
        pooled = self.context_norm(to_positions(apart(pooled, len(self.embed))))
        of_heads = "b t m (heads d) -> b heads (t m) d"
        keys, values = (rearrange(x, of_heads, heads=self.num_heads) for x in self.key_value.parts(pooled, 2))
        return global_context(keys, values)

    def shares(self, queries: Tensor, normaliser: Tensor) -> Tensor:
        """What the queries of one scale (b (t c) h w), all tasks at once, take of the context's rows: (b t n c)."""
        by_head = rearrange(queries, "b (t heads d) h w -> b (h w) t heads d", t=len(self.embed), heads=self.num_heads)
        return query_shares(by_head, normaliser).flatten(3).transpose(1, 2)

    def attended(self, shares: Sequence[Tensor], context: Tensor) -> Tensor:
        """The shared context seen by every scale (b t n c), the scales joined and expanded by the merging MLP.

        The context and the expansion are two linear maps in a row: their product is applied, one for each image.
        """
        bias = self.merge.expand.bias
        weights = [w.unflatten(1, context.shape[1:3]) for w in self.merge.expand.weight.chunk(len(shares), 1)]
        images = []
        for i, of_image in enumerate(context):  # heads d e
            with torch.autocast(context.device.type, enabled=False):  # small, and both are float32
                seen = [torch.einsum("hde,theo->thdo", of_image, weight).flatten(1, 2) for weight in weights]
            products = (linear_per_task(x[i : i + 1], w) for x, w in zip(shares[1:], seen[1:], strict=True))
            images.append(sum(products, linear_per_task(shares[0][i : i + 1], seen[0], bias)))
        return images[0] if len(images) == 1 else torch.cat(images)


def build_queries(kind: str, channels: int, scales: Sequence[int]) -> nn.Module:
    """The convolutions across all tasks, of one of the kinds of ``ModelConfig.queries``: (b t*c h w) -> one such a scale."""
    if kind == "shared":
        return SharedQueries(channels, scales)
    if kind not in ("dense", "separable"):
        raise MistakeError(f"queries {kind!r}; expected dense, separable or shared")
    return Queries(AcrossTaskConvolution(channels, scale, dense=kind == "dense") for scale in scales)


class Queries(nn.ModuleList):
    """One convolution per scale, each with its own mixing of the tasks."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [convolution(x) for convolution in self]


class SharedQueries(nn.Module):
    """The tasks are mixed once, for all scales, and every scale but 1 then looks around: a third of the products.

    A scale's kernel thereby weighs the mixed channels, where that of the separable form weighs each task's own.
    """

    def __init__(self, channels: int, scales: Sequence[int]):
        super().__init__()
        self.across = nn.Conv2d(channels, channels, 1)
        self.spatial = nn.ModuleList(
            nn.Conv2d(channels, channels, scale, padding=scale // 2, groups=channels) if scale > 1 else nn.Identity()
            for scale in scales
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        mixed = self.across(x)
        return [look_around(mixed) for look_around in self.spatial]


class AcrossTaskConvolution(nn.Module):
    """A convolution of kernel ``scale`` that mixes the channels of all tasks: (b t*c h w) -> (b t*c h w)."""

    def __init__(self, channels: int, scale: int, *, dense: bool):
        super().__init__()
        separate = scale > 1 and not dense
        self.spatial = nn.Conv2d(channels, channels, scale, padding=scale // 2, groups=channels) if separate else None
        kernel = scale if dense else 1
        self.across = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.across(x if self.spatial is None else self.spatial(x))
