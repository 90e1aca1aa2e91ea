"""Weights and statistics that are none of a fresh network's: no gain of 1, no offset of 0, no zero start."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from mtlsi.nn.layers import BEFORE_NORM, TaskConvolution, TaskProjection

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def draw_weights(module: Module, *, std: float) -> Module:
    """``module`` in evaluation, every weight drawn again with deviation ``std``, and every statistic."""
    for parameter in module.parameters():
        parameter.normal_(std=std)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2) if name.endswith("var") else buffer.normal_()
    return module.eval()


@torch.no_grad()
def at_usual_scale(model: Module) -> Module:
    """``module``, the weights before its norms at torch's scale.

    With smaller ones more of what a norm takes out again is rounding, and a fresh network, whose stored statistics are not
    its own yet, hardly answers to what is done to it.
    """
    for module in model.modules():
        if isinstance(module, TaskProjection):
            module.weight.div_(BEFORE_NORM)
        if isinstance(module, TaskConvolution):
            module.spatial.div_(BEFORE_NORM)
            if module.pointwise is not None:
                module.pointwise.weight.div_(BEFORE_NORM)
    return model
