"""Weights and statistics that are none of a fresh network's: no gain of 1, no offset of 0, no zero start."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

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
