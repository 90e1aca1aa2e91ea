"""The auxiliary predictions of ATRC: class scores of every task, by which its label relations gather positions.

    A_t = W_t ReLU(BN(U_t x))        x the backbone's maps side by side, without gradient

A coarse prediction is read from the scores: the scores themselves where the task has classes, their difference where it has
one logit, else sum_k softmax_k(A) v_k, with a value v_k for each class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.model.rivals.atrc_relations import LinearNorm
from mtlsi.nn.layers import Predictions
from mtlsi.nn.layout import to_map
from mtlsi.tasks import TASKS


class AuxiliaryClasses(nn.Module):
    """Joined maps (b i h w) -> class scores of the positions (b n k) and coarse predictions (b channels h w), by task.

    Paper: an auxiliary head per task, a 1x1 convolution of as many channels as the maps have, BN, ReLU, and the scores; it
    trains nothing below it. In the authors' code depth is cut into 40 classes, evenly in the logarithm from 0.7 to 10 m,
    normals into 40 directions found by clustering, and all heads learn by cross-entropy.
    Choice: a task's coarse prediction takes the task's own loss here, as every decoder's. For classes and for strength that
    is the same cross-entropy. Depth and normals are read from the classes as an expectation, with values that start at the
    published bins, at directions spread over the half sphere that faces the camera, and are learned.
    """

    def __init__(self, in_channels: int, hidden: int, outputs: Mapping[str, int], bins: int):
        super().__init__()
        self.outputs = dict(outputs)
        self.scores = nn.ModuleDict(
            {
                task: nn.Sequential(
                    LinearNorm(in_channels, hidden, nn.ReLU()), nn.Linear(hidden, _num_classes(task, out, bins))
                )
                for task, out in outputs.items()
            }
        )
        self.values = nn.ModuleDict(
            {task: Predictions(bins, {task: out}) for task, out in outputs.items() if _has_values(task)}
        )
        self._start(bins)

    @torch.no_grad()
    def _start(self, bins: int) -> None:
        for head in self.scores.values():
            last = cast(nn.Linear, cast(nn.Sequential, head)[-1])
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)
        for task, readout in self.values.items():
            last = cast(nn.Conv2d, cast(Predictions, readout).of_task[task])
            last.weight.copy_(_class_values(task, self.outputs[task], bins)[..., None, None])
            nn.init.zeros_(cast(Tensor, last.bias))

    def forward(self, x: Float[Tensor, "b i h w"]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        positions = x.detach().permute(0, 2, 3, 1).flatten(1, 2)  # b n i
        scores = {task: head(positions) for task, head in self.scores.items()}  # {task: b n k}
        return scores, {task: self._read(task, to_map(s.unsqueeze(1), x.shape[-2:])) for task, s in scores.items()}

    def _read(self, task: str, scores: Float[Tensor, "b 1 k h w"]) -> Float[Tensor, "b _ h w"]:
        """The task's prediction from its class scores."""
        if task in self.values:
            return self.values[task](scores.softmax(2))
        scores = scores.squeeze(1)
        return scores if scores.shape[1] == self.outputs[task] else scores[:, 1:] - scores[:, :1]


def _has_values(task: str) -> bool:
    return TASKS[task].kind in ("distance", "direction", "value")


def _num_classes(task: str, channels: int, bins: int) -> int:
    return bins if _has_values(task) else max(channels, 2)


def _class_values(task: str, channels: int, bins: int) -> Float[Tensor, "c k"]:
    """What each class stands for, about 0 where the task starts at the training set's median."""
    record = TASKS[task]
    place = (torch.arange(bins) + 0.5) / bins
    if record.kind == "distance":
        metres = 0.7 * (10 / 0.7) ** place
        return (metres - metres.mean())[None]
    if record.kind == "direction":
        z, turn = 1 - place, torch.arange(bins) * torch.pi * (3 - 5**0.5)  # a spiral by the golden angle
        across = (1 - z * z).sqrt()
        return torch.stack((across * turn.cos(), across * turn.sin(), z))
    low, high = record.range or (-1.0, 1.0)
    return torch.randn(channels, bins) * (high - low) / 4
