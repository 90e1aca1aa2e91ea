"""A network whose predictions can be told from the image by eye: for tests of what is made of predictions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mtlsi.prediction.predictor import Predictor

CLASSES = {"semseg": ("left", "right", "never")}


class ByColour(nn.Module):
    """Raw outputs that are plain functions of the image: class by red against green, metres by blue."""

    tasks = ("semseg", "depth", "normals", "boundary")
    classes = CLASSES
    input_size = (48, 64)

    def forward(self, images: torch.Tensor, tasks: tuple[str, ...], *, full_size: bool) -> SimpleNamespace:
        self.seen, self.full_size = images, full_size
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        red, green, blue = (images.float() * std.view(3, 1, 1) + mean.view(3, 1, 1)).unbind(1)
        raw = {
            "semseg": torch.stack([red, green, red - 9], 1),
            "depth": 10 * blue[:, None],
            "normals": torch.stack([red - 0.5, green - 0.5, 3 * (blue + 0.1)], 1),
            "boundary": 8 * (red - 0.5)[:, None],
        }
        return SimpleNamespace(final={task: raw[task] for task in tasks})


def predictor(**options: Any) -> Predictor:
    return Predictor(ByColour(), device="cpu", **options)  # type: ignore[arg-type]
