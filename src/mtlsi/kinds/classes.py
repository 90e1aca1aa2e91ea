"""One class per pixel."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.kinds.base import FieldFile, Kind, inflated
from mtlsi.kinds.colouring import UNKNOWN, Colour, Limits, Swatches
from mtlsi.kinds.palette import palette
from mtlsi.later import Later
from mtlsi.tasks import class_dtype, invalid_class

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")  # an exported model is drawn without it


class Classes(Kind):
    """Labels: class indices (H W). Raw predictions: one score per class."""

    discrete = True
    hard_edges = True

    def label_dtype(self, num_classes: int | None = None) -> torch.dtype:
        return getattr(torch, class_dtype(num_classes or 1))

    def fill_value(self, dtype: Any) -> float:
        return invalid_class(dtype)

    def valid(self, label: Any) -> Any:
        return label != invalid_class(label.dtype)

    def random(self, batch: int, size_hw: Sequence[int], num_channels: int) -> Tensor:
        return torch.randint(num_channels, (batch, *size_hw), dtype=self.label_dtype(num_channels))

    def decode(self, raw: Tensor) -> Tensor:
        return raw.max(1).indices.to(self.label_dtype(raw.shape[1]))  # argmax takes twice as long

    def constant(self, values: Tensor) -> Tensor:
        """The commonest class."""
        return values.flatten().mode().values

    def raw_constant(self, constant: Tensor, num_channels: int) -> Tensor:
        return torch.nn.functional.one_hot(constant.long(), num_channels).float()

    def shades(self, array: np.ndarray, limits: Limits | None, chosen: Sequence[Colour] | None = None) -> np.ndarray:
        known = self.valid(array)
        table = np.asarray(palette(int(array[known].max(initial=0)) + 1, chosen), np.uint8)
        return table[np.where(known, array, 0)]

    def legend(
        self,
        array: np.ndarray,
        classes: Sequence[str] | None,
        limits: Limits | None,
        num_marks: int,
        chosen: Sequence[Colour] | None = None,
    ) -> Swatches:
        """The classes present, the largest first."""
        indices, counts = np.unique(array, return_counts=True)
        present = [int(indices[i]) for i in np.argsort(-counts, kind="stable")]
        names, invalid = classes or (), invalid_class(array.dtype)
        table = palette(max([i for i in present if i != invalid], default=0) + 1, chosen)
        entries = [(table[i], names[i] if i < len(names) else f"class {i}") for i in present if i != invalid]
        return Swatches(entries + [(UNKNOWN, "not labelled")] * (invalid in present))

    def extra_files(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """The indices as a PNG of 8 bits, 16 with more than 255 classes."""
        return {"index": _as_pixels}

    def field_file(self, prediction: np.ndarray) -> FieldFile:
        return ".png", _as_pixels(prediction)

    def pack(self, label: Tensor) -> dict[str, np.ndarray]:
        """Deflated indices of 8 or 16 bits."""
        content = _as_pixels(label.contiguous().numpy()).tobytes()
        return {self.task.name: np.frombuffer(zlib.compress(content, 6), np.uint8)}

    def unpack(self, arrays: Mapping[str, np.ndarray], size_hw: tuple[int, int]) -> Tensor:
        num_pixels = size_hw[0] * size_hw[1]
        content = inflated(arrays[self.task.name], num_pixels, 2 * num_pixels)
        is_wide = len(content) == 2 * num_pixels
        values = np.frombuffer(content, np.uint16 if is_wide else np.uint8).reshape(size_hw)
        return torch.from_numpy(values.astype(np.int32) if is_wide else values.copy())


def _as_pixels(indices: np.ndarray) -> np.ndarray:
    """Class indices as 8 or 16 bits without a sign: the narrower type that their own type, or their values, allow."""
    if indices.dtype == np.uint8 or (invalid_class(indices.dtype) == 255 and indices.max(initial=0) <= 255):
        return indices.astype(np.uint8)
    return indices.astype(np.uint16)
