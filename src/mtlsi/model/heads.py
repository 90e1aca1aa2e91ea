"""The final head of every task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mtlsi.model.preliminary import Predictions, TaskProjection
from mtlsi.nn.layers import Index, TaskConvolution, resize_maps


class TaskHeads(nn.Module):
    """Refined features (b t c h w) -> the raw predictions at stride 4, as ``Predictions`` gives them.

    Choice: where the decoder works at a coarser stride, its features are brought to ``width`` channels, upsampled to stride
    4 and joined by a projection of the backbone's finest map, so that outlines are drawn at the fine stride though tasks
    met at the coarse.
    """

    def __init__(
        self,
        channels: int,
        fine_channels: int,
        outputs: Mapping[str, int],
        *,
        width: int,
        at_stride_4: bool,
        dense: bool,
    ):
        super().__init__()
        self.refine = TaskConvolution(len(outputs), channels, width, dense=dense)
        self.fine = None if at_stride_4 else TaskProjection(fine_channels, len(outputs), width)
        self.finish = None if at_stride_4 else TaskConvolution(len(outputs), width, width, dense=dense)
        self.predict = Predictions(width, outputs)

    def forward(self, x: Tensor, finest: Tensor, index: Index = None) -> Tensor:
        x = self.refine(x, index)
        if self.fine is not None and self.finish is not None:
            x = resize_maps(x, finest.shape[-2:]) + self.fine(finest, index)
            x = self.finish(x, index)
        return self.predict(x, index)
