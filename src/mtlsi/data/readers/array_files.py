"""NumPy and MATLAB files, read only after what they say of their sizes has been checked.

A header of a hundred bytes can ask for terabytes, and a megabyte that was deflated can become a gigabyte. Pickled objects
are never loaded.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtlsi.errors import MistakeError
from mtlsi.images import pixel_limit
from mtlsi.reading import MOST_BYTES

MOST_INFLATED = 256 * 2**20
"""Bytes of all variables of a MATLAB file up to version 7: a map of 30 megapixels in float64 takes 240 MB."""
MOST_PARTS = 100_000
"""Cells and fields of one, wherever they lie."""
MOST_NAMES = 2**16
"""Bytes of the field names of a structure, and letters of a text."""
DEEPEST = 16
"""How deep cells and structures may lie in one another."""
MATRIX, COMPRESSED = 14, 15
"""Types of elements."""
CELL, STRUCT, OBJECT, CHAR, OPAQUE = 1, 2, 3, 4, 17
"""Classes of matrices."""


def read_npy(path: Path, content: bytes) -> np.ndarray:
    """The numbers of a NumPy file, in this machine's byte order. Raises ``MistakeError`` for anything else."""
    broken = MistakeError(f"{path}: not a whole NumPy file ({len(content)} bytes); download it again or delete it")
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        old = version == (1, 0)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
    except Exception as error:  # a damaged header raises whatever its parser does
        raise broken from error
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise MistakeError(f"{path}: holds {str(dtype)[:40]}; expected an array of numbers")
    if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise broken
    needed = math.prod(shape) * dtype.itemsize
    if needed > min(MOST_BYTES, len(content) - file.tell()):
        raise broken
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        raise broken from error
    return values.astype(dtype.newbyteorder("="), copy=False)


def read_mat(path: Path, content: bytes) -> dict[str, Any]:
    """The variables of a MATLAB file of versions 5 to 7. Raises ``MistakeError`` for anything else."""
    from scipy.io import loadmat

    broken = MistakeError(f"{path}: not a whole MATLAB file ({len(content)} bytes); download it again or delete it")
    try:
        return loadmat(io.BytesIO(_Elements(path, content).inflated()))
    except MistakeError:
        raise
    except Exception as error:  # a damaged file raises whatever its parser does
        raise broken from error


@dataclass
class _Elements:
    """The parts of a MATLAB file, counted before they are built. Raises ``ValueError`` where the file is not whole."""

    path: Path
    content: bytes
    num_parts: int = 0

    def inflated(self) -> bytes:
        """The file without compression; ``MistakeError`` for more than such files hold."""
        if 0 in self.content[:4]:  # version 4, whose sparse matrices say nothing of their size
            raise ValueError("no header")
        parts, total = [self.content[:128]], 0
        for kind, body in self._within(memoryview(self.content)[128:], padded=False):
            if kind == COMPRESSED:
                unpacker = zlib.decompressobj()
                element = unpacker.decompress(body, MOST_INFLATED - total + 1)
            else:
                element = self._word(kind) + self._word(len(body)) + bytes(body)
            total += len(element)
            if total > MOST_INFLATED:
                raise self._excess(f"holds more than {MOST_INFLATED // 2**20} MB")
            for inner, matrix in self._within(memoryview(element), padded=False):
                if inner != MATRIX:
                    raise ValueError("no matrix")
                self._check(matrix)
            parts.append(element)
        return b"".join(parts)

    def _check(self, matrix: memoryview) -> None:
        """Walks through a matrix and what lies in it."""
        waiting = [(matrix, 0)]
        while waiting:
            body, depth = waiting.pop()
            self.num_parts += 1
            if depth > DEEPEST or self.num_parts > MOST_PARTS:
                raise self._excess(f"has more than {DEEPEST} levels or {MOST_PARTS} parts")
            number, kind_of_matrix = 0, 0
            for number, (kind, part) in enumerate(self._within(body, padded=True)):
                if number == 0:
                    kind_of_matrix = int.from_bytes(part[:4], self._order) & 0xFF
                elif number == 1 and kind_of_matrix != OPAQUE:
                    self._check_shape(kind_of_matrix, part)
                elif kind == MATRIX:
                    waiting.append((part, depth + 1))
                elif kind_of_matrix in (STRUCT, OBJECT) and len(part) > MOST_NAMES:
                    raise self._excess(f"has field names of {len(part)} bytes")

    def _check_shape(self, kind: int, part: memoryview) -> None:
        sides = np.frombuffer(part, "<i4" if self._order == "little" else ">i4").tolist()
        most = {CELL: MOST_PARTS, STRUCT: MOST_PARTS, OBJECT: MOST_PARTS, CHAR: MOST_NAMES}.get(kind)
        if len(sides) > 32 or min(sides, default=0) < 0:
            raise ValueError("no shape")
        if math.prod(sides) > (most or pixel_limit()):
            raise self._excess(f"has an array of {'x'.join(map(str, sides))}")

    def _within(self, data: memoryview, *, padded: bool) -> Iterator[tuple[int, memoryview]]:
        """Type and content of the elements that lie one after the other."""
        place = 0
        while place + 8 <= len(data):
            kind = int.from_bytes(data[place : place + 4], self._order)
            size, start = int.from_bytes(data[place + 4 : place + 8], self._order), place + 8
            if kind >> 16:  # up to four bytes, in place of their number
                kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
                place += 8
            else:
                place = start + size + (-size % 8 if padded else 0)
            if start + size > len(data):
                raise ValueError("cut short")
            yield kind, data[start : start + size]

    @property
    def _order(self) -> Literal["little", "big"]:
        return "little" if self.content[126:128] == b"IM" else "big"

    def _word(self, value: int) -> bytes:
        return value.to_bytes(4, self._order)

    def _excess(self, what: str) -> MistakeError:
        return MistakeError(f"{self.path}: {what}; expected labels of one image: give another file")
