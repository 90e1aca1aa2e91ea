"""Predictions as files in the formats that the field's scoring tools read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.io import replace_array
from mtlsi.reading import check_relative

FOLDERS = {
    "semseg": "semseg",
    "parsing": "human_parts",
    "saliency": "sal",
    "depth": "depth",
    "normals": "normals",
    "boundary": "edge",
}
"""What the field calls the folder of each task; any other is named as its task."""


def save_for_field(folder: Path, name: str, decoded: Mapping[str, np.ndarray]) -> None:
    """Write one image's decoded predictions, maps (H W) and vectors (c H W), as ``folder``/TASK/``name``.

    Classes: indices of 8 bits, 16 with more than 255 classes. Strength: 8 bits, 255 times the probability; SEISM and the
    BSDS benchmark read boundaries so. Directions: 8 bits, c as 2 c / 255 - 1. Distances and values: a NumPy file of
    float32. Raises ``MistakeError`` where ``folder`` cannot be written and for a ``name`` that may lead out of it.
    """
    check_relative(name)
    try:
        for task, prediction in decoded.items():
            suffix, content = kinds.of(task).field_file(prediction)
            place = folder / FOLDERS.get(task, task)
            place.mkdir(parents=True, exist_ok=True)
            replace_array(place / f"{name}{suffix}", content if suffix == ".npy" else Image.fromarray(content))
    except OSError as error:
        raise MistakeError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error
