"""MATLAB files of version 7.3, which are HDF5 files whose axes run the other way round than MATLAB shows them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.reading import MOST_BYTES

if TYPE_CHECKING:
    import h5py

DEPTH = 4
"""How deep cells and structures may lie in one another: references can also run in a circle."""
MOST_ITEMS = 20_000
"""Arrays, wherever they lie in a file."""
CELLS = 1000
"""As many parts may a cell have: nobody asked more people than that to draw one image's boundaries."""


def is_mat73(content: bytes) -> bool:
    """Whether the bytes of a file say that it is one."""
    return b"HDF" in content[:1024] and b"MATLAB 7.3" in content[:128]


def decode_mat73(path: Path, content: bytes) -> dict[str, Any]:
    """The variables, much as ``decode_mat`` gives those of older files.

    Numbers are arrays, sparse ones as ``scipy.sparse``; a cell is an array of objects, a structure a dictionary; all else
    is None. Choice: links to other files are not followed, and no array may have more elements than an image may have
    pixels, for a file of a few bytes can name any number of them.
    Raises ``MistakeError`` for a file that is not whole or holds more.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            _check_total(path, file)
            return _fields(path, file, DEPTH)
    except MistakeError:
        raise
    except Exception as error:  # a damaged file raises whatever HDF5's parser does
        raise MistakeError(
            f"{path}: not a whole MATLAB file ({len(content)} bytes); download it again or delete it"
        ) from error


def _fields(path: Path, group: h5py.Group, depth: int) -> dict[str, Any]:
    import h5py

    names = [name for name in map(str, group) if not name.startswith("#")]
    if len(names) > CELLS:
        raise MistakeError(f"{path}: {len(names)} variables; expected {CELLS} at most")
    inside = [name for name in names if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    return {name: _value(path, group[name], depth) for name in inside}


def _value(path: Path, item: Any, depth: int) -> Any:
    import h5py

    if isinstance(item, h5py.Group):
        if "MATLAB_sparse" in item.attrs:
            return _sparse(path, item)
        return _fields(path, item, depth - 1) if depth else None
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.shape is None:
        return None
    if "MATLAB_empty" in item.attrs:
        return np.zeros((0, 0))
    if item.dtype == h5py.ref_dtype:
        return _cell(path, item, depth) if depth else None
    if item.dtype.kind not in "fiub" or item.attrs.get("MATLAB_class") == b"char":
        return None
    _check_size(path, item.name, item.shape)
    return item[()].T


def _cell(path: Path, item: h5py.Dataset, depth: int) -> np.ndarray:
    num_cells = int(np.prod(item.shape or (), dtype=np.float64))
    if num_cells > CELLS:
        raise MistakeError(f"{path}: {item.name} has {num_cells} cells; expected {CELLS} at most")
    cells = np.empty(num_cells, dtype=object)
    for i, reference in enumerate(np.ravel(item[()].T)):
        cells[i] = _value(path, item.file[reference], depth - 1)
    return cells


def _sparse(path: Path, group: h5py.Group) -> Any:
    from scipy.sparse import csc_matrix

    jc, height = np.asarray(group["jc"]), int(np.asarray(group.attrs["MATLAB_sparse"]).item())
    shape = (height, len(jc) - 1)
    _check_size(path, group.name, shape)
    if "data" not in group:  # nothing but zeros
        return np.zeros(shape)
    for part in ("data", "ir"):
        _check_size(path, group.name, getattr(group[part], "shape", ()))
    return csc_matrix((np.asarray(group["data"]), np.asarray(group["ir"]), jc), shape=shape)


def _check_total(path: Path, file: h5py.File) -> None:
    """Raises ``MistakeError`` where all arrays together, unpacked, or one chunk of one, take more than may be read."""
    import h5py

    total, found = 0.0, 0

    def add(_: str, item: Any) -> None:
        nonlocal total, found
        found += 1
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            if item.dtype.kind in "fiub":
                _check_size(path, item.name, item.shape)
            total += float(np.prod(item.shape, dtype=np.float64)) * item.dtype.itemsize
            chunk = float(np.prod(item.chunks or (), dtype=np.float64)) * item.dtype.itemsize
            if max(total, chunk) > MOST_BYTES or found > MOST_ITEMS:
                raise MistakeError(
                    f"{path}: holds more than {MOST_BYTES // 2**20} MB or {MOST_ITEMS} arrays; expected labels of one image"
                )

    file.visititems(add)


def _check_size(path: Path, name: str | None, shape: tuple[int, ...]) -> None:
    most = Image.MAX_IMAGE_PIXELS or 0
    if np.prod(shape, dtype=np.float64) > most:
        size = "x".join(map(str, shape[::-1]))
        raise MistakeError(f"{path}: {(name or '').lstrip('/')} is {size}; expected no more than {most} numbers")
