"""Decoders by name, and the contract that every one of them keeps.

A decoder is any ``nn.Module`` that takes the backbone's four maps (b c_i h_i w_i), strides 4, 8, 16, 32 of an image padded
to multiples of 32, and gives two dictionaries by task: the final predictions (b channels h w) at stride 4 and the coarse
ones at a stride of its own, or {} where it has none. It may have ``for_tasks(index)``, which gives the decoder of the
tasks at those positions; without it a subset of the tasks is computed whole and cut down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.model.backbone import STRIDES
from mtlsi.model.cross_window import (
    CrossWindowBlock,
    CrossWindowBlocks,
    FusedAlone,
    FusedFeatures,
    NoCrossWindow,
    OwnFeatures,
)
from mtlsi.model.decoder import MTLSIDecoder
from mtlsi.model.decoder_spec import DecoderSpec
from mtlsi.model.distiller import CentroidDistiller, PooledTokens, SemanticTokenDistiller
from mtlsi.model.forms import form_of
from mtlsi.model.fusion import MultiQueryLinearFusion, NoFusion
from mtlsi.model.heads import TaskHeads
from mtlsi.model.preliminary import PreliminaryDecoder, TaskPyramid
from mtlsi.model.rivals.atrc import ATRCDecoder, ATRCOptions, LastConvolution
from mtlsi.model.rivals.heads_only import HeadsOnlyDecoder, HeadsOnlyOptions
from mtlsi.model.rivals.invpt import build_invpt
from mtlsi.model.rivals.taskexpert import TaskExpertDecoder, TaskExpertOptions
from mtlsi.sizes import ModelConfig

BuildDecoder = Callable[[DecoderSpec], nn.Module]


def build_mtlsi(spec: DecoderSpec) -> MTLSIDecoder:
    """The paper's decoder."""
    form, sizes, outputs, channels, t = (
        form_of(spec.sizes),
        spec.sizes,
        spec.outputs,
        spec.sizes.channels,
        len(spec.outputs),
    )
    preliminary = PreliminaryDecoder(
        spec.map_channels,
        channels,
        outputs,
        skip=_skip(sizes),
        dense=sizes.dense_convolutions,
        deep_supervision=form.deep_supervision,
    )
    fusion: nn.Module = NoFusion()
    if sizes.fusion:
        fusion = MultiQueryLinearFusion(
            channels,
            outputs,
            num_heads=sizes.num_heads,
            scales=sizes.scales,
            pool=sizes.context_pool,
            queries=sizes.queries,
            context=form.context,
            fuse_coarse=form.fuse_coarse,
            onto=form.fuse_onto,
            gradient=form.fuse_gradient,
            zero_start=form.zero_start,
        )
    distiller: nn.Module = nn.Identity()
    cross_window: nn.Module = NoCrossWindow()
    local: nn.Module = OwnFeatures()
    if sizes.cross_window:  # nothing else reads tokens
        distil = CentroidDistiller if form.tokens == "centroids" else SemanticTokenDistiller
        distiller = (distil if sizes.distiller else PooledTokens)(t, channels, sizes.num_tokens)
        cross_window = CrossWindowBlocks(
            CrossWindowBlock(
                t,
                channels,
                num_heads=sizes.num_heads,
                window=sizes.window,
                ffn_ratio=sizes.ffn_ratio,
                positions=form.positions,
                zero_start=form.zero_start,
                read_all=form.read_tokens == "all",
            )
            for _ in range(sizes.num_blocks)
        )
        if sizes.fusion and form.refine == "fused":
            onto_features = form.fuse_onto == "features"
            local = FusedAlone() if onto_features else FusedFeatures(t, channels, zero_start=form.zero_start)
    heads = _heads(spec, mix=form.mix)
    return MTLSIDecoder(
        preliminary, fusion, distiller, cross_window, heads, local=local, pool=form.pool, add_coarse=form.add_coarse
    )


def build_heads_only(spec: DecoderSpec) -> HeadsOnlyDecoder:
    """The multi-task baseline."""
    deep, sizes = spec.options(HeadsOnlyOptions).deep_supervision, spec.sizes
    arguments = (spec.map_channels, sizes.channels, spec.outputs)
    skip, dense = _skip(sizes), sizes.dense_convolutions
    pyramid = (
        TaskPyramid(*arguments, skip=skip, dense=dense)
        if deep == "none"
        else PreliminaryDecoder(*arguments, skip=skip, dense=dense, deep_supervision=deep)
    )
    return HeadsOnlyDecoder(pyramid, _heads(spec), add_coarse=spec.options(HeadsOnlyOptions).add_coarse)


def build_taskexpert(spec: DecoderSpec) -> TaskExpertDecoder:
    """TaskExpert."""
    options, sizes = spec.options(TaskExpertOptions), spec.sizes
    return TaskExpertDecoder(
        spec.map_channels,
        sizes.channels,
        spec.outputs,
        _heads(spec),
        options,
        skip=_skip(sizes),
        dense=sizes.dense_convolutions,
    )


def build_atrc(spec: DecoderSpec) -> ATRCDecoder:
    """ATRC; where its tasks meet at a coarser stride than the published one, MTLSI-Net's heads end it."""
    options, channels, skip = spec.options(ATRCOptions), spec.sizes.channels, _skip(spec.sizes)
    heads = _heads(spec) if skip else LastConvolution(channels, spec.outputs)
    return ATRCDecoder(spec.map_channels[skip:], channels, spec.outputs, heads, options)


DECODERS: dict[str, BuildDecoder] = {
    "mtlsi": build_mtlsi,
    "heads_only": build_heads_only,
    "atrc": build_atrc,
    "invpt": build_invpt,
    "taskexpert": build_taskexpert,
}
"""By ``ModelConfig.decoder``."""
BUILT_IN = tuple(DECODERS)


def register_decoder(name: str, build: BuildDecoder) -> None:
    """Make ``build(spec)`` the decoder ``name`` for ``create_model(..., decoder=name)`` and recipes' ``model.decoder``.

    A name given again is replaced; a built-in one raises ``MistakeError``.
    """
    if name in BUILT_IN:
        raise MistakeError(f"decoder {name!r} is built in; give yours another name")
    DECODERS[name] = build


def build_decoder(spec: DecoderSpec) -> nn.Module:
    """The decoder that ``spec.sizes.decoder`` names. Raises ``MistakeError`` for an unknown name."""
    if spec.sizes.decoder not in DECODERS:
        raise MistakeError(
            f"unknown decoder {spec.sizes.decoder!r}; expected one of {', '.join(DECODERS)}: one of your own is "
            "registered with mtlsi.register_decoder first"
        )
    return DECODERS[spec.sizes.decoder](spec)


class OnlyTasks(nn.Module):
    """Some tasks of a decoder that cannot compute a subset."""

    def __init__(self, decoder: nn.Module, tasks: Sequence[str]):
        super().__init__()
        self.decoder, self.tasks = decoder, tuple(tasks)

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        final, coarse = self.decoder(maps)
        return {task: final[task] for task in self.tasks}, {task: coarse[task] for task in self.tasks if task in coarse}


def _skip(sizes: ModelConfig) -> int:
    """How many of the finest maps a decoder of this stride leaves out."""
    if sizes.decoder_stride not in STRIDES[:3]:
        raise MistakeError(f"decoder_stride {sizes.decoder_stride}; expected 4, 8 or 16")
    return STRIDES.index(sizes.decoder_stride)


def _heads(spec: DecoderSpec, *, mix: int = 0) -> TaskHeads:
    sizes, channels, at_stride_4 = spec.sizes, spec.sizes.channels, spec.sizes.decoder_stride == STRIDES[0]
    return TaskHeads(
        channels,
        spec.map_channels[0],
        spec.outputs,
        width=sizes.head_channels or (channels if at_stride_4 else max(channels // 2, 8)),
        at_stride_4=at_stride_4,
        dense=sizes.dense_convolutions,
        mix=mix,
    )
