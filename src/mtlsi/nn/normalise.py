"""The colours that the networks take."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in 0..1."""


def normalise(images: Tensor) -> Tensor:
    """RGB images (... 3 H W), uint8 or floats in 0..1, with ImageNet's mean and deviation taken out, as floats."""
    x = images if images.is_floating_point() else images.to(torch.float32) / 255
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device).view(3, 1, 1) for values in (MEAN, STD))
    return x.sub(mean).div_(std)
