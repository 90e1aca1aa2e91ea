"""MT-MQLFB: multi-task multi-scale query linear fusion block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.nn.attention import attend_context, global_context
from mtlsi.nn.layers import TaskBatchNorm, TaskLayerNorm, TaskLinear, TaskMLP, to_positions


class MultiQueryLinearFusion(nn.Module):
    """Features (b t c h w) and coarse predictions of all tasks -> fused features (b t n c), in time linear in n = h*w.

    Paper: each task's features and coarse prediction are projected and concatenated; queries of several scales come from
    convolutions across all tasks; one global context, from pooled and normalised features, serves every scale and task;
    an MLP merges the scales.
    Choice: elu + 1 as the kernel; each query's convolution is depthwise, then 1x1 across all tasks (``dense=True``: one
    dense convolution); the context pools squares of ``pool`` positions; the merged result is added to the projection.
    """

    def __init__(
        self,
        channels: int,
        outputs: Mapping[str, int],
        *,
        num_heads: int,
        scales: Sequence[int],
        pool: int,
        dense: bool,
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
        self.queries = nn.ModuleList(AcrossTaskConvolution(t * channels, scale, dense=dense) for scale in scales)
        self.merge = TaskMLP(t, len(scales) * channels, channels, channels)

    def forward(self, features: Tensor, coarse: Mapping[str, Tensor]) -> Tensor:
        embedded = torch.stack([self.embed[task](coarse[task]) for task in self.embed], 1)
        joined = self.project.on_map(features) + embedded  # b t c h w
        context, normaliser = self.context(joined)  # b heads d d, b heads d: no task, no scale
        normed = self.query_norm(joined).flatten(1, 2)  # b (t c) h w: all tasks side by side
        scales = [self.attend(query(normed), context, normaliser) for query in self.queries]
        return to_positions(joined + self.merge.on_map(torch.cat(scales, 2)))

    def context(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """The one context matrix (b heads d d) and its normaliser (b heads d), summed over the positions of all tasks."""
        pooled = F.avg_pool2d(joined.flatten(1, 2), self.pool, ceil_mode=True)
        pooled = to_positions(pooled.unflatten(1, joined.shape[1:3]))
        key_value = self.key_value(self.context_norm(pooled))
        keys, values = rearrange(
            key_value, "b t m (pair heads d) -> pair b heads (t m) d", pair=2, heads=self.num_heads
        )
        return global_context(keys, values)

    def attend(self, queries: Tensor, context: Tensor, normaliser: Tensor) -> Tensor:
        """Queries of one scale (b (t c) h w), all tasks at once, over the shared context: (b t c h w)."""
        h = queries.shape[-2]
        q = rearrange(queries, "b (t heads d) h w -> b t heads d (h w)", t=len(self.embed), heads=self.num_heads)
        out = attend_context(q, context.unsqueeze(1), normaliser.unsqueeze(1))
        return rearrange(out, "b t heads d (h w) -> b t (heads d) h w", h=h)


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
