"""At what size a photo is shown to a network, and what follows from it for metres.

    stretch        s = sqrt(h w / (H W))         the working size's area, in the photo's own shape
    keep_ratio     s = min(h / H, w / W)         the largest size of its own shape inside the working size

(H W) the photo, (h w) the working size, s what its sides are multiplied by. Training stretches images to one size, unless
``data.resize`` is keep_ratio: by either rule a photo of a training image's shape is shown as large as that image was.
What is shown half as large looks twice as far away, so metres are multiplied by the share of the size seen in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]
"""Height and width, in pixels."""
LONGEST_SIDE = 4
"""The longer side of what is shown is at most this many times that of the working size."""
MULTIPLE = 4
"""The stride at which a network predicts."""
ROUNDED_FROM = 64
"""Sides from so many pixels on are multiples of ``MULTIPLE``."""


@dataclass(frozen=True)
class Shown:
    """How photos of any size are shown."""

    working_size: Size
    resize: str = "stretch"
    """One of ``mtlsi.config.RESIZES``."""

    def scale(self, size_hw: Sequence[int]) -> float:
        """What the sides of a photo of ``size_hw`` are multiplied by."""
        ratios = [mine / side for mine, side in zip(self.working_size, size_hw, strict=True)]
        scale = min(ratios) if self.resize == "keep_ratio" else math.sqrt(math.prod(ratios))
        return min(scale, LONGEST_SIDE * max(self.working_size) / max(size_hw))

    def fit(self, size_hw: Sequence[int]) -> Size:
        """The height and width at which a photo of ``size_hw`` is shown, each at least 1 pixel.

        Sides of 64 pixels or more are multiples of 4, at which the network predicts: what it makes is then brought to the
        image's size in one step. A very long, thin image stays below the working size's area: see ``LONGEST_SIDE``.
        """
        scale = self.scale(size_hw)
        height, width = (
            max(1, MULTIPLE * round(x * scale / MULTIPLE) if x * scale >= ROUNDED_FROM else round(x * scale))
            for x in size_hw
        )
        return height, width

    def share(self, size_hw: Sequence[int], trained_size: Size) -> float:
        """How large a photo of ``size_hw`` is shown, over how large it would be at ``trained_size``, that of training."""
        return self.scale(size_hw) / Shown(trained_size, self.resize).scale(size_hw)
