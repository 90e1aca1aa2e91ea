"""Metres from a few measured distances: a scale for one camera and one kind of scene."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mtlsi.errors import MistakeError
from mtlsi.options.using import PredictOptions, has_points
from mtlsi.prediction.camera import Camera, Metres, distance_task, view_from_exif
from mtlsi.prediction.images import read_image
from mtlsi.streams import write_line
from mtlsi.tasks import check_tasks


@dataclass(frozen=True)
class Calibration:
    """What predicted metres are to be multiplied by."""

    scale: float
    ratios: tuple[float, ...]
    """Measured over predicted, by distance."""
    pixels: tuple[tuple[int, int], ...]
    """Column and row of each."""

    def __str__(self) -> str:
        of = f"{len(self.ratios)} distances" if len(self.ratios) > 1 else "1 distance"
        measured = zip(self.ratios, self.pixels, strict=True)
        odd = [f"{ratio:.2f} at {x},{y}" for ratio, (x, y) in measured if not 0.8 < ratio / self.scale < 1.25]
        rest = f"; far from it: {', '.join(odd)}" if odd else ""
        return f"scale {self.scale:.4f} from {of}, {min(self.ratios):.2f} to {max(self.ratios):.2f}{rest}"


def calibrate(depth_m: np.ndarray, measured: Mapping[tuple[int, int], float]) -> Calibration:
    """The scale of a predicted depth map ``(H W)`` from measured distances in metres by pixel (column, row).

    The median of the ratios: of five distances two may be of the wrong thing. A distance counts as depth along the optical
    axis, as predicted; at a pixel it is the median of 5x5. Raises ``MistakeError`` for a pixel outside the image or
    without a predicted depth, and for a distance that is not above 0.
    """
    height, width = depth_m.shape
    if not measured:
        raise MistakeError("no distances to calibrate by; expected some X,Y,METRES")
    ratios = []
    for (column, row), distance_m in measured.items():
        if not (0 <= column < width and 0 <= row < height):
            raise MistakeError(f"pixel {column},{row} is outside the image of {width}x{height}; expected X,Y inside it")
        if not 0 < distance_m < math.inf:
            raise MistakeError(f"distance {distance_m:g} at {column},{row}; expected metres above 0")
        predicted = float(np.median(depth_m[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]))
        if not predicted > 0:
            raise MistakeError(f"no depth is predicted at {column},{row}; measure somewhere else")
        ratios.append(distance_m / predicted)
    return Calibration(math.exp(float(np.median(np.log(ratios)))), tuple(ratios), tuple(measured))


def read_measured(texts: tuple[str, ...]) -> dict[tuple[int, int], float]:
    """``320,240,2.35`` as a pixel (column, row) and metres; ``MistakeError`` for anything else."""
    measured: dict[tuple[int, int], float] = {}
    for text in texts:
        try:
            column, row, distance_m = text.split(",")
            pixel, metres = (int(column), int(row)), float(distance_m)
        except ValueError as error:
            raise MistakeError(f"--calibrate {text}; expected X,Y,METRES such as 320,240,2.35") from error
        if pixel in measured:
            raise MistakeError(f"--calibrate {text}: that pixel has a distance already; expected one for each pixel")
        measured[pixel] = metres
    return measured


def read_camera(options: PredictOptions, predictor: Any, console: Console | None = None) -> tuple[Camera | None, float]:
    """The camera and the scale that the flags of ``mtlsi predict`` say; the scale of --calibrate is measured and printed.

    ``predictor``: a ``Predictor``, or what stands for one. Raises ``MistakeError`` for flags that contradict each other.
    """
    camera = None
    if options.exif or options.focal_px is not None or options.fov_deg is not None:
        camera = Camera(options.focal_px, options.fov_deg)
    if options.exif and camera != Camera():
        raise MistakeError("--exif and another focal length; expected one of --exif, --focal-px and --fov-deg")
    if not options.calibrate:
        return camera, options.scale
    if options.scale != 1:
        raise MistakeError("--scale and --calibrate; expected one of them")
    if len(options.images) != 1 or Path(options.images[0]).is_dir():
        raise MistakeError("--calibrate is for one image, in whose pixels the distances were measured; give that alone")
    measured, path = read_measured(options.calibrate), Path(options.images[0])
    task = distance_task(check_tasks(options.tasks or predictor.tasks, among=predictor.tasks))
    pixels = read_image(path)
    size_hw = pixels.shape[0], pixels.shape[1]
    metres = Metres(predictor.training_camera, camera, needed=has_points(options.write))
    prediction, _ = metres.of(predictor(pixels, (task,)), size_hw, path)
    found, same = calibrate(prediction[task], measured), ""
    if options.exif:
        same = ", again with --exif"
    elif camera is None and view_from_exif(path, size_hw) is not None:  # which metres follow where points are made
        same = ", again with points" if metres.needed else ", again without points"
    said = f"{found}; for other photos like this one{same}: --scale {found.scale:.4f}"
    write_line(console or Console(stderr=True), said)
    return camera, found.scale
