"""InvPT and InvPT++: an inverted pyramid of transformer blocks in which all tasks' positions meet, coarse to fine.

    F = CBR(CBR(M_4))      P = V F      X_0 = W [F, P]                                   per task, at stride 32
    X_s = CBR(CBR(up(X_{s-1}))) + conv(M_{4-s})                                          stages s = 1, 2: strides 16, 8
    X_s <- X_s + up(attention of all tasks(LN(X_s)), as stage s-1 passed on)             X_s <- X_s + MLP(LN(X_s))
    prediction = V CBR(sum_s up(W_s LN(X_s)))                                            per task, at stride 4

M_1 ... M_4 the backbone's maps at strides 4 to 32, CBR a 3x3 convolution, batch norm and ReLU of each task's own, ``up``
bilinear. Width halves from stage to stage. The attention is in ``invpt_attention``.

InvPT: Ye and Xu, Inverted Pyramid Multi-task Transformer for Dense Scene Understanding, ECCV 2022.
InvPT++: Ye and Xu, InvPT++: Inverted Pyramid Multi-Task Transformer for Visual Scene Understanding, TPAMI 2024.
Axes: b batch, t task, c channel of a stage, h w map of a stage, o the channels of all predictions side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.model.backbone import STRIDES
from mtlsi.model.decoder_spec import DecoderSpec
from mtlsi.model.rivals.invpt_attention import FusionAttention, SelectiveAttention
from mtlsi.nn.layers import PredictionEmbedding, Predictions, TaskBatchNorm, TaskLinear
from mtlsi.nn.layout import apart, resize_maps, side_by_side, to_map, to_positions
from mtlsi.nn.task_subset import for_tasks, shallow_copy, take_tasks


@dataclass(frozen=True)
class InvPTOptions:
    """What InvPT has besides ``ModelConfig``'s ``channels``, ``num_heads`` and ``ffn_ratio`` (published: 576, 2, 4)."""

    attention: str = "selective"
    """selective: InvPT++; fusion: InvPT, whose attention message passing is the other kind that InvPT++ has."""
    selected: float = 0.5
    """Of the keys that a stage attends to, the part that the next one does; for selective attention."""
    num_stages: int = 3
    """Stages, the first at stride 32, each at half the stride of the one before: 1 to 4."""
    preliminary_channels: int | None = None
    """Width of the preliminary features; None: 8/9 of ``channels``, the published 512 of 576."""

    def __post_init__(self) -> None:
        if self.attention not in ("selective", "fusion"):
            raise MistakeError(f"invpt's attention {self.attention!r}; expected selective (InvPT++) or fusion (InvPT)")
        if not isinstance(self.selected, int | float) or not 0 < self.selected <= 1:
            raise MistakeError(
                f"invpt's selected {self.selected!r}; expected a part of the keys, above 0 and at most 1"
            )
        if self.num_stages not in (1, 2, 3, 4):
            raise MistakeError(f"invpt's num_stages {self.num_stages!r}; expected 1, 2, 3 or 4")
        if self.preliminary_channels is not None and not _is_positive(self.preliminary_channels):
            raise MistakeError(f"invpt's preliminary_channels {self.preliminary_channels!r}; expected 1 or more")


class InvPTDecoder(nn.Module):
    """Four maps at strides 4, 8, 16, 32 -> ({task: final}, {task: coarse}), each (b channels h w); coarse at stride 32.

    Paper: preliminary features and predictions of every task at the coarsest scale, under supervision; three stages at
    rising resolution in which positions of all tasks attend to one another; a stage passes its attention on; features of
    the encoder are added; all stages together make the final features.
    Choice: the encoder's maps at strides 16 and 8 are the ones added, whatever the backbone; the first stage has none, as
    in the authors' code. ``decoder_stride`` and ``dense_convolutions`` are not read: the strides are the method's, and
    its convolutions are plain.
    """

    def __init__(
        self,
        preliminary: CoarsePreliminary,
        upscales: Sequence[Upscale],
        blocks: Sequence[InvPTBlock],
        heads: MultiScaleHeads,
    ):
        super().__init__()
        self.preliminary = preliminary
        self.upscales = nn.ModuleList(upscales)
        self.blocks = nn.ModuleList(blocks)
        self.heads = heads

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # fmt: off
        x, coarse = self.preliminary(maps[-1])                   # b t c h w, b o h w, both at stride 32
        x, passed = self.blocks[0](x, None)                      # b t c h w, what the next stage hears of the attention
        stages = [x]
        added = reversed(maps[-len(self.blocks) : -1])           # b c_i h w at strides 16, 8
        for upscale, block, finer in zip(self.upscales, self.blocks[1:], added, strict=True):
            x, passed = block(upscale(x, finer), passed)         # b t c/2 2h 2w, then b t c/4 4h 4w
            stages.append(x)
        final = self.heads(stages, maps[0])                      # b o H/4 W/4
        return self.heads.predict.by_task(final), self.preliminary.predict.by_task(coarse)  # {task: b channels h w}
        # fmt: on

    def for_tasks(self, index: Sequence[int]) -> InvPTDecoder:
        """The decoder of the tasks ``index``: every task takes part in every stage, so that only the heads are cut down."""
        chosen = shallow_copy(self)
        chosen.heads = self.heads.for_tasks(index)
        return chosen


class CoarsePreliminary(nn.Module):
    """The coarsest map -> what the first stage takes (b t c h w), and the coarse predictions (b o h w).

    Paper: two 3x3 convolutions per task, a 1x1 one to the prediction, and a 1x1 one of features and prediction together.
    """

    def __init__(self, in_channels: int, hidden: int, channels: int, outputs: Mapping[str, int]):
        super().__init__()
        t = len(outputs)
        self.widen = TaskConvReLU(t, in_channels, in_channels)
        self.narrow = TaskConvReLU(t, in_channels, hidden)
        self.predict = Predictions(hidden, outputs)
        self.project = TaskLinear(t, hidden, channels)
        self.embed = PredictionEmbedding(outputs, channels)

    def forward(
        self, coarsest: Float[Tensor, "b i h w"]
    ) -> tuple[Float[Tensor, "b t c h w"], Float[Tensor, "b o h w"]]:
        features = self.narrow(self.widen(coarsest))  # b t hidden h w
        coarse = self.predict(features)
        return to_map(self.project(to_positions(features)), coarse.shape[-2:]) + self.embed(coarse), coarse


class Upscale(nn.Module):
    """A stage's maps (b t c h w) at twice the side and another width, and a map of the encoder's added to every task's.

    Paper: upsampling, then two convolutions per task, in the authors' code 3x3 ones of dilation 2; the encoder's map
    passes a 3x3 convolution. Choice: it comes at the stage's own stride; of a plain ViT, whose maps all have stride 16,
    the authors upsample one by a transposed convolution here, this library before the decoder.
    """

    def __init__(self, num_tasks: int, in_channels: int, out_channels: int, added_channels: int):
        super().__init__()
        self.first = TaskConvReLU(num_tasks, in_channels, out_channels, dilation=2)
        self.second = TaskConvReLU(num_tasks, out_channels, out_channels, dilation=2)
        self.skip = nn.Conv2d(added_channels, out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b t i v u"], finer: Float[Tensor, "b f h w"]) -> Float[Tensor, "b t c h w"]:
        x = self.second(self.first(resize_maps(x, finer.shape[-2:])))
        return x + self.skip(finer).unsqueeze(1)


class InvPTBlock(nn.Module):
    """X <- X + up(attention(LN(X)));  X <- X + MLP(LN(X)); weights shared by the tasks but for the queries' convolution.

    Choice, as the authors' code: linear maps start small (deviation 0.02). No stochastic depth: its rate rises over the
    blocks of a stage from 0, and a stage has one block.
    """

    def __init__(self, channels: int, ffn_ratio: int, attention: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = attention
        self.ffn_norm = nn.LayerNorm(channels)
        self.ffn = nn.Sequential(
            nn.Linear(channels, ffn_ratio * channels), nn.GELU(), nn.Linear(ffn_ratio * channels, channels)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "b t c h w"], passed: Tensor | None
    ) -> tuple[Float[Tensor, "b t c h w"], Tensor]:
        rows = x.permute(0, 3, 4, 1, 2)  # b h w t c, in the order of the memory
        attended, passed = self.attention(self.norm(rows).permute(0, 3, 4, 1, 2), passed)  # b t c h/2 w/2
        rows = rows + resize_maps(attended, x.shape[-2:]).permute(0, 3, 4, 1, 2)
        rows = rows + self.ffn(self.ffn_norm(rows))
        return rows.permute(0, 3, 4, 1, 2), cast(Tensor, passed)


class MultiScaleHeads(nn.Module):
    """The maps of all stages -> the raw predictions at stride 4, side by side.

    Paper: each stage's features, normalised, brought to one width and to the finest size, are added; a 3x3 convolution
    and a 1x1 one per task follow. Choice, as the authors' code: a stage is normalised over the channels of all tasks
    together, and the first stage, which has the width already, is not projected.
    """

    def __init__(self, widths: Sequence[int], outputs: Mapping[str, int]):
        super().__init__()
        t, channels = len(outputs), widths[0]
        self.norms = nn.ModuleList(nn.LayerNorm(t * width) for width in widths)
        self.index: Sequence[int] | None = None
        """The tasks that are computed behind the norms; None: all."""
        self.project = nn.ModuleList(TaskLinear(t, width, channels) for width in widths[1:])
        self.refine = TaskConvReLU(t, channels, channels)
        self.predict = Predictions(channels, outputs)

    def forward(
        self, stages: Sequence[Float[Tensor, "b t _ _ _"]], finest: Float[Tensor, "b f y x"]
    ) -> Float[Tensor, "b o y x"]:
        features: list[Any] = [self.normed(x, norm) for x, norm in zip(stages, self.norms, strict=True)]
        for i, project in enumerate(self.project, start=1):
            features[i] = to_map(project(to_positions(features[i])), features[i].shape[-2:])  # b t c h w
        return self.predict(self.refine(sum(resize_maps(x, finest.shape[-2:]) for x in features)))

    def normed(self, x: Float[Tensor, "b t c h w"], norm: nn.Module) -> Float[Tensor, "b s c h w"]:
        """A stage's features, layer-normalised over tasks and channels; of the ``s`` tasks asked for."""
        rows = norm(x.permute(0, 3, 4, 1, 2).flatten(3))  # b h w (t c)
        x = rows.unflatten(3, x.shape[1:3]).permute(0, 3, 4, 1, 2)
        return x if self.index is None else take_tasks(x, self.index)

    def for_tasks(self, index: Sequence[int]) -> MultiScaleHeads:
        """The heads of the tasks ``index``, on stages of all tasks."""
        chosen = shallow_copy(self)
        chosen.index = tuple(index)
        for name in ("project", "refine", "predict"):
            setattr(chosen, name, for_tasks(getattr(self, name), index))
        return chosen


class TaskConvReLU(nn.Module):
    """ReLU(BN(conv(x))), a plain 3x3 convolution of each task's own, on maps of its own or on one that all share."""

    task_axes = ("kernel",)

    def __init__(self, num_tasks: int, in_channels: int, out_channels: int, *, dilation: int = 1):
        super().__init__()
        bound = 1 / math.sqrt(9 * in_channels)
        self.kernel = nn.Parameter(torch.empty(num_tasks, out_channels, in_channels, 3, 3).uniform_(-bound, bound))
        self.norm = TaskBatchNorm(num_tasks, out_channels)
        self.dilation = dilation

    def forward(self, x: Float[Tensor, "b t i h w"] | Float[Tensor, "b i h w"]) -> Float[Tensor, "b t c h w"]:
        is_shared, kernel, offset = x.dim() == 4, self.kernel, None
        affine = self.norm.stored()
        if affine is not None:  # part of the convolution after training
            kernel, offset = kernel * affine[0][..., None, None, None], affine[1].flatten()
        convolved = F.conv2d(
            x if is_shared else side_by_side(x),
            kernel.flatten(0, 1),
            offset,
            padding=self.dilation,
            dilation=self.dilation,
            groups=1 if is_shared else len(kernel),
        )
        maps = apart(convolved, len(kernel))
        return F.relu(self.norm(maps) if affine is None else maps)


def build_invpt(spec: DecoderSpec) -> InvPTDecoder:
    """InvPT++, or InvPT with ``decoder_options`` of ``{"attention": "fusion"}``."""
    options, sizes, outputs = spec.options(InvPTOptions), spec.sizes, spec.outputs
    num_stages, narrowest = options.num_stages, sizes.num_heads * 2 ** (options.num_stages - 1)
    if sizes.channels % narrowest:
        raise MistakeError(
            f"channels {sizes.channels} of invpt; expected a multiple of {narrowest}, since they are halved from stage to "
            f"stage and shared by {sizes.num_heads} heads: change channels or num_heads"
        )
    widths = [sizes.channels // 2**stage for stage in range(num_stages)]
    hidden = options.preliminary_channels or max(sizes.channels * 8 // 9, 1)
    added = [spec.map_channels[len(STRIDES) - 1 - stage] for stage in range(num_stages)]
    return InvPTDecoder(
        CoarsePreliminary(spec.map_channels[-1], hidden, sizes.channels, outputs),
        [Upscale(len(outputs), widths[s - 1], widths[s], added[s]) for s in range(1, num_stages)],
        [
            InvPTBlock(width, sizes.ffn_ratio, _attention(options, len(outputs), width, sizes.num_heads, stage))
            for stage, width in enumerate(widths)
        ],
        MultiScaleHeads(widths, outputs),
    )


def _attention(options: InvPTOptions, num_tasks: int, channels: int, num_heads: int, stage: int) -> nn.Module:
    """A stage's attention; its keys are pooled to stride 64 at every stage."""
    pool = 2 ** (stage + 1)
    if options.attention == "fusion":
        return FusionAttention(num_tasks, channels, num_heads=num_heads, pool=pool, is_first=stage == 0)
    return SelectiveAttention(num_tasks, channels, num_heads=num_heads, pool=pool, share=options.selected**stage)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0
