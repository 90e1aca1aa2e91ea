from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo() -> np.ndarray:
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:, :64, 0] = 230
    pixels[:, 64:, 1] = 230
    pixels[..., 2] = np.linspace(51, 204, 96).astype(np.uint8)[:, None]
    return pixels


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for name in ("room10.png", "room2.png", "Room1.png"):
        Image.fromarray(photo).save(place / name)
    return place
