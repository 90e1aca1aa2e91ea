"""How the predictions of a clip are drawn: one layout, one legend and one scale of colours from end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtlsi import kinds
from mtlsi.drawing.panels import Classes, Colours, MovingPanel
from mtlsi.kinds.colouring import Limits

ENOUGH = 256
"""Rows and columns of a prediction from which a scale is found."""


class ClipView:
    """Draws every picture of a clip, all of one size: ``view.draw(pixels, prediction)``.

    ``size_hw``: that of the clip; ``samples``: predictions of some of its pictures (see ``thinned``), from which the ends
    of each colour scale are found. ``as_panel``: a sheet of the picture and all tasks; else the first task's map alone,
    at the clip's own size and without a legend.
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        samples: Sequence[Mapping[str, np.ndarray]],
        classes: Classes,
        colours: Colours,
        *,
        as_panel: bool,
    ):
        self.task, self.colours, self.size_hw = next(iter(samples[0])), colours, size_hw
        found = {task: limits_of(task, [sample[task] for sample in samples]) for task in samples[0]}
        self.limits = {task: limits for task, limits in found.items() if limits is not None}
        self.panel = MovingPanel(size_hw, samples, classes, colours, self.limits) if as_panel else None
        if self.panel is not None:
            self.size_hw = self.panel.size_hw

    def draw(self, pixels: np.ndarray, prediction: Mapping[str, np.ndarray]) -> np.ndarray:
        """The drawing ``(H' W' 3) uint8``, always of ``size_hw``."""
        if self.panel is not None:
            return self.panel.draw(pixels, prediction)
        array = prediction[self.task]
        return kinds.of(self.task).colours(array, self.limits.get(self.task), self.colours.get(self.task))


def limits_of(task: str, arrays: Sequence[np.ndarray]) -> Limits | None:
    """The ends of a task's colour scale over all arrays; None where colours have no scale."""
    return kinds.of(task).limits(*arrays)


def thinned(prediction: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every n-th row and column, as copies: enough for a scale and a legend, and little to keep."""
    kept = {}
    for task, array in prediction.items():
        array = kinds.of(task).channels_last(array)
        rows, columns = (max(1, side // ENOUGH) for side in array.shape[:2])
        kept[task] = array[::rows, ::columns].copy()
    return kept
