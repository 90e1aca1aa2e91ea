"""How much a pixel belongs: saliency, boundaries, or any other yes or no per pixel."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.kinds.base import FieldFile, Kind, inflated
from mtlsi.kinds.colouring import Colour, Limits, Scale
from mtlsi.kinds.grids import largest_in_cells
from mtlsi.later import Later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")  # an exported model is drawn without it


class Strength(Kind):
    """Labels: 0 or 1. Predictions: the probability of 1, from one logit or from two scores (background, foreground).

    Choice: labels are binary, as the field's are; a graded quantity in 0..1 is a ``value`` with a range.
    """

    discrete = True

    def label_dtype(self, num_classes: int | None = None) -> torch.dtype:
        return torch.uint8

    def fill_value(self, dtype: Any) -> float:
        return 255

    def valid(self, label: Any) -> Any:
        return label != 255

    def random(self, batch: int, size_hw: Sequence[int], num_channels: int) -> Tensor:
        return torch.randint(2, (batch, *size_hw), dtype=torch.uint8)

    def shrink(self, label: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Thin lines keep the largest valid value of a cell; else as every kind."""
        return largest_in_cells(label, size_hw) if self.task.thin else super().shrink(label, size_hw)

    def resize(self, label: Tensor, size_hw: tuple[int, int]) -> Tensor:
        if self.task.thin and (size_hw[0] < label.shape[-2] or size_hw[1] < label.shape[-1]):
            return largest_in_cells(label, size_hw)
        return super().resize(label, size_hw)

    def decode(self, raw: Tensor) -> Tensor:
        raw = raw.float()
        return raw.softmax(1)[:, 1] if self.task.channels == 2 else raw[:, 0].sigmoid()

    def constant(self, values: Tensor) -> Tensor:
        """The share of ones."""
        return values.float().mean()

    def raw_constant(self, constant: Tensor, num_channels: int) -> Tensor:
        logit = constant.logit(1e-4)
        return torch.stack((torch.zeros(()), logit)) if num_channels == 2 else logit[None]

    def shades(self, array: np.ndarray, limits: Limits | None, chosen: Sequence[Colour] | None = None) -> np.ndarray:
        """White on black."""
        return np.round(np.where(self._drawn(array), array, 0) * 255.0).astype(np.uint8)[..., None].repeat(3, -1)

    def _drawn(self, array: np.ndarray) -> np.ndarray:
        return (array <= 1) if array.dtype.kind == "f" else self.valid(array)

    def legend(
        self,
        array: np.ndarray,
        classes: Sequence[str] | None,
        limits: Limits | None,
        num_marks: int,
        chosen: Sequence[Colour] | None = None,
    ) -> Scale:
        return Scale(np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1), ["0", "0.5", "1"])

    def field_file(self, prediction: np.ndarray) -> FieldFile:
        """8 bits, 255 times the probability."""
        return ".png", np.rint(prediction * 255).astype(np.uint8)

    def pack(self, label: Tensor) -> dict[str, np.ndarray]:
        """Deflated bytes."""
        content = zlib.compress(label.contiguous().numpy().tobytes(), 6)
        return {self.task.name: np.frombuffer(content, np.uint8)}

    def unpack(self, arrays: Mapping[str, np.ndarray], size_hw: tuple[int, int]) -> Tensor:
        values = np.frombuffer(inflated(arrays[self.task.name], size_hw[0] * size_hw[1]), np.uint8)
        return torch.from_numpy(values.reshape(size_hw).copy())
