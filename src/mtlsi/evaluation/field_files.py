"""Predictions as files in the formats that the field's scoring tools read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.io import replace_array
from mtlsi.tasks import TASKS

FOLDERS = {
    "semseg": "semseg",
    "parsing": "human_parts",
    "saliency": "sal",
    "depth": "depth",
    "normals": "normals",
    "boundary": "edge",
}
"""What the field calls the folder of each task; one that is not here has its own name."""


def save_for_field(folder: Path, name: str, decoded: Mapping[str, np.ndarray]) -> None:
    """Write one image's decoded predictions, maps (H W) and vectors (3 H W), as ``folder``/TASK/``name``.

    Classes: 8-bit indices. Boundaries and saliency: 8 bits, 255 times the probability; SEISM and the BSDS benchmark read
    the former. Normals: 8 bits, c as 2 c / 255 - 1. Depth: a NumPy file of float32 metres.
    """
    try:
        for task, values in decoded.items():
            place = folder / FOLDERS.get(task, task)
            place.mkdir(parents=True, exist_ok=True)
            output = TASKS[task].output
            if output == "value":
                replace_array(place / f"{name}.npy", values.astype(np.float32))
            elif output == "class":
                replace_array(place / f"{name}.png", Image.fromarray(values.astype(np.uint8)))
            else:
                scaled = (values.transpose(1, 2, 0) + 1) * 127.5 if output == "direction" else values * 255
                replace_array(place / f"{name}.png", Image.fromarray(np.rint(scaled).astype(np.uint8)))
    except OSError as error:
        raise MistakeError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error
