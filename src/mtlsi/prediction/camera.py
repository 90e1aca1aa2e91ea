"""The camera behind a photo: its focal length, and what follows from it for metres.

A thing of size S at depth Z is f S / Z pixels large, f the focal length in pixels. A network sees only those pixels. It
was trained with one focal length f_t and gives the depth Z' at which that camera would show the thing as large,
f_t S / Z' = f S / Z, hence Z = Z' f / f_t, with both focal lengths in pixels of what the network sees: those of the photo,
times what its sides are multiplied by (``mtlsi.prediction.shown``). See docs/points.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags

from mtlsi.errors import MistakeError
from mtlsi.images import UNREADABLE, peek_image
from mtlsi.model.facts import FOCAL_PX, LONGEST_SIDE
from mtlsi.prediction.maps import Maps
from mtlsi.prediction.shown import Shown, Size
from mtlsi.reading import shortened
from mtlsi.tasks import TASKS

FILM_DIAGONAL_MM = 43.267
"""Of 35 mm film, 24x36 mm, by whose diagonal equivalent focal lengths are reckoned (CIPA DCG-001)."""
UNITS_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""Millimetres of EXIF's FocalPlaneResolutionUnit."""
NOTABLE = 0.03
"""A change of metres that is worth a word: lengths in 35 mm film are rounded to 2 % of a telephone's."""
DEGREES = (3.0, 150.0)
"""Fields of view along the diagonal that are believed of a photo's metadata."""


FOV_DEG = (1e-6, 179.9999)
"""The narrowest and the widest horizontal field of view."""


@dataclass(frozen=True)
class View:
    """A photo's focal length in its own pixels, and where it is from."""

    focal_px: float
    source: str


@dataclass(frozen=True)
class TrainingCamera:
    """The camera of the images that a network was trained on.

    Raises ``MistakeError`` for a focal length or a size that no camera has.
    """

    focal_px: float
    """In pixels of an image of ``size_hw``."""
    size_hw: Size
    shown: Shown
    """At what size the network was shown images in training."""

    def __post_init__(self) -> None:
        check_focal(self.focal_px)
        if not all(1 <= side <= LONGEST_SIDE for side in self.size_hw):
            raise MistakeError(
                f"the camera's size_hw {shortened(list(self.size_hw))}; expected sides of 1..{LONGEST_SIDE} pixels"
            )

    def focal_of(self, size_hw: Size) -> float:
        """The focal length in pixels of a photo of this size, if it was taken with such a camera."""
        return self.focal_px * self.shown.scale(self.size_hw) / self.shown.scale(size_hw)

    def factor(self, focal_px: float, size_hw: Size) -> float:
        """What metres of the training camera are to be multiplied by for a photo of this size and focal length."""
        return focal_px / self.focal_of(size_hw)


@dataclass(frozen=True)
class Camera:
    """How photos were taken: one of a focal length in pixels and a horizontal field of view in degrees, or what their
    EXIF metadata say.
    """

    focal_px: float | None = None
    fov_deg: float | None = None

    def __post_init__(self) -> None:
        if self.focal_px is not None and self.fov_deg is not None:
            raise MistakeError("a focal length and a field of view; expected one of --focal-px and --fov-deg")
        for name, value in (("focal length", self.focal_px), ("field of view", self.fov_deg)):
            if not isinstance(value, Real | None):
                raise MistakeError(f"{name} {value!r}; expected a number")
        if self.focal_px is not None:
            check_focal(self.focal_px)
        if self.fov_deg is not None and not FOV_DEG[0] <= self.fov_deg <= FOV_DEG[1]:
            raise MistakeError(
                f"field of view {shortened(self.fov_deg)}; expected degrees, {FOV_DEG[0]:g}..{FOV_DEG[1]}"
            )

    def view(self, size_hw: Size, path: Path | None = None) -> View | None:
        """The focal length of an image of ``size_hw`` in the file ``path``; None where nothing says it."""
        if self.focal_px is not None:
            return View(self.focal_px, "--focal-px")
        if self.fov_deg is not None:
            return View(size_hw[1] / 2 / math.tan(math.radians(self.fov_deg) / 2), "--fov-deg")
        return None if path is None else view_from_exif(path, size_hw)


def check_focal(focal_px: float) -> None:
    """Raises ``MistakeError`` for a focal length that is none."""
    if not FOCAL_PX[0] <= focal_px <= FOCAL_PX[1]:
        raise MistakeError(
            f"focal length {shortened(focal_px)}; expected a number of pixels above 0, {FOCAL_PX[0]:g}..{FOCAL_PX[1]:g}"
        )


def view_from_exif(path: Path, size_hw: Size) -> View | None:
    """What the metadata of a photo say; None where they say nothing that can be.

    Choice: FocalLengthIn35mmFilm comes first. It is rounded to millimetres, 2 % of a telephone's, but of the size of
    a sensor's pixels some cameras write nonsense. A photo that was cropped afterwards has another field of view.
    """
    try:
        with peek_image(path) as image:
            tags = image.getexif().get_ifd(ExifTags.IFD.Exif)
        found = _in_film(tags, size_hw) or _on_sensor(tags, size_hw)
    except UNREADABLE:
        return None
    if found is None or not FOCAL_PX[0] <= found.focal_px <= FOCAL_PX[1]:
        return None
    degrees = math.degrees(2 * math.atan(math.hypot(*size_hw) / 2 / found.focal_px))
    return found if DEGREES[0] <= degrees <= DEGREES[1] else None


def _in_film(tags: Mapping[int, Any], size_hw: Size) -> View | None:
    film_mm = float(tags.get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    if not 0 < film_mm < math.inf:
        return None
    return View(film_mm / FILM_DIAGONAL_MM * math.hypot(*size_hw), "EXIF FocalLengthIn35mmFilm")


def _on_sensor(tags: Mapping[int, Any], size_hw: Size) -> View | None:
    length_mm = float(tags.get(ExifTags.Base.FocalLength, 0))
    per_unit = float(tags.get(ExifTags.Base.FocalPlaneXResolution, 0))
    unit_mm = UNITS_MM.get(int(tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2)), 0)
    if not (0 < length_mm < math.inf and 0 < per_unit < math.inf and unit_mm):
        return None
    sides = [float(tags.get(tag, 0)) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)]
    smaller = max(size_hw) / max(sides) if max(sides) > 0 else 1.0  # the photo was resized since
    return View(length_mm * per_unit / unit_mm * smaller, "EXIF FocalPlaneXResolution")


@dataclass(frozen=True)
class Metres:
    """What is done to the distances of every image of a command, and which focal length its points have.

    ``needed``: every image needs a focal length. Raises ``MistakeError`` for a scale that is not above 0, and for a camera
    where the network's own is unknown.
    """

    training: TrainingCamera | None
    camera: Camera | None = None
    scale: float = 1.0
    needed: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise MistakeError(f"scale {self.scale:g}; expected a number above 0")
        if self.training is None and self.camera is not None:
            raise MistakeError("the model's config.json names no training camera, for which metres could be rescaled")

    @property
    def matter(self) -> bool:
        """Whether anything is done."""
        return self.needed or self.camera is not None or self.scale != 1

    def of(
        self, prediction: Mapping[str, np.ndarray], size_hw: Size, path: Path
    ) -> tuple[Mapping[str, np.ndarray], View | None]:
        """The predictions for the image's own camera, and its view; None where none is needed or known."""
        camera = Camera() if self.camera is None and self.needed else self.camera
        view, factor = camera and camera.view(size_hw, path), self.scale
        if view is not None and self.training is not None:
            factor *= self.training.factor(view.focal_px, size_hw)
        if view is None and self.needed:
            view = assumed_view(self.training, size_hw)
        return (prediction if factor == 1 else multiplied(prediction, factor)), view

    def unused_factor(self, size_hw: Size, path: Path) -> float | None:
        """What the photo's EXIF would multiply its metres by, where nothing asks for it; None for less than ``NOTABLE``."""
        if self.needed or self.camera is not None or self.training is None:
            return None
        view = view_from_exif(path, size_hw)
        return None if view is None else notable(self.training.factor(view.focal_px, size_hw))


def notable(factor: float) -> float | None:
    """The factor, where it changes metres by more than ``NOTABLE``."""
    return factor if abs(math.log(factor)) > NOTABLE else None


def assumed_view(training: TrainingCamera | None, size_hw: Size) -> View:
    """The view of a photo whose camera nobody knows: that of the training set's, else of 60 degrees from side to side."""
    if training is None:
        return View(size_hw[1] / 2 / math.tan(math.radians(30)), "assumed: 60 degrees from side to side")
    return View(training.focal_of(size_hw), "assumed: as the camera of the training set")


def multiplied(prediction: Mapping[str, np.ndarray], factor: float) -> Mapping[str, np.ndarray]:
    """The predictions with every distance multiplied by ``factor``; of ``Maps``, when they are asked for."""

    def change(task: str, array: np.ndarray) -> np.ndarray:
        return array * np.float32(factor) if TASKS[task].kind == "distance" else array

    if isinstance(prediction, Maps):
        return prediction.changed(change)
    return {task: change(task, array) for task, array in prediction.items()}


def distance_task(tasks: Iterable[str]) -> str:
    """The first task of distances; ``MistakeError`` where there is none."""
    for task in tasks:
        if TASKS[task].kind == "distance":
            return task
    raise MistakeError("no task of distances, which points and cameras are for; predict depth, too")
