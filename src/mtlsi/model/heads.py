"""The final head of every task.

    prediction = V GELU(BN(conv(X)))                                      where the decoder works at stride 4
    prediction = V GELU(BN(conv(up(GELU(BN(conv(X)))) + BN(W M_1))))      where it works at a coarser one

per task: X the refined features, M_1 the backbone's finest map, ``up`` bilinear.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.nn.layers import Predictions, TaskConvolution, TaskProjection
from mtlsi.nn.layout import resize_maps


class TaskHeads(nn.Module):
    """Refined features (b t c h w) and the backbone's finest map -> the raw predictions at stride 4, side by side.

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

    def forward(self, x: Float[Tensor, "b t c h w"], finest: Float[Tensor, "b f y x"]) -> Float[Tensor, "b o y x"]:
        x = self.refine(x)
        if self.fine is not None and self.finish is not None:
            x = self.finish(resize_maps(x, finest.shape[-2:]) + self.fine(finest))
        return self.predict(x)
