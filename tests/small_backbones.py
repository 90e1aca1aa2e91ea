"""Transformers of timm's kinds that are built, traced and trained in seconds; importing this registers them."""

from __future__ import annotations

from typing import Any

from timm.models import eva, register_model, swin_transformer, vision_transformer
from torch import nn

FOUR_BLOCKS = {"embed_dim": 32, "depth": 4, "num_heads": 2}


@register_model
def swin_of_five_blocks(pretrained: bool = False, **options: Any) -> nn.Module:
    """One of them shifted; windows of 3, which do not divide maps of 24, 16 or 8 positions."""
    sizes = {"depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 2, 4), "window_size": 3, "img_size": 96}
    return swin_transformer.swin_tiny_patch4_window7_224(pretrained, **sizes | options)


@register_model
def vit_of_four_blocks(pretrained: bool = False, **options: Any) -> nn.Module:
    """DINOv2's: patches of 14 pixels."""
    return vision_transformer.vit_small_patch14_dinov2(pretrained, **FOUR_BLOCKS | {"img_size": 70} | options)


@register_model
def vit_of_four_turned_blocks(pretrained: bool = False, **options: Any) -> nn.Module:
    """DINOv3's: rotary embeddings, patches of 16 pixels."""
    return eva.vit_small_patch16_dinov3(pretrained, **FOUR_BLOCKS | options)


@register_model
def vit_of_four_plain_blocks(pretrained: bool = False, **options: Any) -> nn.Module:
    """The first ViT's."""
    return vision_transformer.vit_tiny_patch16_224(pretrained, **FOUR_BLOCKS | options)
