"""The files that ``mtlsi boundary`` scores, as people have them: soft maps and the boundaries of one or more annotators."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlsi.data.readers.decoding import UNKNOWN, decode_mat, decode_npy
from mtlsi.data.readers.label_pixels import LOSSY_ADVICE, lossy_format
from mtlsi.data.readers.mat73 import decode_mat73, is_mat73
from mtlsi.errors import MistakeError
from mtlsi.images import open_image
from mtlsi.reading import MOST_BYTES, read_content

LEVELS = {1: 255, 2: 65535}
"""The brightest value, by the number of bytes."""


@dataclass(frozen=True)
class Truth:
    """What is labelled on one image."""

    annotators: list[np.ndarray]
    """The boundaries (H W) bool of each."""
    known: np.ndarray | None = None
    """Where there is a label, (H W) bool; None: everywhere."""
    unclear: bool = False
    """Whether it holds values other than those that mean no, yes and unknown."""


def read_map(path: Path) -> np.ndarray:
    """A soft boundary map (H W) in 0..1: float64 of whole numbers, else as it is stored.

    Images are grey, of 1, 8 or 16 bits, in one channel or in equal ones. A MATLAB file holds one map, or ``ucm2`` (the
    ultrametric contour map of BSDS, twice the size plus one), whose every second value is taken from the third on, as
    the benchmark does. An image or array of the values 0 and 1 alone means no and yes.
    """
    values, _ = _values(path)
    if values.dtype.kind == "f":
        if not _inside(values, 1):
            raise MistakeError(f"{path}: values {_range(values)}; expected 0..1, or whole numbers 0..255")
        return values
    return _scaled(path, values)


def _scaled(path: Path, values: np.ndarray) -> np.ndarray:
    """Whole numbers as 0..1; those of 8 bits may be stored in more."""
    highest = values.max(initial=0)
    if values.min(initial=0) < 0 or highest > LEVELS[2]:
        raise MistakeError(f"{path}: values {_range(values)}; expected 0..1, 0..255 or 0..65535")
    return values / (1 if highest <= 1 else LEVELS[1] if highest <= LEVELS[1] else LEVELS[2])


def _values(path: Path, *, lossless: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """What a file holds: numbers (H W), not empty, and where an image is not wholly clear (None: nowhere clear)."""
    content, suffix, visible = _content(path), path.suffix.lower(), None
    if suffix == ".mat":
        values = _map_of_mat(path, _variables(path, content))
    elif suffix == ".npy":
        values = decode_npy(path, content)
    else:
        values, visible = _grey(path, content, lossless)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or 0 in values.shape:
        raise MistakeError(f"{path}: an array of shape {list(values.shape)}; expected a map (height, width)")
    return values.astype(np.uint8) if values.dtype.kind == "b" else values, visible


def _grey(path: Path, content: bytes, lossless: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The grey values (H W) of an image: uint8, int32 for 16 bits, float32 for fractions; and where it is not clear."""
    with open_image(path, io.BytesIO(content)) as image:
        if lossless and (lossy := lossy_format(image, content)):
            raise MistakeError(f"a lossy file ({lossy}): {LOSSY_ADVICE}")
        if image.mode == "1":
            return np.array(image.convert("L")), None
        if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
            return np.array(image, {"L": np.uint8, "F": np.float32}.get(image.mode, np.int32)), None
        if image.mode not in ("P", "PA", "LA", "RGB", "RGBA"):
            raise MistakeError(f"pixels of mode {image.mode}; expected grey ones; convert the file")
        pixels = np.array(image.convert("RGB"))
        opacity = np.array(image.getchannel("A")) if "A" in image.getbands() else None
    visible = None if opacity is None or opacity.all() else opacity > 0
    if (pixels != pixels[..., :1]).any(where=np.True_ if visible is None else visible[..., None]):
        raise MistakeError(f"{path}: coloured pixels; expected grey ones, white = certainly a boundary")
    return pixels[..., 0], visible


def _map_of_mat(path: Path, variables: dict[str, Any]) -> np.ndarray:
    names = [name for name in variables if not name.startswith("__")]
    arrays = dict(zip(names, _dense(path, [variables[name] for name in names]), strict=True))
    if "ucm2" in arrays:
        ucm2 = arrays["ucm2"]
        if ucm2.ndim != 2 or min(ucm2.shape) < 3 or not all(side % 2 for side in ucm2.shape):
            raise MistakeError(f"{path}: ucm2 of shape {list(ucm2.shape)}; expected twice the image's size plus one")
        return _numbers(path, ucm2[2::2, 2::2])
    maps = {name: value for name, value in arrays.items() if value.ndim == 2 and value.dtype.kind in "fiub"}
    maps = {name: value for name, value in maps.items() if value.size > 1}
    if len(maps) != 1:
        raise MistakeError(
            f"{path}: {len(maps)} maps in it ({', '.join(arrays) or 'no variables'}); expected one, or ucm2, the map of "
            "the BSDS benchmark"
        )
    return _numbers(path, next(iter(maps.values())))


# ---- truth


def read_truth(path: Path) -> Truth:
    """The labels of one image: boundary, none, or unknown, at 127 of an image of 8 bits and where its opacity is 0.

    Images and arrays hold 0..1, a boundary from 0.5 on, or 0..255, a boundary above 127. A MATLAB file is one of BSDS.
    """
    if path.suffix.lower() == ".mat":
        return Truth(_annotators(path, _variables(path, _content(path))))
    values, known = _values(path, lossless=True)
    if not _inside(values, LEVELS[2] if values.dtype.kind != "f" else LEVELS[1]):
        raise MistakeError(f"{path}: values {_range(values)}; expected boundaries in 0..1 or 0..255")
    highest = values.max()
    if highest <= 1:
        return Truth([values >= 0.5], known, _holds_other(values, (0, 1), known))
    if highest > LEVELS[1]:
        values = np.rint(values / (LEVELS[2] // LEVELS[1]))
    labelled = values != UNKNOWN
    if not labelled.all():
        known = labelled if known is None else labelled & known
    return Truth([values > UNKNOWN], known, _holds_other(values, (0, LEVELS[1]), known))


def _holds_other(values: np.ndarray, usual: tuple[int, int], known: np.ndarray | None) -> bool:
    return not np.isin(values if known is None else values[known], usual).all()


def _annotators(path: Path, variables: dict[str, Any]) -> list[np.ndarray]:
    """``groundTruth{k}.Boundaries`` of every k."""
    try:
        cells = np.ravel(variables["groundTruth"])
        found = [_unwrapped(cell["Boundaries"]) for cell in cells]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        there = ", ".join(name for name in variables if not name.startswith("__")) or "no variables"
        raise MistakeError(
            f"{path}: no groundTruth{{k}}.Boundaries in it ({there}); expected a file of the BSDS benchmark"
        ) from error
    maps = _dense(path, found)
    if not maps:
        raise MistakeError(f"{path}: groundTruth is empty; expected the boundaries of at least one annotator")
    for number, values in enumerate(maps, 1):
        if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "fiub" or values.shape != maps[0].shape:
            raise MistakeError(
                f"{path}: Boundaries of annotator {number}: {values.dtype} of shape {list(values.shape)}; expected a map "
                "of 0 and 1 of the image's size"
            )
        if not np.isfinite(values).all():
            raise MistakeError(f"{path}: Boundaries of annotator {number} are not finite; expected 0 and 1")
    return [values > 0 for values in maps]


def _unwrapped(value: Any) -> Any:
    """Out of the cells of one element that MATLAB's structures come in."""
    while isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
        value = value.ravel()[0]
    return value


# ---- what both need


def _content(path: Path) -> bytes:
    try:
        return read_content(path)
    except OSError as error:
        raise MistakeError(f"{path}: cannot be read ({error.strerror})") from error


def _variables(path: Path, content: bytes) -> dict[str, Any]:
    return decode_mat73(path, content) if is_mat73(content) else decode_mat(path, content)


def _dense(path: Path, values: list[Any]) -> list[np.ndarray]:
    """The numbers of arrays and sparse matrices.

    Those are checked first: SciPy would follow their indices out of the array, and a few bytes can name any shape.
    """
    sparse = [value for value in values if hasattr(value, "toarray")]
    if sum(math.prod(value.shape) * value.dtype.itemsize for value in sparse) > MOST_BYTES:
        raise MistakeError(
            f"{path}: sparse matrices of more than {MOST_BYTES // 2**20} MB in all; expected labels of one image"
        )
    try:
        for value in sparse:
            value.check_format(full_check=True)
        return [value.toarray() if hasattr(value, "toarray") else np.asarray(value) for value in values]
    except (ValueError, TypeError) as error:
        raise MistakeError(f"{path}: a sparse matrix whose indices are not its own; save it again") from error


def _numbers(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiub":
        raise MistakeError(f"{path}: holds {values.dtype}; expected a map of numbers")
    return values


def _inside(values: np.ndarray, highest: float) -> bool:
    return bool(np.isfinite(values).all()) and values.min() >= 0 and values.max() <= highest


def _range(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "that are not finite"
    return f"{values.min():g}..{values.max():g}"
