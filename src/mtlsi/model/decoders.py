"""Decoders by name, and the contract that every one of them keeps.

A decoder is any ``nn.Module`` that takes the backbone's four maps (b c_i h_i w_i), strides 4, 8, 16, 32 of an image padded
to multiples of 32, and gives two dictionaries by task: the final predictions (b channels h w) at stride 4 and the coarse
ones at a stride of its own, or {} where it has none. It may have ``for_tasks(index)``, which gives the decoder of the
tasks at those positions; without it a subset of the tasks is computed whole and cut down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from mtlsi.config import ModelConfig
from mtlsi.errors import MistakeError
from mtlsi.model.backbone import STRIDES
from mtlsi.model.cross_window import CrossWindowBlock, CrossWindowBlocks, NoCrossWindow
from mtlsi.model.decoder import MTLSIDecoder
from mtlsi.model.decoder_spec import DecoderSpec, NoOptions
from mtlsi.model.distiller import PooledTokens, SemanticTokenDistiller
from mtlsi.model.fusion import MultiQueryLinearFusion, NoFusion
from mtlsi.model.heads import TaskHeads
from mtlsi.model.preliminary import PreliminaryDecoder, TaskPyramid
from mtlsi.model.rivals.heads_only import HeadsOnlyDecoder
from mtlsi.model.rivals.invpt import build_invpt

BuildDecoder = Callable[[DecoderSpec], nn.Module]


def build_mtlsi(spec: DecoderSpec) -> MTLSIDecoder:
    """The paper's decoder."""
    spec.options(NoOptions)
    sizes, outputs, channels, t = spec.sizes, spec.outputs, spec.sizes.channels, len(spec.outputs)
    preliminary = PreliminaryDecoder(
        spec.map_channels, channels, outputs, skip=_skip(sizes), dense=sizes.dense_convolutions
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
        )
    distiller: nn.Module = nn.Identity()
    cross_window: nn.Module = NoCrossWindow()
    if sizes.cross_window:  # nothing else reads tokens
        distiller = (SemanticTokenDistiller if sizes.distiller else PooledTokens)(t, channels, sizes.num_tokens)
        cross_window = CrossWindowBlocks(
            CrossWindowBlock(t, channels, num_heads=sizes.num_heads, window=sizes.window, ffn_ratio=sizes.ffn_ratio)
            for _ in range(sizes.num_blocks)
        )
    return MTLSIDecoder(preliminary, fusion, distiller, cross_window, _heads(spec))


def build_heads_only(spec: DecoderSpec) -> HeadsOnlyDecoder:
    """The multi-task baseline."""
    spec.options(NoOptions)
    sizes = spec.sizes
    pyramid = TaskPyramid(
        spec.map_channels, sizes.channels, spec.outputs, skip=_skip(sizes), dense=sizes.dense_convolutions
    )
    return HeadsOnlyDecoder(pyramid, _heads(spec))


DECODERS: dict[str, BuildDecoder] = {"mtlsi": build_mtlsi, "heads_only": build_heads_only, "invpt": build_invpt}
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


def _heads(spec: DecoderSpec) -> TaskHeads:
    sizes, channels, at_stride_4 = spec.sizes, spec.sizes.channels, spec.sizes.decoder_stride == STRIDES[0]
    return TaskHeads(
        channels,
        spec.map_channels[0],
        spec.outputs,
        width=sizes.head_channels or (channels if at_stride_4 else max(channels // 2, 8)),
        at_stride_4=at_stride_4,
        dense=sizes.dense_convolutions,
    )
