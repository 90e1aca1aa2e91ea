"""Any numbers: albedo, curvature, temperature, disparity."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.kinds.base import FieldFile, Kind, inflated
from mtlsi.kinds.colouring import BLUE, GREEN, RED, Colour, Limits, Scale, Swatches, on_scale, percentile_limits
from mtlsi.kinds.turbo import turbo
from mtlsi.later import Later

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")  # an exported model is drawn without it


class Value(Kind):
    """Labels and predictions: one number per pixel (H W) or several (c H W); a NaN in any channel: unknown."""

    discrete = False
    starts_at_constant = True

    @property
    def label_channels(self) -> int:
        channels = self.task.channels or 1
        return channels if channels > 1 else 0

    def fill_value(self, dtype: Any) -> float:
        return math.nan

    def valid(self, label: Any) -> Any:
        finite = abs(label) < math.inf  # False for NaN too
        return finite.all(-3) if self.label_channels else finite

    def random(self, batch: int, size_hw: Sequence[int], num_channels: int) -> Tensor:
        low, high = self.task.range or (0.0, 1.0)
        channels = (num_channels,) if num_channels > 1 else ()
        return low + (high - low) * torch.rand(batch, *channels, *size_hw)

    def decode(self, raw: Tensor) -> Tensor:
        raw = raw.float() if self.label_channels else raw.float()[:, 0]
        return raw if self.task.range is None else raw.clamp(*self.task.range)

    def constant(self, values: Tensor) -> Tensor:
        """The median of every channel."""
        return values.median(-1).values

    def limits(self, *arrays: np.ndarray) -> Limits:
        """The task's range, else what the finite values span, over all channels."""
        if self.task.range is not None:
            return self.task.range
        values = np.concatenate([a[np.isfinite(a)] for a in map(np.asarray, arrays)])
        low, high = percentile_limits(values) or (0.0, 1.0)
        return low, high if high > low else low + 1

    def shades(self, array: np.ndarray, limits: Limits | None, chosen: Sequence[Colour] | None = None) -> np.ndarray:
        """One channel: blue (low) to red (high). Several: the first three as red, green, blue."""
        steps = on_scale(array, np.isfinite(array), limits or self.limits(array))
        if array.ndim == 2:
            return turbo()[steps]
        shown = np.full((*array.shape[:2], 3), 128, np.uint8)
        shown[..., : array.shape[2]] = steps[..., :3]
        return shown

    def legend(
        self,
        array: np.ndarray,
        classes: Sequence[str] | None,
        limits: Limits | None,
        num_marks: int,
        chosen: Sequence[Colour] | None = None,
    ) -> Swatches | Scale:
        low, high = limits or self.limits(array)
        unit = f" {self.task.unit}" if self.task.unit else ""
        if not self.label_channels:
            values = np.linspace(low, high, num_marks)
            digits = next((n for n in range(3, 9) if len({f"{v:.{n}g}" for v in values}) == num_marks), 9)
            return Scale(turbo(), [f"{v:.{digits}g}{unit}" for v in values])
        names = [f"channel {i + 1}" for i in range(min(3, self.label_channels))]
        names[-1] += f" (each {low:.3g} to {high:.3g}{unit})"
        return Swatches(list(zip((RED, GREEN, BLUE), names, strict=False)))

    def field_file(self, prediction: np.ndarray) -> FieldFile:
        """A NumPy file of float32, (H W) or (H W c)."""
        return ".npy", np.ascontiguousarray(self.channels_last(prediction), np.float32)

    def pack(self, label: Tensor) -> dict[str, np.ndarray]:
        """Deflated float32: the range of a person's own numbers is not known."""
        content = zlib.compress(label.contiguous().numpy().tobytes(), 6)
        return {self.task.name: np.frombuffer(content, np.uint8)}

    def unpack(self, arrays: Mapping[str, np.ndarray], size_hw: tuple[int, int]) -> Tensor:
        num_values = max(self.label_channels, 1) * size_hw[0] * size_hw[1]
        values = np.frombuffer(inflated(arrays[self.task.name], 4 * num_values), np.float32)
        channels = (self.label_channels,) if self.label_channels else ()
        return torch.from_numpy(values.reshape(*channels, *size_hw).copy())
