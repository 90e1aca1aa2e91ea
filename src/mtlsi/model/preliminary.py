"""The preliminary decoder: features and a coarse prediction per task.

    F = GELU(BN(conv(sum_i up(BN(W_i M_i)))))        coarse = V F

for every task, with weights of its own: M_i the backbone's maps, ``up`` bilinear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.nn.layers import Predictions, TaskConvolution, TaskProjection
from mtlsi.nn.layout import resize_maps
from mtlsi.tasks import TASKS

DEEP_SUPERVISION = ("all", "areas", "none")


class TaskPyramid(nn.Module):
    """The backbone's maps at strides 4, 8, 16, 32 -> features of every task (b t c h w) at the stride of the finest used.

    Paper: "a preliminary decoder per task". Choice: each map is projected at its own stride, then upsampled and added from
    coarse to fine, which equals projecting the upsampled maps at a fraction of the work; a 3x3 convolution follows.
    """

    def __init__(
        self, map_channels: Sequence[int], channels: int, outputs: Mapping[str, int], *, skip: int, dense: bool
    ):
        super().__init__()
        self.skip = skip
        """Finest maps left out: 0 for a decoder at stride 4, 1 at stride 8, 2 at stride 16."""
        self.lateral = nn.ModuleList(TaskProjection(c, len(outputs), channels) for c in map_channels[skip:])
        self.refine = TaskConvolution(len(outputs), channels, channels, dense=dense)

    def features(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b t c h w"]:
        """The sum of the projected maps, refined."""
        used = maps[self.skip :]
        x = self.lateral[-1](used[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(used[:-1]), strict=True):
            x = resize_maps(x, finer.shape[-2:]) + lateral(finer)
        return self.refine(x)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b t c h w"]:
        return self.features(maps)


class PreliminaryDecoder(TaskPyramid):
    """Backbone maps -> features (b t c h w) and the coarse predictions, side by side (b o h w).

    Paper: the coarse predictions are supervised. Choice: ``deep_supervision`` says of which tasks their gradient reaches the
    features. With ``areas`` it does not for thin lines: at the decoder's stride they can only be drawn wide, and features
    that learn to do so draw worse ones at stride 4.
    """

    def __init__(
        self,
        map_channels: Sequence[int],
        channels: int,
        outputs: Mapping[str, int],
        *,
        skip: int,
        dense: bool,
        deep_supervision: str = "all",
    ):
        super().__init__(map_channels, channels, outputs, skip=skip, dense=dense)
        self.deep_supervision = deep_supervision
        """One of ``DEEP_SUPERVISION``."""
        self.predict = Predictions(channels, outputs)

    def forward(
        self, maps: Sequence[Float[Tensor, "b _ _ _"]]
    ) -> tuple[Float[Tensor, "b t c h w"], Float[Tensor, "b o h w"]]:
        features = self.features(maps)
        return features, self.predict(self.trained_by_coarse(features))

    def trained_by_coarse(self, features: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        """The features themselves, through which no gradient passes for the tasks that have no deep supervision."""
        if self.deep_supervision == "all" or not torch.is_grad_enabled():
            return features
        passes = [self.deep_supervision == "areas" and not TASKS[task].thin for task in self.predict.of_task]
        # filled where they are: what is copied to a GPU from a list is waited for, and cannot be recorded as a graph
        flags = torch.cat([torch.full((1, 1, 1, 1), flag, device=features.device) for flag in passes])
        return torch.where(flags, features, features.detach())
