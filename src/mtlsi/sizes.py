"""The sizes of a network: what can be chosen, within which bounds, and the presets by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mtlsi.errors import MistakeError
from mtlsi.field_types import check_bounds, check_types


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a network; a preset is one of these."""

    backbone: str = "mobilenetv2_100"
    """A timm model name."""
    channels: int = 64
    """Channels of every task's features."""
    num_heads: int = 4
    """Attention heads, in the fusion and in the CWIB."""
    scales: tuple[int, ...] = (1, 3, 5)
    """Kernel sizes of the fusion's queries; odd numbers."""
    context_pool: int = 4
    """The fusion's context is built from features pooled over squares of this many positions."""
    num_tokens: int = 128
    """Semantic tokens per task (the paper's K)."""
    window: int = 8
    """Side of the CWIB's attention windows, in positions."""
    num_blocks: int = 1
    """CWIBs per task, in sequence."""
    ffn_ratio: int = 2
    """Hidden width of the feed-forward layers over their outer width."""
    decoder_stride: int = 4
    """Stride at which tasks interact: 4, 8 or 16. Predictions are made at stride 4 in any case."""
    head_channels: int | None = None
    """Width of the heads at stride 4; None: ``channels``, or half of it if ``decoder_stride`` is not 4."""
    dense_convolutions: bool = False
    """Plain instead of separable 3x3 convolutions in the preliminary decoder and the heads."""
    queries: str = "separable"
    """The fusion's convolutions. dense: one plain convolution per scale; separable: depthwise, then 1x1 across the tasks;
    shared: one 1x1 across the tasks for all scales, then depthwise."""
    fusion: bool = True
    """MT-MQLFB on; off: a task's fused features are its own preliminary features."""
    distiller: bool = True
    """Semantic Token Distiller on; off: the CWIB attends to as many averages over a regular grid."""
    cross_window: bool = True
    """CWIB on; off: the heads read the fused features directly."""
    drop_path: float = 0.0
    """Stochastic depth rate of the backbone in training."""
    decoder: str = "mtlsi"
    """mtlsi, heads_only (no interaction), atrc, invpt, taskexpert, or one registered with mtlsi.register_decoder."""
    decoder_options: dict[str, Any] = field(default_factory=dict)
    """What only this decoder reads: of mtlsi the fields of mtlsi.model.forms.Form, of a rival those of its options."""
    form: str = "refined"
    """Of mtlsi. paper: its parts as the paper describes them; refined: ours, docs/paper.md says how it differs."""

    @classmethod
    def of(cls, sizes: Mapping[str, Any]) -> ModelConfig:
        """The sizes given, those of ``config.json`` say, checked; ``MistakeError`` names an unknown or impossible one."""
        check_sizes(sizes)
        check_types(cls, sizes)
        check_bounds(sizes, SIZE_BOUNDS, "model size")
        for name in cls.__dataclass_fields__:
            if name not in (*sizes, *LATER_SIZES):
                raise MistakeError(f"model size {name} is missing; expected every field of ModelConfig")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()
        }
        config = cls(**{"form": "paper", **values})  # what a model was before there were forms
        if config.channels % config.num_heads:
            raise MistakeError(
                f"channels {config.channels} are not a multiple of num_heads {config.num_heads}; change one of them"
            )
        return config


SIZE_BOUNDS: dict[str, tuple[float, float]] = {
    "channels": (1, 8192),
    "num_heads": (1, 512),
    "scales": (1, 63),
    "context_pool": (1, 256),
    "num_tokens": (1, 65536),
    "window": (1, 64),
    "num_blocks": (0, 64),
    "ffn_ratio": (1, 64),
    "head_channels": (1, 8192),
    "drop_path": (0, 0.99),
}
"""What a network may ask for: far more than any has, little enough to be refused before its memory is taken."""

LATER_SIZES = ("head_channels", "drop_path", "decoder", "decoder_options", "form")
"""What config.json of an older model may lack."""

PRESETS: dict[str, ModelConfig] = {
    "swin_large": ModelConfig(
        "swin_large_patch4_window12_384", 192, 6, num_tokens=512, queries="shared", drop_path=0.15
    ),
    "swin_tiny": ModelConfig("swin_tiny_patch4_window7_224", 64, 2, num_tokens=512, drop_path=0.15),
    "hrnet_w18": ModelConfig(
        "hrnet_w18_small_v2", 48, 1, num_tokens=512, decoder_stride=8, context_pool=2, head_channels=48
    ),
    "vit_large": ModelConfig("vit_large_patch16_384", 128, 4, num_tokens=512, drop_path=0.15),
    "convnext_tiny": ModelConfig("convnext_tiny", 64, 2, num_tokens=512, drop_path=0.15),
    "dinov3_vits16": ModelConfig("vit_small_patch16_dinov3", 64, 2, num_tokens=512, drop_path=0.15),
    "dinov2_vitb14": ModelConfig("vit_base_patch14_dinov2", 96, 3, num_tokens=512, drop_path=0.15),
    "mobilenetv2_100": ModelConfig("mobilenetv2_100", 64, 2, num_tokens=64, decoder_stride=8, context_pool=2),
    "tiny": ModelConfig("mobilenetv2_035", 24, 2, num_tokens=32, decoder_stride=8, context_pool=2),
    "taskexpert_vit_large": ModelConfig(
        "vit_large_patch16_384",
        440,
        decoder_stride=16,
        head_channels=440,
        dense_convolutions=True,
        drop_path=0.15,
        decoder="taskexpert",
    ),
    "atrc_hrnet_w18": ModelConfig("hrnet_w18_small_v2", 67, 1, decoder="atrc"),
    "atrc_hrnet_w48": ModelConfig("hrnet_w48", 180, 1, decoder="atrc", decoder_options={"genotype": "nyud_hrnet48"}),
    "invpt_vit_large": ModelConfig(
        "vit_large_patch16_384", 576, 2, ffn_ratio=4, decoder_stride=8, drop_path=0.15, decoder="invpt"
    ),
    "invpt_swin_large": ModelConfig(
        "swin_large_patch4_window12_384", 576, 2, ffn_ratio=4, decoder_stride=8, drop_path=0.15, decoder="invpt"
    ),
}


def sizes_of(preset: str, changes: Mapping[str, Any]) -> ModelConfig:
    """The preset's sizes with ``changes``; ``MistakeError`` for an unknown preset or size."""
    if preset not in PRESETS:
        raise MistakeError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    check_sizes(changes)
    check_types(ModelConfig, changes, "model.")
    check_bounds(changes, SIZE_BOUNDS, "model size")
    return replace(PRESETS[preset], **changes)


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Raises ``MistakeError`` for a name that is no field of ``ModelConfig``."""
    known = [field.name for field in fields(ModelConfig)]
    for name in sizes:
        if name not in known:
            raise MistakeError(f"unknown model size {name!r}; expected some of {', '.join(known)}")
