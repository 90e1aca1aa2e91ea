"""What a predictor is to those who write its predictions to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mtlsi.drawing.panels import Colours
from mtlsi.prediction.camera import TrainingCamera


class PredictsImages(Protocol):
    """A ``Predictor``, or what stands for one."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can predict."""
        ...

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The class names of each task that has classes."""
        ...

    @property
    def colours(self) -> Colours:
        """The colours of the classes, by task, where they are not our own."""
        ...

    @property
    def training_camera(self) -> TrainingCamera | None:
        """The camera of the images that it was trained on, where that is known."""
        ...

    @property
    def identity(self) -> str:
        """Differs where the predictions for the same image would."""
        ...

    def __call__(self, image: np.ndarray, tasks: tuple[str, ...], /) -> dict[str, np.ndarray]: ...


class PredictsPhotos(PredictsImages, Protocol):
    """One whose predictions for a large photo need not be in memory together."""

    def maps(self, image: np.ndarray, tasks: tuple[str, ...], /) -> Mapping[str, np.ndarray]:
        """What a call gives; a map may be made when it is asked for."""
        ...
