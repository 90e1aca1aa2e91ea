"""Metres from the camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.kinds.base import FieldFile, Kind
from mtlsi.kinds.colouring import Colour, Limits, Scale, on_scale, percentile_limits
from mtlsi.kinds.turbo import turbo
from mtlsi.later import Later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")  # an exported model is drawn without it


def _millimetres(array: np.ndarray) -> np.ndarray:
    whole = np.empty(array.shape, np.uint16)
    for row, metres in zip(whole, array, strict=True):  # a row at a time: nothing else as large is made of a large map
        row[:] = np.clip(np.round(metres * 1000), 0, 65535)
    return whole


class Distance(Kind):
    """Labels: metres, 0 or NaN where unknown. Predictions: metres, not below 0."""

    discrete = False
    starts_at_constant = True

    def fill_value(self, dtype: Any) -> float:
        return 0

    def valid(self, label: Any) -> Any:
        return label > 0

    def random(self, batch: int, size_hw: Sequence[int], num_channels: int) -> Tensor:
        return 1 + torch.rand(batch, *size_hw)

    def zoom(self, label: Tensor, factor: float) -> Tensor:
        """A closer look: what looks twice as large is half as far."""
        return label / factor

    def decode(self, raw: Tensor) -> Tensor:
        return raw.float()[:, 0].clamp_min(0)

    def to_average(self, raw: Tensor) -> Tensor:
        """The logarithm, in which a scale is a sum; of less than a millimetre, that of one."""
        return raw.float().clamp_min(1e-3).log()

    def from_average(self, values: Tensor) -> Tensor:
        return values.exp()

    def constant(self, values: Tensor) -> Tensor:
        """The median."""
        return values.median()

    def limits(self, *arrays: np.ndarray) -> Limits:
        """The nearest and farthest metres that the colours tell apart."""
        values = np.concatenate([a[np.isfinite(a) & (a > 0)] for a in map(np.asarray, arrays)])
        low, high = percentile_limits(values) or (0.0, 10.0)
        return low, max(high, low + 0.1)

    def shades(self, array: np.ndarray, limits: Limits | None, chosen: Sequence[Colour] | None = None) -> np.ndarray:
        """Blue (near) to red (far)."""
        return turbo()[on_scale(array, self._drawn(array), limits or self.limits(array))]

    def _drawn(self, array: np.ndarray) -> np.ndarray:
        return np.isfinite(array) & (array > 0)

    def legend(
        self,
        array: np.ndarray,
        classes: Sequence[str] | None,
        limits: Limits | None,
        num_marks: int,
        chosen: Sequence[Colour] | None = None,
    ) -> Scale:
        low, high = limits or self.limits(array)
        digits = 1 if high - low >= 1 else 2
        return Scale(turbo(), [f"{v:.{digits}f} m" for v in np.linspace(low, high, num_marks)])

    def extra_files(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Whole millimetres, 16 bits, at most 65.535 m."""
        return {"mm": _millimetres}

    def field_file(self, prediction: np.ndarray) -> FieldFile:
        """A NumPy file of float32 metres."""
        return ".npy", prediction.astype(np.float32)

    def pack(self, label: Tensor) -> dict[str, np.ndarray]:
        """16 bits of the label's own range."""
        label = torch.where(label > 0, label, 0)  # NaN, too, is unknown
        name, step = self.task.name, max(float(label.max()), 1e-6) / 65535
        return {
            name: (label / step).round().numpy().astype(np.uint16),
            f"{name}.step": np.full(1, step, np.float32),
        }

    def unpack(self, arrays: Mapping[str, np.ndarray], size_hw: tuple[int, int]) -> Tensor:
        """Raises ``ValueError`` for distances that are negative or not finite, and for other than 16 bits."""
        name = self.task.name
        stored, step = arrays[name], arrays[f"{name}.step"].item()
        if stored.dtype != np.uint16 or not 0 <= step * 65535 <= float(np.finfo(np.float32).max):
            raise ValueError(f"{stored.dtype} in steps of {step}; expected uint16 in finite ones")
        return torch.from_numpy(stored.astype(np.float32) * step)
