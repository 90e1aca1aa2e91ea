"""Whether an exported graph gives what the network gives under PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mtlsi import kinds
from mtlsi.model.backbone import STRIDES
from mtlsi.model.network import MTLSINet
from mtlsi.nn.normalise import normalise
from mtlsi.prediction.camera import multiplied
from mtlsi.prediction.shown import Shown

Predict = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Images (b H W 3) uint8 to each task's prediction (b H W ...)."""
TOLERANCE = {"float32": 1e-2, "float16": 5e-2, "int8": 0.25}
"""Largest mean difference that is let through: see ``difference``.

Choice: of means, not of the worst pixel. A resized image may differ by one level of 256 where two libraries round, which at
an edge between two surfaces is any number of metres.
"""
UNITS = {
    "classes": "share of the pixels",
    "distance": "the mean distance",
    "value": "the mean value",
    "direction": "length of the difference",
    "strength": "probability",
}
"""What ``difference`` is measured in, by kind."""


def difference(task: str, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """How far two predictions of ``task`` are apart: the mean and the largest over all pixels.

    Classes: the share that differs, in which a pixel differs or does not. Distances and values: relative to the mean size of
    PyTorch's. Directions: the length of the difference of two unit vectors. Strengths: of probabilities.
    """
    if kinds.of(task).task.kind == "classes":
        apart = (ours != theirs).astype(np.float64)
        return float(apart.mean()), float(apart.mean())
    apart = np.abs(ours.astype(np.float64) - theirs)
    if kinds.of(task).task.kind in ("distance", "value"):
        apart /= max(float(np.abs(theirs).mean()), 1e-6)
    elif kinds.of(task).task.kind == "direction":
        apart = np.sqrt((apart**2).sum(-1))
    return float(apart.mean()), float(apart.max())


def shown_size(image_hw: tuple[int, int], shown: Shown) -> tuple[int, int]:
    """The size at which ``frame.prepare`` shows an image of ``image_hw`` to the network."""
    scale = shown.scale(image_hw)
    height, width = (STRIDES[0] * max(1, round(side * scale / STRIDES[0])) for side in image_hw)
    return height, width


def sample_images(working_size: tuple[int, int], multiple: int, photos: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
    """Three batches (b H W 3) uint8 at the working size, wide and odd, and tall; two in one batch.

    Of ``photos`` (H W 3), by turns and stretched, or of smooth random colours. Their sides are multiples of ``multiple``.
    """
    height, width = working_size
    sizes = [(1, height, width), (2, height * 5 // 8 + 3, width + 31), (1, height * 3 // 2 + 1, width // 2 + 7)]
    sizes = [(batch, *(multiple * -(-side // multiple) for side in (h, w))) for batch, h, w in sizes]
    draw, turns, made = torch.Generator().manual_seed(0), cycle(photos), []
    for batch, h, w in sizes:
        if photos:
            some = [Image.fromarray(next(turns)).resize((w, h), Image.Resampling.BILINEAR) for _ in range(batch)]
            made.append(np.stack([np.asarray(one) for one in some]))
            continue
        coarse = torch.rand(batch, 3, 7, 9, generator=draw)
        smooth = F.interpolate(coarse, (h, w), mode="bicubic").clamp(0, 1)
        made.append((smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())
    return made


@torch.inference_mode()
def under_pytorch(
    model: MTLSINet, images: np.ndarray, tasks: Sequence[str], shown_hw: tuple[int, int], share: float = 1.0
) -> dict[str, np.ndarray]:
    """What the network predicts for ``images`` (b H W 3) shown at ``shown_hw``, as ``Predictor`` does it.

    ``share``: how large that is, over how large things were in training.
    """
    size = (shown_hw[1], shown_hw[0])
    small = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BILINEAR)) for x in images])
    final = model(normalise(torch.from_numpy(small).permute(0, 3, 1, 2)), tasks, full_size=False).final
    height, width = images.shape[1:3]
    results = {}
    for task in tasks:
        raw = final[task].float()
        smaller = height * width <= raw.shape[2] * raw.shape[3]
        decoded = kinds.decode(task, F.interpolate(raw, (height, width), mode="bilinear", antialias=smaller)).numpy()
        results[task] = decoded.transpose(0, 2, 3, 1) if decoded.ndim == 4 else decoded
    return dict(multiplied(results, share))
