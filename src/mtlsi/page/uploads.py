"""What a browser sends as a photo: read, bounded, or refused in one line."""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.images import open_image, to_rgb
from mtlsi.prediction.camera import View, view_from_exif

MOST_BYTES = 40 * 2**20
"""A larger file is refused."""
MOST_PIXELS = 50_000_000
"""An image with more is refused before it is decoded."""
KEPT_PIXELS = 4_000_000
"""A larger photo is shrunk to this before it is predicted: what is kept of ten people's photos stays within memory."""
LONGEST_NAME = 60


@dataclass(frozen=True)
class Upload:
    """A photo that a browser sent, upright."""

    pixels: np.ndarray
    """``(H W 3) uint8``"""
    view: View | None
    """By its EXIF, in pixels of ``pixels``; None where that says nothing."""
    changed: str = ""
    """What was done to it: one sentence, or nothing."""


def read_upload(path: Path, name: str) -> Upload:
    """The photo in ``path``.

    ``name`` is what the person called it. Raises ``MistakeError`` where it is no image, is damaged or is too large.
    """
    shown = plain_name(name)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise MistakeError(
            f"{shown}: {size / 2**20:.0f} MB; expected at most {MOST_BYTES // 2**20} MB: make it smaller"
        )
    if not size:
        raise MistakeError(f"{shown}: an empty file; expected an image")
    with open_image(shown, path, most_pixels=MOST_PIXELS) as image:
        pixels = to_rgb(image)
    height, width = pixels.shape[:2]
    view = view_from_exif(path, (height, width))
    if height * width <= KEPT_PIXELS:
        return Upload(pixels, view)
    scale = math.sqrt(KEPT_PIXELS / (height * width))
    small = (max(1, int(width * scale)), max(1, int(height * scale)))
    shrunk = np.asarray(Image.fromarray(pixels).resize(small, Image.Resampling.BILINEAR, reducing_gap=2.0))
    if view is not None:
        view = View(view.focal_px * scale, view.source)
    return Upload(shrunk, view, f"shrunk from {width} x {height}")


def check_uploaded(path: str | Path, folder: str | Path) -> None:
    """Raises ``MistakeError`` unless ``path`` is a file that a browser sent, in ``folder``: a request may name any other.

    It is neither opened nor followed out of the folder.
    """
    try:
        real = Path(os.path.realpath(path))
        sent = real.is_relative_to(os.path.realpath(folder)) and stat.S_ISREG(real.lstat().st_mode)
    except (OSError, ValueError, TypeError):
        sent = False
    if not sent:
        raise MistakeError("not an uploaded file; expected an image that the page was sent")


def plain_name(name: str) -> str:
    """The last part of a file's name, without what cannot be shown, short enough for one line."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(letter if letter.isprintable() else " " for letter in last).strip() or "photo"
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"


def plain_stem(name: str) -> str:
    """What the files of a photo's results begin with: letters, digits, ``-`` and ``_`` of its own name."""
    stem = re.sub(r"[^\w-]+", "_", re.sub(r"\.\w{1,5}$", "", plain_name(name))).strip("_")
    return stem or "photo"
