"""Directions in space: unit vectors in the camera's frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.kinds.base import FieldFile, Kind
from mtlsi.kinds.colouring import BLUE, GREEN, RED, Colour, Limits, Swatches
from mtlsi.later import Later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")  # an exported model is drawn without it


BAND = 256
"""Rows that are coloured at a time."""


def unit_length(x: Tensor, shortest: float) -> Tensor:
    """Vectors (b 3 h w) scaled to length 1; those shorter than ``shortest`` are divided by ``shortest``.

    Written out: torch's norm over a leading axis takes ten times as long.
    """
    u, v, w = x.unbind(1)
    return x / (u * u + v * v + w * w).clamp_min(shortest**2).sqrt().unsqueeze(1)


class Direction(Kind):
    """Labels and predictions: (3 H W) of unit length, x right, y up, z to the camera; shorter than a half: unknown."""

    discrete = False

    @property
    def label_channels(self) -> int:
        return 3

    def fill_value(self, dtype: Any) -> float:
        return 0

    def valid(self, label: Any) -> Any:
        return (label * label).sum(-3) > 0.25

    def random(self, batch: int, size_hw: Sequence[int], num_channels: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(batch, num_channels, *size_hw), dim=1)

    def flip(self, label: Tensor, axis: int) -> Tensor:
        """Left to right x changes its sign, upside down y."""
        flipped = label.flip(axis)
        flipped.select(-3, {-1: 0, -2: 1}[axis]).neg_()
        return flipped

    def decode(self, raw: Tensor) -> Tensor:
        return unit_length(raw.float(), 1e-12)

    def to_average(self, raw: Tensor) -> Tensor:
        """Unit vectors: how long raw ones are says nothing."""
        return self.decode(raw)

    def constant(self, values: Tensor) -> Tensor:
        """The mean direction."""
        return torch.nn.functional.normalize(values.mean(-1), dim=0)

    def colours(
        self, array: np.ndarray, limits: Limits | None = None, chosen: Sequence[Colour] | None = None
    ) -> np.ndarray:
        """In bands of rows: three channels of a large photo are much to copy."""
        array = self.channels_last(array)
        shown = np.empty((*array.shape[:2], 3), np.uint8)
        for top in range(0, len(array), BAND):
            shown[top : top + BAND] = super().colours(array[top : top + BAND], limits, chosen)
        return shown

    def shades(self, array: np.ndarray, limits: Limits | None, chosen: Sequence[Colour] | None = None) -> np.ndarray:
        """x, y, z as red, green, blue."""
        return np.round((np.clip(array, -1, 1) + 1) * 127.5).astype(np.uint8)

    def legend(
        self,
        array: np.ndarray,
        classes: Sequence[str] | None,
        limits: Limits | None,
        num_marks: int,
        chosen: Sequence[Colour] | None = None,
    ) -> Swatches:
        return Swatches([(RED, "right"), (GREEN, "up"), (BLUE, "towards the camera")])

    def field_file(self, prediction: np.ndarray) -> FieldFile:
        """8 bits a component, c as 2 c / 255 - 1."""
        return ".png", np.rint((prediction.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)

    def pack(self, label: Tensor) -> dict[str, np.ndarray]:
        """8 bits a component."""
        return {self.task.name: (label * 127).round().to(torch.int8).numpy()}

    def unpack(self, arrays: Mapping[str, np.ndarray], size_hw: tuple[int, int]) -> Tensor:
        """Raises ``ValueError`` for other than 8 bits a component."""
        if (stored := arrays[self.task.name]).dtype != np.int8:
            raise ValueError(f"{stored.dtype}; expected int8")
        x, y, z = vectors = torch.from_numpy(stored.astype(np.float32))
        # written out: torch's norm over a leading axis takes twenty times as long
        return vectors * (x * x + y * y + z * z).clamp_(min=1).rsqrt_()
