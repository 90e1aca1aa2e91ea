"""The preliminary decoder: features and a coarse prediction per task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mtlsi.nn.layers import TaskBatchNorm, TaskConvolution, enlarge, pick


class PreliminaryDecoder(nn.Module):
    """Backbone maps -> features (b t c h w) at the decoder's stride and a coarse prediction per task.

    Paper: "a preliminary decoder per task". Choice: every map is projected at its own stride, then enlarged and added
    from coarse to fine, which equals projecting the enlarged maps at a fraction of the work; a 3x3 convolution follows.
    Maps finer than the decoder's stride are not read here.
    """

    def __init__(
        self, in_channels: tuple[int, ...], channels: int, outputs: Mapping[str, int], *, skip: int, dense: bool
    ):
        super().__init__()
        self.skip = skip
        """Finest maps left out: 0 for a decoder at stride 4, 1 at stride 8, 2 at stride 16."""
        self.lateral = nn.ModuleList(TaskProjection(c, len(outputs), channels) for c in in_channels[skip:])
        self.refine = TaskConvolution(len(outputs), channels, channels, dense=dense)
        self.predict = Predictions(channels, outputs)

    def forward(self, maps: tuple[Tensor, ...], index: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        used = maps[self.skip :]
        x = self.lateral[-1](used[-1], index)
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(used[:-1]), strict=True):
            x = enlarge(x, finer.shape[-2:]) + lateral(finer, index)
        features = self.refine(x, index)
        return features, self.predict(features, index)


class TaskProjection(nn.Module):
    """One map (b c h w) projected anew for every task: (b t d h w), batch-normalised."""

    def __init__(self, in_channels: int, num_tasks: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, channels, in_channels, 1, 1))
        nn.init.uniform_(self.weight, -1 / math.sqrt(in_channels), 1 / math.sqrt(in_channels))
        self.norm = TaskBatchNorm(num_tasks, channels)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        weight = pick(self.weight, index)
        x = F.conv2d(x, weight.flatten(0, 1))
        return self.norm(rearrange(x, "b (t d) h w -> b t d h w", t=len(weight)), index)


class Predictions(nn.Module):
    """The last 1x1 convolution of every task: features (b t c h w) -> {task: (b channels h w)}.

    The tasks part ways here, since their channels differ.
    """

    def __init__(self, channels: int, outputs: Mapping[str, int]):
        super().__init__()
        self.of_task = nn.ModuleDict({task: nn.Conv2d(channels, out, 1) for task, out in outputs.items()})

    def forward(self, x: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        names = list(self.of_task)
        picked = names if index is None else [names[i] for i in index.tolist()]
        return {task: self.of_task[task](features) for task, features in zip(picked, x.unbind(1), strict=True)}

    def start_at(self, task: str, value: float) -> None:
        """Let an untrained prediction of ``task`` begin at ``value`` instead of 0."""
        nn.init.constant_(cast(Tensor, self.of_task[task].bias), value)
