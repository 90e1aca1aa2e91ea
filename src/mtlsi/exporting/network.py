"""The network as a module that can be traced for any number and size of images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mtlsi.errors import MistakeError, message_of
from mtlsi.exporting.free_shapes import free_shapes
from mtlsi.kernels.fold_norms import fold_norms
from mtlsi.model.backbone import STRIDES
from mtlsi.model.network import MTLSINet

MULTIPLE = STRIDES[-1]
EXAMPLE = (2, 3, 25 * MULTIPLE, 29 * MULTIPLE)
"""Large and odd: no length of any map or number of windows is 1, nor equal to another, which tracing would hold on to."""
MOST = 1024
"""Largest batch, and largest side in multiples of 32."""


class Raw(nn.Module):
    """Normalised images (b 3 H W), H and W multiples of 32 -> each task's raw prediction (b c H/4 W/4), float32."""

    def __init__(self, model: MTLSINet):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        final = self.model(images, full_size=False).final
        return tuple(final[task].float() for task in self.model.tasks)


def raw_network(model: MTLSINet, tasks: Sequence[str]) -> Raw:
    """A copy of ``model`` for ``tasks`` alone, in evaluation mode, that can be traced and gives the same predictions.

    Batch norms are folded into convolutions, and convolutions that pad by the image's size, as TensorFlow's do, pad by what
    that comes to for images of whole strides. For transformers see ``free_shapes``.
    """
    with torch.inference_mode(False), torch.no_grad():
        copied = copy.deepcopy(model).float().cpu().eval()
        if copied.backbone.batch_norms() and not fold_norms(copied.backbone.body, torch.randn(1, 3, 64, 64)):
            copied = copy.deepcopy(model).float().cpu().eval()
        pad_by_stride(copied.backbone.body)
        free_shapes(copied.backbone.body)
        return Raw(copied.for_tasks(tasks)).eval().requires_grad_(False)


def pad_by_stride(body: nn.Module) -> None:
    """Replace convolutions with "same" padding, which is a function of the image's size, by padded ones."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _padded(cast(nn.Conv2d, child)))


def _padded(layer: nn.Conv2d) -> nn.Module:
    sides: list[int] = []
    for kernel, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        in_all = max(dilation * (kernel - 1) + 1 - stride, 0)
        sides = [in_all // 2, in_all - in_all // 2, *sides]  # left, right, top, bottom: the last axis first
    plain: Any = copy.copy(layer)
    plain.__class__, plain.padding = nn.Conv2d, (0, 0)
    return nn.Sequential(nn.ZeroPad2d(cast(Any, tuple(sides))), plain)


def trace(network: nn.Module, example: Tensor, sides: tuple[int, int] = (2, 3)) -> ExportedProgram:
    """``network`` as one graph for any number of images (first axis) whose ``sides``, axes, are multiples of 32.

    Raises ``MistakeError`` where its operations depend on the size in a way that no graph can hold.
    """
    batch, rows, columns = (Dim(name, min=1, max=MOST) for name in ("batch", "rows", "columns"))
    free = {0: batch, sides[0]: MULTIPLE * rows, sides[1]: MULTIPLE * columns}
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=(free,), strict=False)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise MistakeError(
            f"this network cannot be traced for images of any size ({message_of(error, 200)}); expected a backbone of "
            "convolutions, Swin or a ViT, and a decoder whose shapes follow the image's: export another model"
        ) from error
