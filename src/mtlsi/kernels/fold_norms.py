"""Batch norms made part of the convolutions before them, for prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_norms(body: nn.Module, probe: Tensor) -> bool:
    """Fold every batch norm of ``body`` that takes a convolution's result into that convolution, in place.

    ``body`` is in evaluation mode and cannot be trained afterwards. Which convolution feeds which norm is read from one
    forward of ``probe``, so that any network of timm's will do. False where a second one gives other maps, since somebody
    else reads a convolution's result too: ``body`` is then of no more use.
    """
    pairs, before = _pairs(body, probe)
    rest: dict[nn.Module, nn.Module] = {}
    for convolution, norm in pairs:
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        rest[norm] = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
    _replace(body, rest)
    after = _maps(body, probe)
    return all(bool((new - old).norm() <= 1e-3 * old.norm()) for new, old in zip(after, before, strict=True))


@torch.no_grad()
def _maps(body: nn.Module, probe: Tensor) -> list[Tensor]:
    return list(body(probe))


def _pairs(body: nn.Module, probe: Tensor) -> tuple[list[tuple[Any, Any]], list[Tensor]]:
    """Convolutions and the norms that take their results as they are; and what ``body`` makes of ``probe``."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # the results are kept, so that no other gets their place in memory
    pairs, handles = [], []

    def note(module: nn.Module, _: Any, result: Tensor) -> None:
        made[id(result)] = module, result

    def match(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if id(given[0]) in made:
            pairs.append((made[id(given[0])][0], module))

    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(match))
    try:
        return pairs, _maps(body, probe)
    finally:
        for handle in handles:
            handle.remove()


def _replace(body: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put each of ``new`` in the place of the module by which it is named."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if child in new:
                setattr(parent, name, new[child])
