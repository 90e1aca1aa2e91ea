"""The folder of a clip's arrays, a file for each picture: ``000000.npz`` and so on."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from mtlsi.errors import MistakeError

MOMENT = "time_us"
"""Beside the arrays of the tasks, which gives such a file away: the picture's moment in microseconds."""
NAME = re.compile(r"\d{6,}\.npz")


def name_of(number: int) -> str:
    """What the files of a picture's arrays begin with."""
    return f"{number:06d}"


def earlier_arrays(folder: Path) -> list[Path]:
    """The arrays that an earlier run left in a folder.

    Raises ``MistakeError`` for a file that has the name of such arrays and is something else.
    """
    found = [path for path in sorted(folder.iterdir()) if NAME.fullmatch(path.name)]
    for path in found:
        if not _is_ours(path):
            raise MistakeError(f"{path}: no arrays of a video, and would stand among them; give another --out")
    return found


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as arrays:
            return f"{MOMENT}.npy" in arrays.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # what zipfile raises for damage
        return False
