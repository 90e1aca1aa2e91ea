"""MT-MQLFB: multi-task multi-scale query linear fusion block.

    J = W F + E coarse                                     per task: projected features and coarse prediction
    K, V = LN(pool(J)) W_kv      C = mean_m phi(k_m) v_m^T      z = mean_m phi(k_m)
    Q_s = conv_s(BN(J))                                    across all tasks, kernel s = 1, 3, 5
    A_s = phi(Q_s) C / (phi(Q_s) z)                        linear attention, phi(x) = elu(x) + 1
    fused = J + MLP(concat_s A_s)                          with ``onto: features``  F + MLP(concat_s A_s)

C and z are one for all tasks and scales: m runs over the pooled positions of every task. In a clip they may be those of more
frames than one, see ``running_context.py``. With ``context: centroids`` queries and keys are logarithms of shares, and a row
of C is what a share, that of one of a head's d channels, has beyond the mean:

    Q_s, K <- log softmax_d(s unit(x - mean_n x))          phi of it: softmax_d
    C_i <- z_i LN(C_i / z_i - mean_m v_m)                  mean_m v_m = sum_i C_i
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi import kernels
from mtlsi.errors import MistakeError
from mtlsi.nn.layers import PredictionEmbedding, TaskBatchNorm, TaskLayerNorm, TaskLinear, TaskMLP
from mtlsi.nn.layout import apart, pool_maps, side_by_side, to_map, to_positions

ReplaceContext = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The C and z of an image to those that are attended to."""
CONTEXTS = ("sums", "centroids")
ONTO = ("joined", "features")
FIRST_DEVIATION = 2.5
"""Of the logits that shares begin with: a few of a head's channels then have most of a position."""
LEAST_SHARE = 1e-4
"""Of the positions."""


class MultiQueryLinearFusion(nn.Module):
    """Features (b t c h w) and coarse predictions (b o h w) of all tasks -> fused features (b t n c), linear in n = h*w.

    Paper: each task's features and coarse prediction are projected and concatenated; queries of several scales come from
    convolutions across all tasks; one global context, from pooled and normalised features, serves every scale and task;
    an MLP merges the scales.
    Choice: elu + 1 as phi; the pool averages squares of ``pool`` positions; the merged result is added to J, or with
    ``onto: features`` to F, where it begins at zero if ``zero_start``; ``queries`` says how a query's convolution is made,
    see ``ModelConfig``; ``context`` is one of ``CONTEXTS`` and ``onto`` of ``ONTO``, see ``Form``; without ``fuse_coarse``
    the features alone are read; without ``gradient`` what is read learns nothing from it.
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
        context: str = "sums",
        fuse_coarse: bool = True,
        onto: str = "joined",
        gradient: bool = True,
        zero_start: bool = False,
    ):
        super().__init__()
        if not scales or any(scale < 1 or scale % 2 == 0 for scale in scales):
            raise MistakeError(f"scales {list(scales)}; expected one or more odd kernel sizes, such as [1, 3, 5]")
        t = len(outputs)
        self.num_heads, self.pool, self.onto, self.gradient = num_heads, pool, onto, gradient
        self.project = TaskLinear(t, channels, channels)
        self.embed = PredictionEmbedding(outputs, channels) if fuse_coarse else None
        self.query_norm = TaskBatchNorm(t, channels)
        self.context_norm = TaskLayerNorm(t, channels)
        self.key_value = TaskLinear(t, channels, 2 * channels)
        self.queries = build_queries(queries, t * channels, scales)
        self.merge = TaskMLP(t, len(scales) * channels, channels, channels)
        if zero_start and onto == "features":
            nn.init.zeros_(self.merge.reduce.weight)
        self.key_shares = self.query_shares = None
        if context == "centroids":
            self.key_shares = LogShares(num_heads, channels // num_heads)
            self.query_shares = nn.ModuleList(LogShares(num_heads, channels // num_heads) for _ in scales)

    def forward(
        self,
        features: Float[Tensor, "b t c h w"],
        coarse: Float[Tensor, "b o h w"],
        replaced: ReplaceContext | None = None,
    ) -> Float[Tensor, "b t n c"]:
        joined = self.joined(features, coarse)  # b t c h w
        context, normaliser = self.context(joined)  # b heads d d, b heads d
        if replaced is not None:
            context, normaliser = replaced(context, normaliser)
        queries = self.queries(side_by_side(self.query_norm(joined)))  # for each scale: b (t c) h w
        queries = [to_positions(apart(q, features.shape[1])) for q in queries]  # b t n c
        if self.query_shares is not None:
            queries = [shares(q) for shares, q in zip(self.query_shares, queries, strict=True)]
            context = centroids(context, normaliser)
        expand = self.merge.expand
        hidden = kernels.attend_and_expand(queries, context, normaliser, expand.weight, expand.bias)  # b t n c
        return self.own(features, joined) + self.merge.reduce(F.gelu(hidden))

    def joined(
        self, features: Float[Tensor, "b t c h w"], coarse: Float[Tensor, "b o h w"]
    ) -> Float[Tensor, "b t c h w"]:
        """J: each task's features and coarse prediction, projected and added, which is projecting their concatenation."""
        if not self.gradient:
            features, coarse = features.detach(), coarse.detach()
        projected = to_map(self.project(to_positions(features)), features.shape[-2:])
        return projected if self.embed is None else projected + self.embed(coarse)

    def own(self, features: Float[Tensor, "b t c h w"], joined: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t n c"]:
        """What a position has before anything is added to it."""
        return to_positions(features if self.onto == "features" else joined)

    def context(
        self, joined: Float[Tensor, "b t c h w"]
    ) -> tuple[Float[Tensor, "b heads d d"], Float[Tensor, "b heads d"]]:
        """C and z from J pooled over squares of ``pool`` positions."""
        pooled = pool_maps(joined, self.pool)
        keys, values = self.key_value.chunks(self.context_norm(to_positions(pooled)), 2)  # b t m c
        if self.key_shares is not None:
            keys = self.key_shares(keys)
        return kernels.global_context(keys, values, self.num_heads)


class LogShares(nn.Module):
    """Queries or keys to the logarithms of shares, which phi makes shares: a position is shared out to a head's d channels.

    By its direction from the image's mean, sharply from the start. elu(x) + 1 is exp(x) for x up to 0.
    Choice: with elu + 1 of plain products a position takes of every row of C about what others take. Trained, 88 to 96 % of
    the square of A is that of its mean over an image's positions, and what the fusion adds to J nearly a constant of it.
    """

    def __init__(self, num_heads: int, width: int):
        super().__init__()
        self.num_heads = num_heads
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(FIRST_DEVIATION * math.sqrt(width))))

    def forward(self, x: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n c"]:
        by_head = (x - x.mean(2, keepdim=True)).unflatten(-1, (self.num_heads, -1))  # b t n heads d
        logits = F.normalize(by_head, dim=-1) * self.log_scale.exp().unsqueeze(-1)
        return F.log_softmax(logits, -1).flatten(-2).to(x.dtype)


def centroids(
    context: Float[Tensor, "b heads d d"], normaliser: Float[Tensor, "b heads d"]
) -> Float[Tensor, "b heads d d"]:
    """C of shares, each row the share's mean value less that of all positions, normalised, times the share's size z."""
    size, mean = normaliser.unsqueeze(-1), context.sum(-2, keepdim=True)
    beyond = (context - size * mean) / (size + LEAST_SHARE)
    return F.layer_norm(beyond, beyond.shape[-1:]) * size


class NoFusion(nn.Module):
    """The ablation without MT-MQLFB: a task's fused features are its own preliminary features."""

    def forward(
        self,
        features: Float[Tensor, "b t c h w"],
        coarse: Float[Tensor, "b o h w"],  # noqa: ARG002
    ) -> Float[Tensor, "b t n c"]:
        return to_positions(features)


def build_queries(kind: str, channels: int, scales: Sequence[int]) -> nn.Module:
    """The convolutions across all tasks, as ``ModelConfig.queries`` says: (b t*c h w) -> one such for each scale."""
    if kind == "shared":
        return SharedQueries(channels, scales)
    if kind not in ("dense", "separable"):
        raise MistakeError(f"queries {kind!r}; expected dense, separable or shared")
    return Queries(AcrossTaskConvolution(channels, scale, dense=kind == "dense") for scale in scales)


class Queries(nn.ModuleList):
    """One convolution per scale, each mixing the tasks in its own way."""

    def __init__(self, convolutions: Iterable[nn.Module]):
        super().__init__(convolutions)

    def forward(self, x: Float[Tensor, "b tc h w"]) -> list[Float[Tensor, "b tc h w"]]:
        return [convolution(x) for convolution in self]


class SharedQueries(nn.Module):
    """The tasks are mixed once for all scales; every scale but 1 then convolves depthwise: a third of the products.

    A scale's kernel thereby weighs the mixed channels, where that of the separable form weighs each task's own.
    """

    def __init__(self, channels: int, scales: Sequence[int]):
        super().__init__()
        self.across = nn.Conv2d(channels, channels, 1)
        self.spatial = nn.ModuleList(
            nn.Conv2d(channels, channels, scale, padding=scale // 2, groups=channels) if scale > 1 else nn.Identity()
            for scale in scales
        )

    def forward(self, x: Float[Tensor, "b tc h w"]) -> list[Float[Tensor, "b tc h w"]]:
        mixed = self.across(x)
        return [spatial(mixed) for spatial in self.spatial]


class AcrossTaskConvolution(nn.Module):
    """A convolution of kernel ``scale`` that mixes the channels of all tasks, dense or depthwise and then 1x1."""

    def __init__(self, channels: int, scale: int, *, dense: bool):
        super().__init__()
        separate = scale > 1 and not dense
        self.spatial = nn.Conv2d(channels, channels, scale, padding=scale // 2, groups=channels) if separate else None
        kernel = scale if dense else 1
        self.across = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "b tc h w"]) -> Float[Tensor, "b tc h w"]:
        return self.across(x if self.spatial is None else self.spatial(x))
