"""The final head of every task.

    prediction = V GELU(BN(conv(X)))                                      where the decoder works at stride 4
    prediction = V GELU(BN(conv(up(GELU(BN(conv(X)))) + BN(W M_1))))      where it works at a coarser one

    Y <- Y + U GELU(BN(dw(A D Y)))                                        with ``mix``, before the last convolution

per task: X the refined features, Y the same at stride 4, M_1 the backbone's finest map, ``up`` bilinear, D and U matrices to
few channels and back. Across all tasks: A a matrix of those few channels side by side, dw a depthwise 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.nn.layers import Predictions, TaskConvolution, TaskLinear, TaskProjection
from mtlsi.nn.layout import apart, resize_maps, side_by_side, to_map, to_positions
from mtlsi.nn.task_subset import for_tasks, shallow_copy, take_tasks


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
        mix: int = 0,
    ):
        super().__init__()
        self.refine = TaskConvolution(len(outputs), channels, width, dense=dense)
        self.fine = None if at_stride_4 else TaskProjection(fine_channels, len(outputs), width)
        self.finish = None if at_stride_4 else TaskConvolution(len(outputs), width, width, dense=dense)
        self.mix = FineMix(len(outputs), width, mix) if mix else None
        self.predict = Predictions(width, outputs)
        self.index: Sequence[int] | None = None
        """The tasks that are computed behind the mix, or at all where there is none; None: all."""

    def forward(self, x: Float[Tensor, "b t c h w"], finest: Float[Tensor, "b f y x"]) -> Float[Tensor, "b o y x"]:
        if self.mix is None:
            x = self.cut(x)
        x = self.refine(x)
        if self.fine is not None:
            x = resize_maps(x, finest.shape[-2:]) + self.fine(finest)
        if self.mix is not None:
            x = self.cut(self.mix(x))
        return self.predict(x if self.finish is None else self.finish(x))

    def cut(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b _ c h w"]:
        """The features of the tasks that are computed."""
        return x if self.index is None else take_tasks(x, self.index)

    def for_tasks(self, index: Sequence[int]) -> TaskHeads:
        """The heads of the tasks ``index`` that are given the refined features of all tasks."""
        if self.mix is None:
            chosen = for_tasks(self, index)
        else:
            chosen = shallow_copy(self)
            chosen.finish = None if self.finish is None else for_tasks(self.finish, index)
            chosen.predict = for_tasks(self.predict, index)
        chosen.index = tuple(index)
        return chosen


class FineMix(nn.Module):
    """Y + U GELU(BN(dw(A D Y))): what the tasks tell one another at stride 4, through ``channels`` of each, begins at zero.

    Choice: the paper's tasks meet at the decoder's stride alone, where a boundary, a depth edge and the outline of an object
    are too coarse to agree.
    """

    def __init__(self, num_tasks: int, width: int, channels: int):
        super().__init__()
        few = num_tasks * channels
        self.num_tasks = num_tasks
        self.down = TaskLinear(num_tasks, width, channels)
        self.across = nn.Conv2d(few, few, 1, bias=False)
        self.spatial = nn.Conv2d(few, few, 3, padding=1, groups=few, bias=False)
        self.norm = nn.BatchNorm2d(few)
        self.up = TaskLinear(num_tasks, channels, width)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        few = to_map(self.down(to_positions(x)), x.shape[-2:])
        mixed = F.gelu(self.norm(self.spatial(self.across(side_by_side(few)))))
        return x + to_map(self.up(to_positions(apart(mixed, self.num_tasks))), x.shape[-2:])
