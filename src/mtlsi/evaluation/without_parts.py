"""A trained MTLSI-Net without one of its parts, for inference: what it loses says what the part contributes.

A variant shares every weight with the network. Its parts are replaced on shallow copies, so that neither the network nor
``model/`` knows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.model.cross_window import NoCrossWindow
from mtlsi.model.decoder import MTLSIDecoder
from mtlsi.model.fusion import MultiQueryLinearFusion, NoFusion
from mtlsi.model.network import MTLSINet
from mtlsi.nn.task_subset import shallow_copy

Change = Callable[[MTLSIDecoder], None]
"""Replaces parts of a decoder that is a copy."""


def decoder_of(network: MTLSINet) -> MTLSIDecoder:
    """The network's decoder; ``MistakeError`` where it is not MTLSI-Net's and has no such parts."""
    if not isinstance(network.decoder, MTLSIDecoder):
        raise MistakeError(
            f"the model's decoder is a {type(network.decoder).__name__}; expected MTLSI-Net's, whose parts are taken out "
            "one by one: give a model with decoder mtlsi"
        )
    return network.decoder


def changed(network: MTLSINet, change: Change) -> MTLSINet:
    """The network with its decoder changed; it shares every weight with ``network``, which stays as it is."""
    decoder = shallow_copy(decoder_of(network))
    change(decoder)
    copied = shallow_copy(network)
    copied.decoder = decoder
    return copied


def for_each_block(decoder: MTLSIDecoder, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put ``make(block)`` in the place of every CWIB, in their order."""
    blocks = cast(nn.ModuleList, shallow_copy(decoder.cross_window))
    for i, block in enumerate(blocks):
        blocks[i] = make(block)
    decoder.cross_window = blocks


def without_branch(block: nn.Module, branch: str) -> nn.Module:
    """A CWIB whose branch, ``to_tokens`` or ``within_windows``, gives zeros to the merge."""
    copied = shallow_copy(block)
    setattr(copied, branch, _nothing)
    return copied


def _nothing(normed: Tensor, *_: Any) -> Tensor:
    """What a branch without a result gives for the positions (b t n c)."""
    return torch.zeros_like(normed)


# ---- the variants


class MeanTokens(nn.Module):
    """Every token of an image and a task (b t k c) is the mean over its k."""

    def __init__(self, distiller: nn.Module):
        super().__init__()
        self.distiller = distiller

    def forward(self, *inputs: Tensor) -> Tensor:
        tokens = self.distiller(*inputs)
        return torch.empty_like(tokens).copy_(tokens.mean(2, keepdim=True))


class TokensOfImageBefore(nn.Module):
    """Every image gets the tokens (b t k c) of the image before it, in this batch or the last one; the first its own.

    Tokens have one shape whatever the images' sizes, so that any two images can be paired.
    """

    def __init__(self, distiller: nn.Module):
        super().__init__()
        self.distiller = distiller
        self.before: list[Tensor] = []  # shared with the copies that are made for a subset of the tasks

    def forward(self, *inputs: Tensor) -> Tensor:
        tokens = self.distiller(*inputs)
        before = list(self.before) or [tokens[:1]]
        self.before[:] = [tokens[-1:]]
        return torch.empty_like(tokens).copy_(torch.cat([*before, tokens[:-1]]))


class WithoutCoarse(nn.Module):
    """The fusion reads coarse predictions of zero."""

    def __init__(self, fusion: nn.Module):
        super().__init__()
        self.fusion = fusion

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        return self.fusion(features, torch.zeros_like(coarse))


class MeanOfFusion(nn.Module):
    """What the fusion adds to what a position has of its own is the mean of that over the image's positions."""

    def __init__(self, fusion: MultiQueryLinearFusion):
        super().__init__()
        self.fusion = fusion

    def forward(self, features: Tensor, coarse: Tensor) -> Tensor:
        own = self.fusion.own(features, self.fusion.joined(features, coarse))  # b t n c
        return own + (self.fusion(features, coarse) - own).mean(2, keepdim=True)


def tokens_mean(decoder: MTLSIDecoder) -> None:
    """All tokens of an image and a task are their mean: what is lost is what tells them apart."""
    decoder.distiller = MeanTokens(decoder.distiller)


def tokens_of_another_image(decoder: MTLSIDecoder) -> None:
    """The tokens are those of the image before in the data, for the first image those of the last."""
    decoder.distiller = TokensOfImageBefore(decoder.distiller)


def no_tokens(decoder: MTLSIDecoder) -> None:
    """The token branch of every CWIB gives zeros to the merge."""
    for_each_block(decoder, lambda block: without_branch(block, "to_tokens"))


def no_windows(decoder: MTLSIDecoder) -> None:
    """The window branch of every CWIB gives zeros to the merge."""
    for_each_block(decoder, lambda block: without_branch(block, "within_windows"))


def no_fusion(decoder: MTLSIDecoder) -> None:
    """The preliminary features stand in the place of the fused ones."""
    decoder.fusion = NoFusion()


def fusion_mean(decoder: MTLSIDecoder) -> None:
    """What the fusion adds is the same at every position of an image: what is lost is what tells positions apart."""
    decoder.fusion = MeanOfFusion(cast(MultiQueryLinearFusion, decoder.fusion))


def no_coarse(decoder: MTLSIDecoder) -> None:
    """The fusion reads coarse predictions of zero."""
    decoder.fusion = WithoutCoarse(decoder.fusion)


def no_mix(decoder: MTLSIDecoder) -> None:
    """The heads of the tasks tell one another nothing at stride 4."""
    decoder.heads = shallow_copy(decoder.heads)
    decoder.heads.mix = None


OF_TOKENS: tuple[Change, ...] = (tokens_mean, tokens_of_another_image, no_tokens, no_windows)
OF_FUSION: tuple[Change, ...] = (fusion_mean, no_fusion, no_coarse)
VARIANTS = {change.__name__: change for change in (*OF_TOKENS, *OF_FUSION, no_mix)}
"""What is taken out, by name."""


def left_out(decoder: MTLSIDecoder) -> dict[str, str]:
    """Why a variant cannot be made of ``decoder``, by the variant's name: it was trained without the part."""
    reasons: dict[str, str] = {}
    if isinstance(decoder.cross_window, NoCrossWindow):
        reasons |= dict.fromkeys((change.__name__ for change in OF_TOKENS), "the model has no CWIB, which reads tokens")
    if isinstance(decoder.fusion, NoFusion):
        reasons |= dict.fromkeys((change.__name__ for change in OF_FUSION), "the model has no fusion")
    elif cast(MultiQueryLinearFusion, decoder.fusion).embed is None:
        reasons[no_coarse.__name__] = "the model's fusion reads no coarse predictions"
    if decoder.heads.mix is None:
        reasons[no_mix.__name__] = "the model's heads do not mix"
    return reasons
