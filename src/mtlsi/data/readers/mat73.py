"""MATLAB files of version 7.3, which are HDF5 files whose axes run the other way round than MATLAB shows them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsi.errors import MistakeError
from mtlsi.images import pixel_limit
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
            return _Variables(path).fields(file, DEPTH)
    except MistakeError:
        raise
    except Exception as error:  # a damaged file raises whatever HDF5's parser does
        raise MistakeError(
            f"{path}: not a whole MATLAB file ({len(content)} bytes); download it again or delete it"
        ) from error


def lies_elsewhere(dataset: h5py.Dataset) -> bool:
    """Whether its numbers lie in other files, which may be any of this machine's, or a pipe."""
    return bool(dataset.external) or dataset.is_virtual


@dataclass
class _Variables:
    """What a file holds, counted while it is read: references may lead to one array again and again, or in a circle."""

    path: Path
    num_items: int = 0
    num_bytes: float = 0

    def fields(self, group: h5py.Group, depth: int) -> dict[str, Any]:
        import h5py

        names = [name for name in map(str, group) if not name.startswith("#")]
        if len(names) > CELLS:
            raise MistakeError(f"{self.path}: {len(names)} variables; expected {CELLS} at most")
        inside = [name for name in names if isinstance(group.get(name, getlink=True), h5py.HardLink)]
        return {name: self._value(group[name], depth) for name in inside}

    def _value(self, item: Any, depth: int) -> Any:
        import h5py

        self._count(item)
        if isinstance(item, h5py.Group):
            if "MATLAB_sparse" in item.attrs:
                return self._sparse(item)
            return self.fields(item, depth - 1) if depth else None
        if not isinstance(item, h5py.Dataset) or lies_elsewhere(item) or item.shape is None:
            return None
        if "MATLAB_empty" in item.attrs:
            return np.zeros((0, 0))
        if item.dtype == h5py.ref_dtype:
            return self._cell(item, depth) if depth else None
        if item.dtype.kind not in "fiub" or _attribute(item, "MATLAB_class") == b"char":
            return None
        _check_size(self.path, item.name, item.shape)
        return item[()].T

    def _cell(self, item: h5py.Dataset, depth: int) -> np.ndarray:
        num_cells = int(np.prod(item.shape or (), dtype=np.float64))
        if num_cells > CELLS:
            raise MistakeError(f"{self.path}: {item.name} has {num_cells} cells; expected {CELLS} at most")
        cells = np.empty(num_cells, dtype=object)
        for i, reference in enumerate(np.ravel(item[()].T)):
            cells[i] = self._value(item.file[reference], depth - 1)
        return cells

    def _sparse(self, group: h5py.Group) -> Any:
        """The matrix as the file has it: whoever computes with it must check its indices first."""
        from scipy.sparse import csc_matrix

        parts: dict[str, np.ndarray] = {}
        for name in ("jc", "ir", "data"):
            if name in group:
                part = group[name]
                if lies_elsewhere(part):  # pyright: ignore[reportArgumentType]
                    raise MistakeError(f"{self.path}: {group.name} lies in another file; save it as one whole file")
                self._count(part)
                _check_size(self.path, group.name, getattr(part, "shape", ()))
                if getattr(part, "dtype", np.dtype(object)).kind not in "fiub":  # a text can be many, each very long
                    raise MistakeError(f"{self.path}: {group.name}: its {name} are no numbers; save it again")
                parts[name] = np.asarray(part)
        shape = (int(np.asarray(_attribute(group, "MATLAB_sparse")).item()), len(parts["jc"]) - 1)
        _check_size(self.path, group.name, shape)
        if "data" not in parts:  # nothing but zeros
            return csc_matrix(shape)
        return csc_matrix((parts["data"], parts["ir"], parts["jc"]), shape=shape)

    def _count(self, item: Any) -> None:
        self.num_items += 1
        self.num_bytes += max(num_bytes(item, getattr(item, side, None) or ()) for side in ("shape", "chunks"))
        if self.num_items > MOST_ITEMS or self.num_bytes > MOST_BYTES:
            raise _excess(self.path)


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
            total += num_bytes(item, item.shape)
            if max(total, num_bytes(item, item.chunks or ())) > MOST_BYTES or found > MOST_ITEMS:
                raise _excess(path)

    file.visititems(add)


def _attribute(item: Any, name: str) -> Any:
    """One of fixed length, or None: the parts of others can all be one text of the file's size."""
    if name not in item.attrs or item.attrs.get_id(name).dtype.kind not in "fiubS":
        return None
    return item.attrs[name]


def num_bytes(item: Any, shape: tuple[int, ...]) -> float:
    """What ``shape`` of an array's elements takes, such as that of one of its chunks; 0 of what is no array."""
    return float(np.prod(shape, dtype=np.float64)) * item.dtype.itemsize if hasattr(item, "dtype") else 0


def _excess(path: Path) -> MistakeError:
    return MistakeError(
        f"{path}: holds more than {MOST_BYTES // 2**20} MB or {MOST_ITEMS} arrays; expected labels of one image"
    )


def _check_size(path: Path, name: str | None, shape: tuple[int, ...]) -> None:
    most = pixel_limit()
    if np.prod(shape, dtype=np.float64) > most:
        size = "x".join(map(str, shape[::-1]))
        raise MistakeError(f"{path}: {(name or '').lstrip('/')} is {size}; expected no more than {most} numbers")
