"""The preliminary decoder: features and a coarse prediction per task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsi.nn.layers import Index, TaskBatchNorm, TaskConvolution, apart, pick, resize_maps, side_by_side


class PreliminaryDecoder(nn.Module):
    """Backbone maps -> features (b t c h w) at the decoder's stride and the coarse predictions, as ``Predictions`` gives
    them.

    Paper: "a preliminary decoder per task". Choice: every map is projected at its own stride, then upsampled and added
    from coarse to fine, which equals projecting the upsampled maps at a fraction of the work; a 3x3 convolution follows.
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

    def forward(self, maps: tuple[Tensor, ...], index: Index = None) -> tuple[Tensor, Tensor]:
        used = maps[self.skip :]
        x = self.lateral[-1](used[-1], index)
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(used[:-1]), strict=True):
            x = resize_maps(x, finer.shape[-2:]) + lateral(finer, index)
        features = self.refine(x, index)
        return features, self.predict(features, index)


class TaskProjection(nn.Module):
    """One map (b c h w) projected again for every task: (b t d h w), batch-normalised.

    After training the norm is part of the weights.
    """

    def __init__(self, in_channels: int, num_tasks: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, channels, in_channels, 1, 1))
        nn.init.uniform_(self.weight, -1 / math.sqrt(in_channels), 1 / math.sqrt(in_channels))
        self.norm = TaskBatchNorm(num_tasks, channels)

    def forward(self, x: Tensor, index: Index = None) -> Tensor:
        weight = pick(self.weight, index)
        if self.training:
            return self.norm(apart(F.conv2d(x, weight.flatten(0, 1)), len(weight)), index)
        gain, offset = self.norm.gain_and_offset(index)
        x = F.conv2d(x, (weight * gain[..., None, None, None]).flatten(0, 1), offset.flatten())
        return apart(x, len(weight))


class Predictions(nn.Module):
    """The last 1x1 convolution of every task: features (b t c h w) -> all tasks' predictions side by side (b o h w).

    The tasks part ways here, since their channels differ; ``by_task`` says which are whose. One product with a
    block-diagonal matrix makes them all, since cutting the features apart costs more than its zeros.
    """

    def __init__(self, channels: int, outputs: Mapping[str, int]):
        super().__init__()
        self.of_task = nn.ModuleDict({task: nn.Conv2d(channels, out, 1) for task, out in outputs.items()})

    def forward(self, x: Tensor, index: Index = None) -> Tensor:
        chosen = self._chosen(index)
        kernel = torch.block_diag(*(layer.weight.flatten(1) for layer in chosen.values()))
        bias = torch.cat([cast(Tensor, layer.bias) for layer in chosen.values()])
        return F.conv2d(side_by_side(x), kernel[..., None, None], bias)

    def by_task(self, predictions: Tensor, index: Index = None) -> dict[str, Tensor]:
        """The predictions (b o h w) of the tasks in ``index`` as {task: (b channels h w)}: views."""
        channels = {task: layer.out_channels for task, layer in self._chosen(index).items()}
        return dict(zip(channels, predictions.split(list(channels.values()), 1), strict=True))

    def _chosen(self, index: Index) -> dict[str, nn.Conv2d]:
        layers = [(task, cast(nn.Conv2d, layer)) for task, layer in self.of_task.items()]
        return dict(layers if index is None else [layers[i] for i in index])

    def start_at(self, task: str, value: float) -> None:
        """Let an untrained prediction of ``task`` begin at ``value`` instead of 0."""
        nn.init.constant_(cast(Tensor, self.of_task[task].bias), value)
