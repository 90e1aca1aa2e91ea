"""What every kind says about its labels and predictions, with the behaviour that most of them share."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mtlsi.kinds.colouring import UNKNOWN, Colour, Limits, Scale, Swatches
from mtlsi.kinds.grids import cell_centres, nearest
from mtlsi.later import Later
from mtlsi.tasks import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Later("torch")  # an exported model is drawn without it

FieldFile = tuple[str, np.ndarray]
"""A file's suffix, ``.npy`` or ``.png``, and its content; an image is uint8 or uint16."""


def inflated(deflated: np.ndarray, *num_bytes: int) -> bytes:
    """What was deflated. Raises ``ValueError`` unless it has one of ``num_bytes``: a megabyte can become a gigabyte."""
    content = zlib.decompressobj().decompress(deflated.tobytes(), max(num_bytes) + 1)
    if len(content) not in num_bytes:
        raise ValueError(f"{len(content)} bytes or more; expected {num_bytes}")
    return content


class Kind(ABC):
    """The behaviour of one task's labels and predictions. Labels are laid out as ``tasks.py`` says."""

    discrete: ClassVar[bool]
    """Labels take few values: they are counted, not averaged, and never interpolated."""
    starts_at_constant: ClassVar[bool] = False
    """Labels lie far from 0, where a new network begins: its last bias starts at the best constant."""
    hard_edges: ClassVar[bool] = False
    """Drawings are upsampled to the nearest pixel: between two colours lies no third."""

    def __init__(self, task: Task):
        self.task = task

    # ---- labels

    @property
    def label_channels(self) -> int:
        """0: a label is a map (H W); c: it is (c H W)."""
        return 0

    def label_dtype(self, num_classes: int | None = None) -> torch.dtype:
        """The type of a label; only classes depend on ``num_classes``."""
        return torch.float32

    @abstractmethod
    def fill_value(self, dtype: Any) -> float:
        """What marks a pixel without a label, in a label of this type."""

    @abstractmethod
    def valid(self, label: Any) -> Any:
        """True where the label says something, ``(... H W)``. Takes NumPy arrays and torch tensors."""

    def empty(self, size_hw: Sequence[int], num_classes: int | None = None) -> Tensor:
        """A label without a valid pixel."""
        dtype = self.label_dtype(num_classes)
        shape = (self.label_channels, *size_hw) if self.label_channels else tuple(size_hw)
        return torch.full(shape, self.fill_value(dtype), dtype=dtype)

    @abstractmethod
    def random(self, batch: int, size_hw: Sequence[int], num_channels: int) -> Tensor:
        """A batch of random labels without an invalid pixel; ``num_channels`` are the prediction's."""

    # ---- geometry

    def shrink(self, label: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """``label`` on a coarser grid, for the loss: the pixel at each cell's centre."""
        height, width = label.shape[-2:]
        rows = cell_centres(height, size_hw[0], label.device)
        columns = cell_centres(width, size_hw[1], label.device)
        return label[..., rows[:, None], columns]

    def resize(self, label: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """``label`` at another size, for augmentation: the nearest pixel."""
        return nearest(label, size_hw)

    def flip(self, label: Tensor, axis: int) -> Tensor:
        """``label`` mirrored left to right (``axis`` -1) or upside down (-2), as a copy."""
        return label.flip(axis)

    def zoom(self, label: Tensor, factor: float) -> Tensor:
        """The values of ``label`` after its image was upsampled by ``factor``."""
        return label

    def pad(self, label: Tensor, sides: Sequence[int]) -> Tensor:
        """``label`` with invalid pixels at its ``sides``: left, right, top, bottom."""
        return torch.nn.functional.pad(label, list(sides), value=self.fill_value(label.dtype))

    # ---- predictions

    @abstractmethod
    def decode(self, raw: Tensor) -> Tensor:
        """The prediction that raw channels (b c h w) stand for, laid out as labels are."""

    @abstractmethod
    def constant(self, values: Tensor) -> Tensor:
        """The best prediction that never looks at the image, () or (c), from valid label values (n) or (c n)."""

    def raw_constant(self, constant: Tensor, num_channels: int) -> Tensor:
        """Raw channels (c) that decode to ``constant``."""
        return constant.reshape(-1)

    def to_average(self, raw: Tensor) -> Tensor:
        """Raw channels (b c h w) as numbers whose weighted mean over several looks at one place makes sense."""
        return raw

    def from_average(self, values: Tensor) -> Tensor:
        """Raw channels that such a mean stands for."""
        return values

    # ---- colours

    def colours(
        self, array: np.ndarray, limits: Limits | None = None, chosen: Sequence[Colour] | None = None
    ) -> np.ndarray:
        """A label or prediction in colours, (H W 3) uint8, invalid pixels in one grey.

        ``array`` (H W), (H W c) or (c H W). ``limits``: the values at the ends of the colour scale, by default
        ``self.limits(array)``. ``chosen``: the colours of classes; None: our own.
        """
        array = self.channels_last(array)
        shown = self.shades(array, limits, chosen)
        shown[~self._drawn(array)] = UNKNOWN
        return shown

    @abstractmethod
    def shades(self, array: np.ndarray, limits: Limits | None, chosen: Sequence[Colour] | None = None) -> np.ndarray:
        """The colours (H W 3) uint8 of an array with its channels last, as a new array; anything where invalid."""

    @abstractmethod
    def legend(
        self,
        array: np.ndarray,
        classes: Sequence[str] | None,
        limits: Limits | None,
        num_marks: int,
        chosen: Sequence[Colour] | None = None,
    ) -> Swatches | Scale:
        """What the colours of ``array`` mean; a scale has ``num_marks`` marks."""

    def limits(self, *arrays: np.ndarray) -> Limits | None:
        """The values at the ends of the colour scale over all of ``arrays``; None where colours have no scale."""
        return None

    def channels_last(self, array: np.ndarray) -> np.ndarray:
        """(c H W) becomes (H W c); everything else stays."""
        array, channels = np.asarray(array), self.label_channels
        if channels and array.ndim == 3 and array.shape[0] == channels != array.shape[2]:
            return array.transpose(1, 2, 0)
        return array

    def _drawn(self, array: np.ndarray) -> np.ndarray:
        """True (H W) where an array with its channels last holds something to draw."""
        return self.valid(array.transpose(2, 0, 1) if array.ndim == 3 else array)

    # ---- files

    def extra_files(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Images that ``predict`` writes beside the array and the drawing: by name, (H W) uint8 or uint16."""
        return {}

    @abstractmethod
    def field_file(self, prediction: np.ndarray) -> FieldFile:
        """A decoded prediction, (H W) or (c H W), as the field's scoring tools read it."""

    @abstractmethod
    def pack(self, label: Tensor) -> dict[str, np.ndarray]:
        """A label as the small arrays that a prepared data set keeps, by name."""

    @abstractmethod
    def unpack(self, arrays: Mapping[str, np.ndarray], size_hw: tuple[int, int]) -> Tensor:
        """The label that ``pack`` took; ``arrays`` may hold those of other tasks too."""
