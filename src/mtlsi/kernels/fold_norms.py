"""Batch norms made part of the convolutions before them, for prediction."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_norms(body: nn.Module, probe: Tensor) -> bool:
    """Fold every batch norm of ``body`` that takes a convolution's result into that convolution, in place.

    ``body`` is in evaluation mode and cannot be trained afterwards. Which convolution feeds which norm is read from one
    forward of ``probe``, so that any network of timm's will do. False where it gives other maps afterwards, since somebody
    else reads a convolution's result too: ``body`` is then of no more use.
    """
    before = _maps(body, probe)
    pairs = _pairs(body, probe)
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
        left = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
        rest[norm] = left.eval()  # as its surroundings: what is in training mode is recorded on no GPU
    _replace(body, rest)
    after = _maps(body, probe)
    return all(bool((new - old).norm() <= 1e-3 * old.norm()) for new, old in zip(after, before, strict=True))


@torch.no_grad()
def _maps(body: nn.Module, probe: Tensor) -> list[Tensor]:
    """What ``body`` makes of ``probe``, in the CPU's arithmetic: TF32 alone makes deep maps differ by more than 1e-3."""
    if probe.device.type != "cpu":
        body, probe = copy.deepcopy(body).cpu(), probe.cpu()
    return list(body(probe))


@torch.no_grad()
def _pairs(body: nn.Module, probe: Tensor) -> list[tuple[Any, Any]]:
    """Convolutions and the norms that take their results as they are."""
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
        body(probe)
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def _replace(body: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put each of ``new`` in the place of the module by which it is named."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if child in new:
                setattr(parent, name, new[child])
